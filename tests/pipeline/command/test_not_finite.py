"""Scores that are NaN or infinite, from the engine to whoever should know of them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.bundles.bundle import Manifest
from pipeline.command import not_finite
from pipeline.command.not_finite import AGAIN_MOST_S, AGAIN_S, NotFiniteLines, not_finite_summary
from pipeline.engines import open_engine
from pipeline.flow.inference import infer
from pipeline.flow.run import run
from pipeline.flow.views import Views
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.masks.governor import Governor
from pipeline.render.annotations import Annotations
from pipeline.sinks.base import Sink
from pipeline.sources.base import Source
from pipeline.stages.stage_timer import StageTimer
from pipeline.stages.telemetry import Telemetry

SIZE_HW = (16, 24)


def image(count):
    """(16, 24, 3) with so many pixels of which ``counting_bundle`` says that their scores are not finite."""
    made = np.full((*SIZE_HW, 3), 40, np.uint8)
    made.reshape(-1, 3)[:count, 2] = 255
    return made


def frames(counts, source="camera"):
    return [Frame(image(count), index, index / 25, source, str(index)) for index, count in enumerate(counts)]


class Given(Source):
    def __init__(self, counts, name="camera"):
        self.info, self.counts = SourceInfo(name, ""), counts

    def __iter__(self):
        yield from frames(self.counts, self.info.name)


class Kept(Sink):
    def __init__(self):
        self.frames = []

    def write(self, frame):
        self.frames.append(frame)

    def close(self):
        pass

    def discard(self):
        pass


@pytest.fixture
def engine(counting_bundle):
    with open_engine(counting_bundle, "onnxruntime") as engine:
        yield engine


# --- frames and telemetry


@pytest.mark.parametrize("batch", [1, 3])
def test_each_frame_has_its_own(engine, batch):
    engine.batch = batch
    given = [0, 7, 0, 16 * 24, 1]
    assert [frame.not_finite for frame in infer(frames(given), engine, StageTimer())] == given


def test_a_program_that_does_not_count_says_nothing(red_bundle):
    with open_engine(red_bundle, "onnxruntime") as engine:
        assert [frame.not_finite for frame in infer(frames([0, 7]), engine, StageTimer())] == [0, 0]


def test_a_source_is_told_of_its_frames_alone(engine):
    bad, good, sink = Given([0, 3, 4], "bad"), Given([0, 0], "good"), Kept()
    run([bad, good], engine, Views(lambda image, mask: image), [sink])
    assert (bad.telemetry.snapshot().not_finite, good.telemetry.snapshot().not_finite) == (2, 0)
    assert sorted(frame.not_finite for frame in sink.frames) == [0, 0, 0, 3, 4]


def test_a_mask_that_is_moved_or_kept_is_as_wrong_as_the_one_that_was_computed(engine):
    still = frames([5] * 4) + frames([0] * 3)  # and then another picture
    for frame in still[4:]:
        frame.pixels[:] = 200
    masked = list(Governor(1000, "binary").masked(still, engine, StageTimer()))
    assert [frame.not_finite for frame in masked] == [5, 5, 5, 5, 0, 0, 0]


def test_how_long_every_frame_was_so(monkeypatch):
    now_s = [100.0]
    monkeypatch.setattr("pipeline.stages.telemetry.time", SimpleNamespace(monotonic_ns=lambda: int(now_s[0] * 1e9)))
    telemetry, spans = Telemetry("camera"), []
    for is_bad in (True, False, True, True, True):
        now_s[0] += 4
        telemetry.went_out(1.0, not_finite=is_bad)
        spans.append(telemetry.snapshot().not_finite_s)
    assert spans == [0, None, 0, 4, 8]
    now_s[0] += 60  # no frame comes any more
    assert telemetry.snapshot().not_finite_s == 8
    assert telemetry.snapshot().not_finite == 4


# --- lines


def test_one_line_at_first_and_then_fewer_and_fewer(monkeypatch, said):
    now_s, times = [0.0], []
    monkeypatch.setattr(not_finite, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    lines = NotFiniteLines()
    (bad,), (good,) = frames([3]), frames([0])
    bad.not_finite = 3
    for second in range(8 * int(AGAIN_MOST_S)):
        now_s[0] = float(second)
        lines(bad)
        lines(good)
        times += [now_s[0]] * (len(said) - len(times))
    gaps = np.diff(times)
    assert times[0] == 0
    assert gaps[0] == AGAIN_S
    assert (np.diff(gaps) >= 0).all()
    assert gaps[-1] == AGAIN_MOST_S
    assert all("camera" in line and "3" in line for line in said)


def test_each_source_has_its_first_line(said):
    lines = NotFiniteLines()
    for frame in (*frames([1, 1], "one"), *frames([1, 1], "two")):
        frame.not_finite = 1
        lines(frame)
    assert [("one" in line, "two" in line) for line in said] == [(True, False), (False, True)]


def test_the_summary_names_sources_that_had_some():
    good, bad = Telemetry("good"), Telemetry("bad")
    for is_bad in (True, False, True):
        good.went_out(1.0)
        bad.went_out(1.0, not_finite=is_bad)
    (line,) = not_finite_summary([good.snapshot(), bad.snapshot()])
    assert "bad" in line
    assert "2 of 3" in line


# --- the command


@pytest.fixture
def clip(tmp_path, write_picture):
    """Four pictures, two of which give scores that are not finite."""
    for index, count in enumerate((0, 9, 9, 0)):
        write_picture(tmp_path / "clip" / f"{index}.png", image(count))
    return tmp_path / "clip"


def test_the_command_tells_once_and_in_the_end_also_when_quiet(main, clip, counting_bundle, tmp_path):
    done = main("--source", clip, "--output", tmp_path / "out.jsonl", model=counting_bundle.folder)
    assert done.status == 0
    first, last = [line for line in done.err if line.startswith("warning: ")]
    assert "frame 1: " in first
    assert "got 9 " in first
    assert "in 2 of 4 frames" in last
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line.get("not_finite") for line in lines] == [None, 9, 9, None]


def test_a_run_without_them_is_as_it_was(main, clip, counting_bundle, tmp_path):
    for name in ("1.png", "2.png"):
        (clip / name).unlink()
    done = main("--source", clip, "--output", tmp_path / "out.jsonl", model=counting_bundle.folder, quiet=False)
    assert done.status == 0
    assert not [line for line in done.err if "NaN" in line]
    assert "not_finite" not in (tmp_path / "out.jsonl").read_text()


def test_a_bundle_that_does_not_count_is_told_of(main, clip, red_bundle):
    done = main("--source", clip, "--output", "null", model=red_bundle.folder, quiet=False)
    assert done.status == 0
    assert [line for line in done.err if "does not count" in line]
    assert not [line for line in done.err if line.startswith("warning: ")]


def test_the_hud_has_one_more_line(renderer, monkeypatch):
    drawn = []
    monkeypatch.setattr("pipeline.render.annotations.draw_hud", lambda view, lines: drawn.append(list(lines)))
    manifest = Manifest("x", "binary", ("subject",), (32, 32), "fp32", {}, {}, {}, "")
    annotations = Annotations(manifest, "none", renderer, hud=True, legend=False)
    for count in (0, 12):
        (frame,) = frames([0])
        frame.mask, frame.view, frame.not_finite = np.zeros(SIZE_HW, np.uint8), image(0), count
        annotations(frame, StageTimer())
    before, after = drawn
    assert len(after) == len(before) + 1
    assert "12" in after[-1]
