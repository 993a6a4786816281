"""``--audit`` as people use it, in this process."""

import json
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import pytest

from pipeline.audit.rate import AUTO, Rate
from pipeline.audit.shadow_gate import ShadowGate
from pipeline.command.watchers import open_audit
from pipeline.engines import open_engine
from pipeline.errors import OptionError
from pipeline.flow.events import Events
from pipeline.page.options import Watched
from tests.conftest import red_program, write_bundle
from tests.pipeline.audit.conftest import picture, spoiled, steep_program, two_programs, wait_for


@pytest.fixture
def patient(monkeypatch):
    """Each audit is waited for, so that all frames get one."""
    hand_over = ShadowGate.computed

    def computed(gate, frame):
        hand_over(gate, frame)
        wait_for(lambda: not gate.is_busy)

    monkeypatch.setattr(ShadowGate, "computed", computed)


@pytest.fixture
def clip(tmp_path, write_video, red_images):
    return write_video(tmp_path / "clip.mp4", red_images)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_lines_tell_of_audits(main, clip, tmp_path, hurried, idle, patient):
    bundle = two_programs(tmp_path / "b", red_program(), red_program())
    out = tmp_path / "out.jsonl"
    done = main("--source", clip, "--audit", "1/4", "--output", out, model=bundle.folder)
    assert (done.status, done.err) == (0, [])
    audits = [line["audit"] for line in lines_of(out) if "audit" in line]
    assert [audit["index"] for audit in audits] == [0, 4, 8]
    assert all(audit["iou"] == 1 for audit in audits)


def test_a_spoiled_program_is_told_even_with_quiet(main, write_video, tmp_path, hurried, idle, patient):
    clip = write_video(tmp_path / "clip.mp4", [picture(index) for index in range(6)])
    bundle = two_programs(tmp_path / "b", spoiled(steep_program()), steep_program())
    done = main("--source", clip, "--audit", "1/2", "--output", "null", model=bundle.folder)
    assert done.status == 0
    assert [line[:60] for line in done.err] == ["audit: the masks do not agree with the program in FP32: expe"]


def test_there_is_a_summary(main, clip, tmp_path, hurried, idle, patient):
    bundle = two_programs(tmp_path / "b", red_program(), red_program())
    done = main("--source", clip, "--audit", "1/4", "--output", "null", model=bundle.folder, quiet=False)
    assert any(line.startswith("audit: 3 frames compared with the program in FP32, mean IoU 1.0") for line in done.err)


def test_with_a_governor_too(main, clip, tmp_path, hurried, idle, patient):
    bundle = two_programs(tmp_path / "b", red_program(), red_program())
    out = tmp_path / "out.jsonl"
    done = main("--source", clip, "--audit", "1/1", "--fps", "500", "--output", out, model=bundle.folder)
    assert (done.status, done.err) == (0, [])
    assert any("audit" in line for line in lines_of(out))


def test_files_are_not_audited_unless_it_is_asked_for(main, clip, tmp_path):
    bundle = two_programs(tmp_path / "b", red_program(), red_program())
    done = main("--source", clip, "--output", "null", model=bundle.folder, quiet=False)
    assert not [line for line in done.err if line.startswith("audit")]


def test_there_must_be_something_to_compare_with(refused, clip, tmp_path):
    bundle = write_bundle(tmp_path / "b", precision="int8")
    assert refused("--source", clip, "--audit", "1/min", "--output", "null", model=bundle.folder) == (
        f"error: --audit: expected its program in FP32 in {tmp_path / 'b'}, got none: compile the bundle again without "
        "--no-reference; or take --audit off"
    )


def test_a_wrong_rate_is_refused(refused, clip):
    line = refused("--source", clip, "--audit", "2/10", "--output", "null")
    assert line.startswith(
        "error: argument --audit: expected 1/min, 2/h (units: s, min, h, d), 1/10 for every 10th frame, "
    )


def source(*, live):
    return SimpleNamespace(info=SimpleNamespace(name="door", live=live))


@pytest.mark.parametrize(
    ("asked", "live", "reference", "rate"),
    [
        ("auto", True, True, AUTO),
        ("auto", False, True, None),
        ("auto", True, False, None),  # it runs in FP32 itself
        ("off", True, True, None),
        (Rate(frames=7), False, True, Rate(frames=7)),
        (Rate(frames=7), False, False, Rate(frames=7)),
    ],
)
def test_when_there_are_audits(tmp_path, red_bundle, hurried, asked, live, reference, rate):
    bundle = two_programs(tmp_path / "b", red_program(), red_program()) if reference else red_bundle
    with open_engine(bundle) as engine, ExitStack() as stack:
        gate = open_audit(asked, engine, [source(live=live)], stack)
        assert (None if gate is None else gate._rate) == rate
        assert gate is None or isinstance(gate, Events)


def test_auto_on_another_runtime(red_bundle, hurried):
    with open_engine(red_bundle) as engine, ExitStack() as stack:
        engine.is_reference = False
        assert open_audit("auto", engine, [source(live=True)], stack)._rate == AUTO


def test_recurrent_programs_are_not_audited(red_bundle, said):
    recurrent = replace(red_bundle, manifest=replace(red_bundle.manifest, contract={"state": [[1, 8, 2, 2]]}))
    engine = SimpleNamespace(bundle=recurrent, is_reference=False)
    with ExitStack() as stack:
        assert open_audit("auto", engine, [source(live=True)], stack) is None
        assert said == [
            "no audit: expected masks that depend on one frame alone, got a recurrent network, which cannot be audited"
        ]
        with pytest.raises(
            OptionError, match=r"got a recurrent network, which cannot be audited; or take --audit off$"
        ):
            open_audit(Rate(frames=1), engine, [source(live=True)], stack)


def test_an_old_bundle_without_is_told_of(tmp_path, said):
    bundle = write_bundle(tmp_path / "b", precision="fp16")
    with ExitStack() as stack:
        assert (
            open_audit("auto", SimpleNamespace(bundle=bundle, is_reference=False), [source(live=True)], stack) is None
        )
    [line] = said
    assert line.startswith("no audit: expected its program in FP32 in ")


def test_the_state_of_the_page(tmp_path, hurried, idle):
    from pipeline.command.outputs import with_watchers

    bundle = two_programs(tmp_path / "b", red_program(), red_program())
    with open_engine(bundle) as engine, ExitStack() as stack:
        gate = open_audit(Rate(frames=1), engine, [source(live=False)], stack)
        assert with_watchers(Watched({}), [Events(), gate]).audit() == gate.state()
        assert with_watchers(Watched({}), [Events()]).audit() is None
