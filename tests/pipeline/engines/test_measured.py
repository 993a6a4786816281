"""What "auto" finds out: with backends whose speed is known, on a clock that they move."""

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import pipeline.engines
from pipeline.bundles.bundle import PROGRAM_NAME, Bundle
from pipeline.engines import ENGINES, EngineKind, choices, measured, open_engine, trial
from pipeline.engines.base import Computed, Engine
from pipeline.engines.choices import Choices, Way
from pipeline.engines.measured import MeasuredEngine
from pipeline.errors import BackendUnavailableError, BundleError

RUN = 8 * trial.SAMPLES + 40
"""Submissions after which all has been found out."""


class Clock:
    """Seconds that pass where an engine computes."""

    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(trial, "Trial", functools.partial(trial.Trial, clock=clock))
    monkeypatch.setattr(pipeline.engines, "is_seen", lambda *_: False)
    return clock


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEMASK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "choices"


class FakeEngine(Engine):
    """Masks are red, as ``change`` makes them; a frame takes ``ms``. ``made`` has all of them."""

    made: list = []  # noqa: RUF012 - of each subclass

    def __init__(self, bundle, at_once=1, precision=None):
        super().__init__(bundle)
        precision = list(self.kind.ms)[-1] if precision is None else precision
        self.precision, self.in_flight, self.frames, self.waiting, self.closed = precision, 2, 0, [], 0
        self.description = f"{type(self).__name__} {precision}".strip()
        self.counts = self.kind.counts
        self.made.append(self)
        self.kind.opens(self)

    def _submit(self, frames):
        self.frames += 1
        self.waiting.append(frames)

    def _collect(self):
        self.clock.now_s += self.kind.ms[self.precision] / 1000
        frames = self.waiting.pop(0)
        counts = np.zeros(len(frames), np.int32) if self.counts else None
        return Computed(self.kind.change(frames[..., 2].copy(), self.precision), None, counts)

    def _close(self):
        self.closed += 1


@pytest.fixture
def add(monkeypatch, clock):
    """``add("name", ms={"": 5}, …)``: a backend; without one that is named so before, the first is the guess. Gives its engines."""
    added = {}

    def call(name, ms, change=lambda masks, _: masks, opens=lambda _: None, counts=False, order=60):
        precisions = tuple(precision for precision in ms if precision)
        behaviour = SimpleNamespace(ms=ms, change=change, opens=opens, counts=counts)
        engine = type(name, (FakeEngine,), {"kind": behaviour, "clock": clock, "made": []})
        module = f"fake_{name}"
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(engine=engine))
        added[name] = EngineKind(
            name=name, opens="engine", help=name, order=order, module=module, overlaps=True, precisions=precisions
        )
        monkeypatch.setattr(ENGINES, "own", dict(added))
        return engine.made

    return call


@pytest.fixture
def with_reference(monkeypatch):
    """The reference is an engine like the guess, of which nothing is timed."""

    class Reference(Engine):
        in_flight = 1

        def _submit(self, frames):
            self.frames = frames

        def _collect(self):
            return Computed(self.frames[..., 2].copy())

        def _close(self): ...

    monkeypatch.setattr(pipeline.engines, "_open_reference", lambda bundle: Reference(bundle))


@pytest.fixture(autouse=True)
def _references(with_reference): ...


@pytest.fixture(autouse=True)
def _photographs(monkeypatch):
    """Of a height that no frame of a run has."""
    monkeypatch.setattr(pipeline.engines, "_photographs", lambda _: [picture(number, 64, 96) for number in range(8)])


def picture(number, height=40, width=60):
    """(1, H, W, 3) with a subject, each another."""
    frame = np.zeros((1, height, width, 3), np.uint8)
    frame[:, 5:25, 5 + number % 20 : 35 + number % 20, 2] = 255
    return frame


def masks_of(engine, count=RUN, make=picture):
    """Bring frames through an engine as the data path does, and check what comes in which order."""
    submitted, given = 0, []
    for _ in range(count):
        while submitted < count and submitted - len(given) < engine.in_flight:
            engine.submit(make(submitted))
            submitted += 1
        given.append(engine.collect())
    assert len(given) == count
    return given


def check(masks, make=picture):
    for number, mask in enumerate(masks):
        np.testing.assert_array_equal(mask, make(number)[..., 2])


def test_the_fastest_is_taken_told_kept_and_used(add, red_bundle, said, cache):
    slow, fast = add("slow", {"": 40}), add("fast", {"": 10})
    with open_engine(red_bundle, tune=True) as engine:
        assert isinstance(engine, MeasuredEngine)
        assert engine.description == "slow"
        check(masks_of(engine))
        assert engine.description == "fast"
    assert [one.closed for one in (*slow, *fast)] == [1, 1]
    assert fast[0].frames > 30  # those of the run
    (line,) = [line for line in said if line.startswith("--backend auto")]
    assert (
        "a frame takes fast 10 ms, slow 40 ms; takes fast, mean IoU with FP32 1.0000, worst 1.0000 on 8 frames" in line
    )
    (kept,) = cache.glob("*.json")
    assert json.loads(kept.read_text())["taken"] == ["fast", ""]
    with open_engine(red_bundle) as engine:
        assert type(engine).__name__ == "fast"
    with open_engine(red_bundle, tune=True) as engine:
        assert type(engine).__name__ == "fast"
    assert len([line for line in said if line.startswith("--backend auto")]) == 1


def test_the_guess_stays_where_nothing_is_faster(add, red_bundle, said):
    first, second = add("first", {"": 10}), add("second", {"": 11})
    with open_engine(red_bundle, tune=True) as engine:
        check(masks_of(engine))
        assert (engine.description, second[0].closed, first[0].closed) == ("first", 1, 0)
    assert "takes first;" in said[-1]
    with open_engine(red_bundle, tune=True) as engine:
        assert type(engine).__name__ == "first"


def test_short_runs_find_nothing_out(add, red_bundle, cache):
    add("slow", {"": 40}), add("fast", {"": 10})
    with open_engine(red_bundle) as engine:
        assert type(engine).__name__ == "slow"
    with open_engine(red_bundle, tune=True) as engine:
        check(masks_of(engine, 20))
    assert not list(cache.glob("*.json"))


def shrunk(masks, precision):
    """What a precision does that is too coarse."""
    if precision in ("", "f32"):
        return masks
    masks[:, :8] = 0
    return masks


@pytest.mark.parametrize("backend", ["auto", "fast"])
def test_what_does_not_agree_is_never_taken(add, red_bundle, said, backend):
    add("slow", {"": 40})
    fast = add("fast", {"bf16": 1, "f32": 20}, change=shrunk)
    with open_engine(red_bundle, backend, tune=True) as engine:
        check(masks_of(engine))
        assert engine.description == "fast f32"
    assert sum(one.frames for one in fast if one.precision == "bf16") == 8 + trial.SAMPLES
    assert re_found(
        said, r"not fast bf16: expected a mean IoU with FP32 whose interval begins at 0.99, got 0.8\d+ \(from 0.8"
    )
    with open_engine(red_bundle, backend) as engine:
        assert engine.description == "fast f32"


def test_a_precision_must_agree_on_photographs_too(add, red_bundle, said, cache):
    add("slow", {"": 40})
    add(
        "fast",
        {"bf16": 1, "f32": 20},
        change=lambda masks, precision: shrunk(masks, precision) if masks.shape[1] == 64 else masks,
    )
    with open_engine(red_bundle, tune=True) as engine:
        check(masks_of(engine))
        assert engine.description == "fast f32"
    assert re_found(
        said, "not fast bf16: on photographs of the package: expected a mean IoU with FP32 whose interval begins"
    )
    assert len(list(cache.glob("*.json"))) == 1


def test_photographs_in_which_a_network_sees_nothing_prove_nothing(add, red_bundle, monkeypatch):
    monkeypatch.setattr(pipeline.engines, "_photographs", lambda _: [np.zeros((1, 64, 96, 3), np.uint8)] * 8)
    add("slow", {"": 40}), add("fast", {"bf16": 1, "f32": 20})
    with open_engine(red_bundle, tune=True) as engine:
        check(masks_of(engine))
        assert engine.description == "fast bf16"


def test_photographs_are_as_the_engine_takes_frames(red_bundle, nv12_masks_bundle, make_bundle):
    from pipeline.engines.photographs import photographs

    with open_engine(red_bundle, "onnxruntime") as engine:
        given = photographs(engine, 8)
        assert len(given) == 8
        assert all(np.array_equal(engine(frame), frame[..., 2]) for frame in given)
    with open_engine(nv12_masks_bundle, "onnxruntime") as engine:
        assert [engine(frame).ndim for frame in photographs(engine, 2)] == [3, 3]
    with open_engine(make_bundle(frame_size_hw=(40, 60)), "onnxruntime") as engine:
        assert [frame.shape for frame in photographs(engine, 2)] == [(1, 40, 60, 3)] * 2


def re_found(lines, pattern):
    return any(re.search(pattern, line) for line in lines)


def test_a_precision_that_agrees_is(add, red_bundle):
    add("slow", {"": 40})
    add(
        "fast",
        {"bf16": 5, "f32": 20},
        change=lambda masks, precision: masks if precision == "f32" else np.minimum(masks, 253),
    )
    with open_engine(red_bundle, "fast", tune=True) as engine:
        assert engine.description == "fast f32"
        masks_of(engine)
        assert engine.description == "fast bf16"
    with open_engine(red_bundle, "fast") as engine:
        assert engine.description == "fast bf16"
    with open_engine(red_bundle) as engine:  # of auto nothing is known
        assert engine.description == "slow"


def test_on_empty_pictures_no_precision_is_proven_and_nothing_kept(add, red_bundle, said, cache):
    def empty(_):
        return np.zeros((1, 40, 60, 3), np.uint8)

    add("slow", {"": 40}), add("fast", {"bf16": 5, "f32": 20})
    with open_engine(red_bundle, tune=True) as engine:
        check(masks_of(engine, make=empty), empty)
        assert engine.description == "fast f32"
    assert re_found(said, "not fast bf16: expected 4 frames with a clear subject to compare masks on, got 0")
    assert not list(cache.glob("*.json"))


def fails_to_open(engine):
    raise BundleError("it cannot load the program")


def is_not_here(engine):
    raise BackendUnavailableError("no such device")


def crashes(masks, precision):
    raise ZeroDivisionError("deep inside")


@pytest.mark.parametrize(
    ("faults", "told"),
    [
        ({"opens": fails_to_open}, "not broken: it cannot load the program"),
        ({"change": crashes}, "not broken: ZeroDivisionError: deep inside"),
        ({"counts": True}, "not broken: its program gives other outputs"),
        ({"opens": is_not_here}, None),
    ],
)
def test_one_that_fails_is_left_out_and_told(add, red_bundle, said, faults, told):
    add("slow", {"": 40}), add("fast", {"": 10})
    broken = add("broken", {"": 1}, **faults)
    with open_engine(red_bundle, tune=True) as engine:
        check(masks_of(engine))
        assert engine.description == "fast"
    assert [one.closed for one in broken] == [0 if "opens" in faults else 1]
    assert (told in said[-1]) if told else ("broken" not in said[-1])


def test_one_that_hangs_is_left_out_and_told(add, red_bundle, said, monkeypatch):
    monkeypatch.setattr(trial, "Trial", functools.partial(trial.Trial, budget_s=0.2, hung_s=0.2))
    released = threading.Event()

    def hangs(masks, precision):
        released.wait(60)
        return masks

    add("slow", {"": 4}), add("fast", {"": 1}), add("hung", {"": 0.1}, change=hangs)
    try:
        with open_engine(red_bundle, tune=True) as engine:
            check(masks_of(engine))
            assert engine.description == "fast"
    finally:
        released.set()
    assert re_found(said, r"not hung: it did not come back within 0\.\d s")


def test_it_ends_with_its_budget_and_the_next_run_goes_on(add, red_bundle, said, cache):
    add("slow", {"": 1000}), add("fast", {"": 800}), add("late", {"": 100})
    with open_engine(red_bundle, tune=True) as engine:
        check(masks_of(engine))
        assert engine.description == "fast"
    assert "not late: the 10 s for all were over" in said[-1]
    assert not list(cache.glob("*.json"))


def test_an_error_comes_with_its_own_frame_and_those_before_it(add, red_bundle):
    def breaks(masks, _):
        if masks[0, 0, 0] == 9:
            raise BundleError("cannot run it")
        return masks

    def make(number):
        frame = picture(number)
        frame[:, 0, 0, 2] = 9 if number in (0, 60) else 0  # one that is a sample, and one while steps are taken
        return frame

    add("slow", {"": 40}, change=breaks), add("fast", {"": 10})
    with open_engine(red_bundle, tune=True) as engine:
        got, submitted = [], 0
        for number in range(RUN):
            while submitted < RUN and submitted - number < engine.in_flight:
                engine.submit(make(submitted))
                submitted += 1
            try:
                got.append(engine.collect())
            except BundleError:
                got.append(None)
    assert [number for number, masks in enumerate(got) if masks is None] == [0, 60]
    check([mask for mask in got if mask is not None], lambda n: make([i for i in range(RUN) if i not in (0, 60)][n]))


def test_one_that_finds_out_beside_another_process_leaves_it_to_that(add, red_bundle, said, cache):
    add("slow", {"": 40}), add("fast", {"": 10})
    with open_engine(red_bundle, tune=True) as engine:
        cache.mkdir(parents=True)
        hold = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); print(1, flush=True); input()"
        words = [sys.executable, "-c", hold, str(cache / ".lock")]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            other.stdout.readline()
            check(masks_of(engine))
            assert engine.description == "slow"
            other.communicate(b"\n")
    assert not list(cache.glob("*.json"))


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[]", b"{}", b'{"taken": ["gone", ""], "ms": {}, "left_out": {}}', b"[" * 100_000, b'{"taken": 3}'],
)
def test_a_damaged_choice_is_none(add, red_bundle, cache, content):
    add("slow", {"": 40}), add("fast", {"": 10})
    with open_engine(red_bundle, tune=True) as engine:
        masks_of(engine)
    (kept,) = cache.glob("*.json")
    kept.write_bytes(content)
    with open_engine(red_bundle, tune=True) as engine:
        assert engine.description == "slow"
        check(masks_of(engine))
        assert engine.description == "fast"
    assert json.loads(kept.read_text())["taken"] == ["fast", ""]


def test_a_choice_that_cannot_be_taken_any_more_is_passed_over(add, red_bundle, said):
    add("slow", {"": 40}), add("fast", {"": 10})
    with open_engine(red_bundle, tune=True) as engine:
        masks_of(engine)
    add("fast", {"": 10}, opens=is_not_here)
    with open_engine(red_bundle, tune=True) as engine:
        assert type(engine).__name__ == "slow"
    assert "fast, which was the fastest here, cannot be taken: no such device" in said


def test_a_cache_that_cannot_be_written_costs_time_alone(add, red_bundle, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEMASK_CACHE", str(tmp_path / "file"))
    add("slow", {"": 40}), add("fast", {"": 10})
    for _ in range(2):
        with open_engine(red_bundle, tune=True) as engine:
            check(masks_of(engine))
            assert engine.description == "fast"


def test_the_key_is_of_bundle_machine_versions_and_use(red_bundle, make_bundle, monkeypatch):
    ways = [Way("a"), Way("b", "f32")]

    def key(bundle=red_bundle, ways=ways, overlap=False):
        return Choices(bundle, ways, overlap=overlap).path

    own = key()
    assert key() == own
    other = dataclasses.replace(red_bundle.manifest, files={**red_bundle.manifest.files, PROGRAM_NAME: "other"})
    kept = dataclasses.replace(red_bundle.manifest, layers={"conv": "fp32"})  # beside BF16, in the same program
    bundles = [Bundle(red_bundle.folder, manifest) for manifest in (other, kept)]
    different = [*map(key, bundles), key(ways=ways[:1]), key(overlap=True)]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(77)))
    different.append(key())
    monkeypatch.setattr(choices, "_versions", lambda: {"onnxruntime": "99"})
    different.append(key())
    assert len({own, *different}) == 7


def test_a_driver_is_part_of_the_machine(tmp_path):
    folder = tmp_path / "proc" / "driver" / "nvidia"
    (folder / "gpus" / "0000:01:00.0").mkdir(parents=True)
    (folder / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.1\nGCC version: 12\n")
    (folder / "gpus" / "0000:01:00.0" / "information").write_text("Model: \t RTX\nIRQ: 7\n")
    (tmp_path / "proc" / "cpuinfo").write_text("processor: 0\nmodel name: A\nflags: x\nMHz: 1\nmodel name: A\n")
    found = choices._machine(tmp_path)
    assert found[3:] == [
        "flags: x",
        "model name: A",
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.1",
        "Model: \t RTX",
    ]


def test_a_gpu_is_tried_before_a_choice_without_it(add, red_bundle, monkeypatch, said):
    add("slow", {"": 40}), add("fast", {"": 10})
    with open_engine(red_bundle, tune=True) as engine:
        masks_of(engine)
    asked = []
    monkeypatch.setattr(pipeline.engines, "is_seen", lambda *_: True)
    problem = BackendUnavailableError("no TensorRT")
    monkeypatch.setattr(pipeline.engines, "_open_on_gpu", lambda *_: asked.append(1) or (None, "", [problem]))
    with open_engine(red_bundle, tune=True) as engine:
        assert type(engine).__name__ == "fast"
    assert asked == [1]
    assert "on the CPU: no TensorRT" in said


@pytest.mark.parametrize("count", [8 * trial.SAMPLES + more for more in (0, 1, 2, 3, 5, 7)])
def test_a_run_that_ends_meanwhile_closes_all(add, red_bundle, count):
    made = [add(name, {"": 10}) for name in ("slow", "fast", "third")]
    with open_engine(red_bundle, tune=True) as engine:
        check(masks_of(engine, count))
    assert [one.closed for engines in made for one in engines] == [1] * sum(map(len, made))


def test_samples_are_apart(add, red_bundle):
    add("slow", {"": 40})
    fast = add("fast", {"": 10})
    seen = []
    with open_engine(red_bundle, tune=True) as engine:
        engine._trial = dataclasses.replace(
            engine._trial, open_way=lambda way: seen.append(list(engine._samples)) or fail()
        )

        def fail():
            raise BundleError("no")

        masks_of(engine)
    assert seen == [[number * measured.EVERY for number in range(trial.SAMPLES)]]
    assert not fast


def test_the_reference_of_a_bundle_is_its_program_in_fp32(red_bundle, tmp_path, monkeypatch):
    monkeypatch.undo()
    content = red_bundle.program_path.read_bytes()
    manifest = dataclasses.replace(red_bundle.manifest, precision="int8")
    broken = Bundle.write(tmp_path / "int8", manifest, {PROGRAM_NAME: b"none", "reference.onnx": content})
    with pipeline.engines._open_reference(broken) as engine:
        check([engine(picture(0))])
    with pytest.raises(BundleError):
        pipeline.engines._open_reference(Bundle.write(tmp_path / "old", manifest, {PROGRAM_NAME: b"none"}))


def test_help_waits_for_none_of_it():
    root = Path(__file__).parents[3]
    ask = "import sys, pipeline.command.options; print([n for n in sys.modules if n.startswith('pipeline.engines.') or n == 'numpy'])"
    done = subprocess.run([sys.executable, "-c", ask], cwd=root, capture_output=True, text=True, check=True)
    assert not any(name in done.stdout for name in ("choices", "trial", "measured", "numpy", "openvino"))
