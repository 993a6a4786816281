"""``--drift``: which runs are watched, and what page and metrics tell of it."""

import json
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.bundles.bundle import DRIFT_NAME, PROGRAM_NAME, Bundle
from pipeline.command.options import parse_options
from pipeline.command.watchers import open_drift
from pipeline.drift.figures import FIGURES, SPREADS
from pipeline.drift.summary import Summary
from pipeline.errors import BundleError, OptionError
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.page.board import Board
from pipeline.page.metrics import Metrics
from pipeline.page.options import Watched
from pipeline.stages.telemetry import Telemetry

CAMERA = SimpleNamespace(info=SourceInfo("camera", "x", live=True))
FILE = SimpleNamespace(info=SourceInfo("file", "x"))


@pytest.fixture
def summary():
    random = np.random.default_rng(0)
    return Summary.of(0.5 + SPREADS * random.normal(0, 1, (32, len(FIGURES))), "frames of yard")


@pytest.fixture
def watch(tmp_path, summary):
    """``watch(options, sources, text)``: the watch on the input of a run with such a bundle, or None."""
    from pipeline.builds.model_name import PUBLISHED

    good = summary.to_json()
    packaged = Bundle.read(PUBLISHED / "u2netp")
    with ExitStack() as stack:

        def watch(options, sources, text=good):
            files = {PROGRAM_NAME: b"x"} | ({} if text is None else {DRIFT_NAME: text.encode()})
            engine = SimpleNamespace(bundle=Bundle.write(tmp_path / "bundle", packaged.manifest, files))
            return open_drift(parse_options(["x", *options]), engine, sources, stack)

        yield watch


def test_cameras_are_watched_and_files_are_not(watch):
    drift = watch([], [CAMERA, FILE])
    drift.written(Frame(np.zeros((8, 8, 3), np.uint8), 0, 0.0, "file", "x"), 0)
    drift.written(Frame(np.zeros((8, 8, 3), np.uint8), 0, 0.0, "camera", "x"), 0)
    assert drift.facts("file") is None
    assert drift.facts("camera")["distance"] > drift.facts("camera")["limit"]
    assert watch([], [FILE]) is None


def test_files_are_watched_where_that_is_asked_for(watch):
    drift = watch(["--drift", "on"], [CAMERA, FILE])
    drift.written(Frame(np.zeros((8, 8, 3), np.uint8), 0, 0.0, "file", "x"), 0)
    assert drift.facts("file") is not None
    assert watch(["--drift", "off"], [CAMERA]) is None


def test_a_bundle_of_old_is_watched_only_where_that_is_asked_for(watch, tmp_path):
    assert watch([], [CAMERA], None) is None
    for options in (["--drift", "on"], ["--drift-frames", str(tmp_path / "far")]):
        with pytest.raises(
            OptionError, match=r"--drift: expected a bundle that knows .* without drift\.json: compile it again"
        ):
            watch(options, [CAMERA], None)


def test_what_cannot_be_is_refused(watch, tmp_path):
    with pytest.raises(BundleError, match=r"drift\.json: expected a summary of frames of format 1"):
        watch([], [CAMERA], "{}")
    with pytest.raises(OptionError, match="--drift-frames: expected --drift on beside it for files"):
        watch(["--drift-frames", str(tmp_path / "far")], [FILE])
    with pytest.raises(OptionError, match="--drift-frames: expected --drift on or auto beside it, got off"):
        parse_options(["x", "--drift", "off", "--drift-frames", "far"])


def test_a_file_of_figures_that_was_changed_is_refused(tmp_path, watch):
    folder = watch([], [CAMERA]) and tmp_path / "bundle"
    (folder / DRIFT_NAME).write_text("{}")
    with pytest.raises(BundleError, match=r"drift\.json: expected sha256"):
        Bundle.read(folder)


def test_yaml_has_them_too(tmp_path):
    (tmp_path / "run.yaml").write_text("source: x\ndrift: off\n")
    options = parse_options(["--config", str(tmp_path / "run.yaml")])
    assert options.drift.when == "off"
    (tmp_path / "run.yaml").write_text("source: x\ndrift: on\ndrift-frames: far\n")
    options = parse_options(["--config", str(tmp_path / "run.yaml")])
    assert (options.drift.when, options.drift.folder) == ("on", "far")
    assert replace(options.drift, folder=None).folder is None


def test_the_page_and_the_metrics_tell():
    facts = {"camera": {"distance": 7.5, "limit": 4.0, "unlike": True}}
    telemetries = {name: Telemetry(name) for name in ("camera", "file")}
    controls = SimpleNamespace(settings=lambda: {"mode": "overlay"}, fixed=dict)
    run = Watched(telemetries, drift=facts.get)
    board = Board(run, controls, read_only=True)
    assert [source["drift"] for source in json.loads(board.text)["sources"]] == [facts["camera"], None]
    text = Metrics(board.snapshots, lambda: 0, run).text().decode()
    assert '\nedgemask_input_distance{source="camera"} 7.5\n' in text
    assert '\nedgemask_input_distance_limit{source="camera"} 4.0\n' in text
    assert 'distance{source="file"}' not in text
    silent = Board(Watched(telemetries), controls, read_only=True)
    assert [source["drift"] for source in json.loads(silent.text)["sources"]] == [None, None]
