import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import pipeline.audit.shadow_gate as shadow_gate
from pipeline.audit.rate import Rate
from pipeline.audit.shadow_gate import BUSY, FAILED, LOAD, ShadowGate
from pipeline.bundles.bundle import REFERENCE_NAME
from pipeline.engines import open_engine
from pipeline.frames.nv12 import to_bgr, to_nv12
from tests.conftest import red_program, write_bundle
from tests.pipeline.audit.conftest import (
    EVERY,
    PATIENCE_S,
    frame_of,
    picture,
    red_frame,
    spoiled,
    steep_program,
    two_programs,
    wait_for,
)

ROOT = Path(__file__).parents[3]


def masks_of(bundle, count, first=0):
    """Frames with the masks that the bundle's engine gives them."""
    with open_engine(bundle) as engine:
        for index in range(first, first + count):
            image = picture(index)
            yield frame_of(image, engine(image[None])[0], index)


def of_audits(lines):
    return [line for line in lines if line.startswith("audit: ")]


def test_a_good_program_agrees_in_silence(tmp_path, open_gate, audit, said):
    bundle = two_programs(tmp_path / "good", steep_program(10.01), steep_program())
    gate = open_gate(bundle)
    found = [audit(gate, frame) for frame in masks_of(bundle, 25)]
    assert min(one.iou for one in found) > 0.99
    assert all(one.judged and not one.empty for one in found)
    assert [one.index for one in found] == list(range(25))
    state = gate.state()
    assert (state["count"], state["total"], state["skipped"], state["below"]) == (25, 25, 0, False)
    assert of_audits(said) == []


def test_a_spoiled_program_is_told_within_three_audits_and_once(tmp_path, open_gate, audit, said):
    good = two_programs(tmp_path / "good", steep_program(), steep_program())
    bad = two_programs(tmp_path / "bad", spoiled(steep_program()), steep_program())
    below = []
    gate = open_gate(bad)
    gate.on_below = below.append
    for frame in masks_of(bad, 3):
        audit(gate, frame)
    assert gate.state()["below"]
    [line] = of_audits(said)
    assert line.startswith(
        "audit: the masks do not agree with the program in FP32: expected a mean IoU whose 95 % interval begins at 0.9900 "
        "or more, got 0."
    )
    assert below == [line]
    for frame in masks_of(bad, 5, first=3):
        audit(gate, frame)
    assert of_audits(said) == [line]
    for frame in masks_of(good, 130, first=10):
        audit(gate, frame)
    assert [text[:60] for text in of_audits(said)[1:]] == [
        "audit: the masks agree with the program in FP32 again: mean "
    ]
    assert below == [line]


def test_scores_that_are_not_finite_agree_with_nothing(red_twice, open_gate, audit):
    gate = open_gate(red_twice)
    found = audit(gate, red_frame(0, not_finite=3))
    assert (found.iou, found.mae, found.judged) == (0, 1, True)


def test_scores_that_are_not_finite_in_fp32_either(tmp_path, open_gate, audit):
    gate = open_gate(two_programs(tmp_path / "counting", red_program(counts=True), red_program(counts=True)))
    image = np.full((20, 30, 3), 255, np.uint8)
    assert audit(gate, frame_of(image, image[..., 2].copy())).iou == 0


def test_an_empty_mask_where_there_should_be_one(red_twice, open_gate, audit):
    gate = open_gate(red_twice)
    image = np.full((20, 30, 3), 200, np.uint8)
    found = audit(gate, frame_of(image, np.zeros((20, 30), np.uint8)))
    assert (found.iou, found.empty, found.judged) == (0, True, True)
    found = audit(gate, frame_of(np.zeros_like(image), np.full((20, 30), 200, np.uint8)))
    assert (found.iou, found.empty, found.judged) == (0, True, True)
    found = audit(gate, frame_of(np.zeros_like(image), np.zeros((20, 30), np.uint8)))
    assert (found.iou, found.empty, found.judged) == (1, False, False)  # nobody can judge by it
    assert gate.state()["empties"] == 2


def test_the_frame_that_goes_on_may_be_changed(red_twice, open_gate):
    gate = open_gate(red_twice)
    frame = red_frame(0)
    gate.computed(frame)
    frame.mask[:] = 0  # in place, as nobody does
    frame.mask = None
    wait_for(lambda: gate.newest("door") is not None)
    assert gate.newest("door").iou == 1


def test_stale_frames_are_not_audited(red_twice, open_gate):
    gate = open_gate(red_twice)
    gate.computed(frame_of(picture(0), np.zeros((90, 160), np.uint8), stale=True))
    assert not gate.is_busy
    assert gate.state()["skipped"] == 0


def stop(gate):
    wait_for(lambda: gate._process.pid is not None)
    pid = gate._process.pid
    os.kill(pid, signal.SIGSTOP)
    return pid


def test_what_comes_during_an_audit_is_skipped(red_twice, open_gate):
    gate = open_gate(red_twice)
    pid = stop(gate)
    frames = [red_frame(index) for index in range(10)]
    start_s = time.monotonic()
    for frame in frames:
        gate.computed(frame)
    assert time.monotonic() - start_s < PATIENCE_S / 4  # it waits for nobody, who stands still
    assert gate.skipped[BUSY] == 9
    os.kill(pid, signal.SIGCONT)
    wait_for(lambda: gate.newest("door") is not None)
    assert gate.newest("door").index == 0


def test_where_no_core_is_idle_nothing_is_audited(red_twice, open_gate, monkeypatch):
    gate = open_gate(red_twice)
    gate.pulse()
    monkeypatch.setattr(shadow_gate, "_LEAST_IDLE_CORES", 1e9)
    monkeypatch.setattr(shadow_gate, "_LOOK_EVERY_S", 0.01)

    def looked():
        gate.pulse()
        return not gate._has_time

    wait_for(looked)
    gate.computed(red_frame(0))
    assert gate.skipped == {BUSY: 0, LOAD: 1, FAILED: 0}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_process_that_is_ended_is_begun_anew_and_told_once(red_twice, open_gate, audit, said, monkeypatch, number):
    monkeypatch.setattr(shadow_gate, "_WAIT_S", 0.01)
    gate = open_gate(red_twice)
    for index in range(3):
        audit(gate, red_frame(index))
        pid = gate._process.pid
        os.kill(pid, number)
        gate.computed(red_frame(9))  # who notices
        wait_for(lambda pid=pid: gate._process.pid not in (pid, None) and not gate._has_failed)
    assert of_audits(said) == [f"audit: its process was ended by {number.name}; it is begun anew"]
    assert gate.state()["total"] == 3


def test_one_that_ends_again_and_again_is_given_up(red_twice, open_gate, said, monkeypatch):
    monkeypatch.setattr(shadow_gate, "_WAIT_S", 0.001)
    monkeypatch.setattr(shadow_gate, "_LONGER", 1)
    monkeypatch.setattr(
        "pipeline.audit.process.module_command", lambda _: [sys.executable, "-c", "raise SystemExit(7)"]
    )
    gate = open_gate(red_twice)
    wait_for(lambda: len(of_audits(said)) == 2)
    assert of_audits(said) == [
        "audit: its process ended with status 7; it is begun anew",
        "audit: its process ended with status 7, 5 times in a row: no more frames are audited",
    ]
    gate.computed(red_frame(0))
    assert gate.skipped[FAILED] == 1


def test_one_that_hangs_is_ended_and_told(red_twice, open_gate, audit, said, monkeypatch):
    monkeypatch.setattr(shadow_gate, "_WAIT_S", 0.01)
    gate = open_gate(red_twice)
    audit(gate, red_frame(0))
    pid = stop(gate)
    monkeypatch.setattr(shadow_gate, "_HUNG_S", 0.0)
    monkeypatch.setattr(shadow_gate, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(gate._idle_time, "idle_cores", lambda _: 1.0)
    gate.computed(red_frame(1, (1000, 1500)))  # more than a socket holds

    def gone():
        gate.pulse()
        return gate._process.pid != pid

    wait_for(gone)
    monkeypatch.setattr(shadow_gate, "_HUNG_S", 1e9)
    wait_for(lambda: gate._process.pid is not None and not gate._has_failed)
    assert audit(gate, red_frame(2)).iou == 1
    assert of_audits(said) == ["audit: its process hung; it is begun anew"]


def test_a_program_that_was_changed_is_not_trusted(red_twice, open_gate, said):
    (red_twice.folder / REFERENCE_NAME).write_bytes(steep_program())
    open_gate(red_twice)
    wait_for(lambda: of_audits(said))
    [line] = of_audits(said)
    assert line.startswith(f"audit: {red_twice.folder / REFERENCE_NAME}: expected sha256 ")
    assert line.endswith("compile the bundle again; no frame is audited")


def test_nothing_is_left_over(red_twice, open_gate, audit):
    before = sorted(os.listdir("/proc/self/fd"))
    pids = []
    for busy in (False, True):
        gate = open_gate(red_twice)
        audit(gate, red_frame(0))
        pids.append(stop(gate) if busy else gate._process.pid)
        gate.computed(red_frame(1))
        gate.close()
        assert not gate._thread.is_alive()
    gate = open_gate(red_twice)  # while it starts
    gate.close()
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


_PARENT = """
import sys, time
from pipeline.audit.rate import Rate
from pipeline.audit.shadow_gate import ShadowGate
from pipeline.bundles.bundle import Bundle
gate = ShadowGate(Bundle.read(sys.argv[1]), Rate(frames=1))
while gate._process.pid is None or gate._asked_at_s is not None:  # until it can compute
    time.sleep(0.01)
print(gate._process.pid, flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_it_ends_with_its_parent(red_twice, hurried, stopped):
    command = [sys.executable, "-c", _PARENT, str(red_twice.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        pid = int(parent.stdout.readline())
        status = Path(f"/proc/{pid}/status")
        if stopped:  # it cannot see that the socket is closed
            os.kill(pid, signal.SIGSTOP)
        parent.kill()
    wait_for(lambda: not status.exists() or "State:\tZ" in status.read_text())


def test_it_gets_out_of_the_way(red_twice, idle):
    gate = ShadowGate(red_twice, EVERY)
    try:
        wait_for(lambda: gate._process.pid is not None)
        pid = gate._process.pid
        wait_for(lambda: os.sched_getscheduler(pid) == os.SCHED_IDLE)
        assert os.getpriority(os.PRIO_PROCESS, pid) == 19
        assert os.sched_getscheduler(0) != os.SCHED_IDLE
    finally:
        gate.close()


def test_class_masks(tmp_path, open_gate, audit):
    classes = ("background", "road", "car")
    bundle = two_programs(tmp_path / "classes", red_program(), red_program(), task="classes", classes=classes)
    gate = open_gate(bundle)
    image = np.zeros((20, 30, 3), np.uint8)
    image[:10, :, 2], image[10:, :15, 2] = 1, 2
    assert audit(gate, frame_of(image, image[..., 2].copy())).iou == 1
    mask = image[..., 2].copy()
    mask[10:, :] = 0  # no car: road is right, the background is half of what it should be at most
    found = audit(gate, frame_of(image, mask))
    assert found.iou == pytest.approx((1 + 150 / 300 + 0) / 3)
    assert found.mae == pytest.approx(0.25)
    mask = np.full((20, 30), 1, np.uint8)  # of one class, and another
    found = audit(gate, frame_of(np.zeros_like(image), mask))
    assert (found.iou, found.empty, found.judged) == (0, True, True)


def test_tiles(tmp_path, open_gate, audit):
    manifest = {"contract": {"name": "stream", "tile": [[16, 24], 4]}, "frame_size_hw": (16, 24)}
    bundle = two_programs(tmp_path / "tiles", red_program(), red_program(), **manifest)
    gate = open_gate(bundle)
    for size_hw in ((40, 60), (100, 33)):
        image = picture(3, size_hw)
        with open_engine(bundle) as engine:
            mask = engine(image[None])[0]
        assert audit(gate, frame_of(image, mask)).iou == 1


def test_channels_as_in_files(tmp_path, open_gate, audit):
    from tests.pipeline.engines.test_tiled import fourth_program

    bundle = two_programs(tmp_path / "fourth", fourth_program(), fourth_program(), pixels="4x16")
    gate = open_gate(bundle)
    bands = np.random.default_rng(0).integers(0, 65536, (20, 30, 4), np.uint16)
    frame = frame_of(bands, None, format="4x16")
    with open_engine(bundle) as engine:
        frame.mask = engine(frame.as_pixels("4x16")[None])[0]
    assert audit(gate, frame).iou == 1


def nv12_programs(tmp_path):
    from compile.program.nv12 import with_nv12

    program = with_nv12(red_program(), None)
    return two_programs(tmp_path / "nv12", program, program, pixels="nv12")


@pytest.mark.parametrize("decoded", ["bgr", "nv12"])
def test_nv12(tmp_path, open_gate, audit, decoded):
    bundle = nv12_programs(tmp_path)
    gate = open_gate(bundle)
    planes = to_nv12(picture(5))
    frame = frame_of(planes if decoded == "nv12" else to_bgr(planes), None, format=decoded)
    with open_engine(bundle) as engine:
        frame.mask = engine(frame.as_pixels("nv12")[None])[0]
    assert audit(gate, frame).iou == 1


def test_programs_that_compose(tmp_path, open_gate, audit):
    from tests.pipeline.render.test_compose import composing_program

    composing = composing_program()
    for name, bundle in {
        "fp32": write_bundle(tmp_path / "fp32", composing, composes=True),
        "fp16": two_programs(tmp_path / "fp16", composing, red_program(), composes=True),
    }.items():
        # That program's count is not one: it is there for the tests of views.
        image = np.zeros((20, 30, 3), np.uint8)
        found = audit(open_gate(bundle), frame_of(image, np.zeros((20, 30), np.uint8)))
        assert found.iou == 1, name


def test_every_tenth_frame_of_each_source(red_twice, open_gate):
    gate = open_gate(red_twice, Rate(frames=10), ("door", "yard"))
    audited = []
    for index in range(40):
        for source in ("door", "yard"):
            gate.computed(red_frame(0, index=index, source=source))
            if gate.is_busy:
                audited.append((source, index))
                wait_for(lambda: not gate.is_busy)
    assert [index for source, index in audited if source == "door"] == [0, 10, 20, 30]
    assert [index for source, index in audited if source == "yard"] == [6, 16, 26, 36]


def test_once_in_a_time(red_twice, open_gate, audit, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("pipeline.audit.shadow_gate.time.monotonic", lambda: clock[0])
    due = shadow_gate._Due(Rate(period_s=60.0), 0.5)
    found = []
    for second in range(300):
        clock[0] = 1000.0 + second
        if due():
            found.append(second)
            if second < 100:
                due.skipped()  # the machine is busy
            else:
                due.taken()
    assert found == [*range(30, 101, 5), 160, 220, 280]


def test_the_summary(red_twice, open_gate, audit, said):
    gate = open_gate(red_twice)
    for index in range(2):
        audit(gate, red_frame(index))
    gate.skipped[LOAD] += 7
    gate.close()
    assert said[-1] == (
        "audit: 2 frames compared with the program in FP32, mean IoU 1.0000, worst 1.0000; skipped: 7 while no core was idle"
    )


def test_the_state_is_json(red_twice, open_gate, audit):
    gate = open_gate(red_twice)
    assert json.loads(json.dumps(gate.state()))["mean"] is None
    audit(gate, red_frame(0))
    assert json.loads(json.dumps(gate.state()))["values"] == [1.0]


def test_the_manifest_says_what_is_to_be_reached(tmp_path, open_gate):
    verification = {"gate": {"mean": 0.8, "worst": 0.7}}
    bundle = two_programs(tmp_path / "b", red_program(), red_program(), verification=verification)
    assert open_gate(bundle).state()["gate"] == 0.8
    silent = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, verification={}))
    assert open_gate(silent).state()["gate"] == 0.99


def test_another_bundle_begins_anew(tmp_path, open_gate, audit, said):
    bad = two_programs(tmp_path / "bad", spoiled(steep_program()), steep_program())
    good = two_programs(tmp_path / "good", red_program(), red_program())
    gate = open_gate(bad)
    for frame in masks_of(bad, 3):
        audit(gate, frame)
    assert gate.state()["below"]
    first = gate._process.pid
    gate.swapped(good)
    assert gate.newest("door") is None
    assert (gate.state()["below"], gate.state()["total"]) == (False, 0)
    assert audit(gate, red_frame(1)).iou == 1  # by its own program in FP32
    assert gate._process.pid != first
    assert not os.path.exists(f"/proc/{first}")
    assert len(of_audits(said)) == 1


def test_another_bundle_while_an_audit_is_made(tmp_path, red_twice, open_gate, audit, said):
    steep = two_programs(tmp_path / "steep", steep_program(), steep_program())
    gate = open_gate(steep)
    stop(gate)
    gate.computed(next(masks_of(steep, 1)))
    gate.swapped(red_twice)
    assert audit(gate, red_frame(1)).iou == 1
    gate.swapped(steep)
    gate.swapped(red_twice)
    assert audit(gate, red_frame(2)).iou == 1
    assert gate.state()["total"] == 1
    assert of_audits(said) == []


def test_another_bundle_without_a_program_in_fp32(tmp_path, red_twice, open_gate, audit, said):
    gate = open_gate(red_twice)
    audit(gate, red_frame(0))
    without = write_bundle(tmp_path / "without", precision="int8")
    gate.swapped(without)
    gate.computed(red_frame(1))
    assert gate.skipped[FAILED] == 1
    assert said == [
        f"no audit: expected its program in FP32 in {without.folder}, got none: compile the bundle again without --no-reference"
    ]
    gate.swapped(red_twice)
    assert audit(gate, red_frame(2)).iou == 1
