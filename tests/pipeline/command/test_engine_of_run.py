"""The engine that is opened while the command still imports the rest: which runs have it so, and that it is the one they ask for."""

import gc
import subprocess
import sys
import threading
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from pipeline.__main__ import main
from pipeline.bundles.bundle import PROGRAM_NAME, Bundle
from pipeline.command import engine_of_run
from pipeline.command.engine_of_run import HeadStart, open_for
from pipeline.command.run_options import MaskOptions, ModelOptions, OutputOptions, RunOptions
from pipeline.errors import BundleError
from pipeline.frames.frame import SourceInfo
from tests.conftest import ROOT

NULL = OutputOptions(("null",))


@pytest.fixture
def opened(monkeypatch):
    """The engines that are opened, each with the thread that did so and what it was asked."""
    engines = []
    open_engine = engine_of_run.open_engine

    def note(*arguments, **asked):
        engine = open_engine(*arguments, **asked)
        is_ahead = threading.current_thread() is not threading.main_thread()
        engines.append(SimpleNamespace(engine=engine, is_ahead=is_ahead, overlap=asked["overlap"]))
        return engine

    monkeypatch.setattr(engine_of_run, "open_engine", note)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    return engines


@pytest.fixture
def model(red_bundle):
    return ModelOptions(str(red_bundle.folder), backend="onnxruntime")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.full((8, 8, 3), 90, np.uint8))
    return str(path)


def info(count, *, live=False):
    return SourceInfo("a", "a source", frame_count=count, live=live)


def run_of(options, bundle, *infos):
    """As the command opens it; gives the engine's masks of a frame whose red is 90."""
    with HeadStart(options) as begun, open_for(options, bundle, infos, begun=begun) as engine:
        return engine(np.full((1, 8, 8, 3), 90, np.uint8))


def test_a_picture_has_its_engine_opened_ahead(opened, model, red_bundle, picture):
    masks = run_of(RunOptions((picture,), model, outputs=NULL), red_bundle, info(1))
    assert [(one.is_ahead, one.overlap) for one in opened] == [(True, False)]
    assert (masks == 90).all()


@pytest.mark.parametrize(
    ("source", "options", "found", "overlaps"),
    [
        ("clip.mp4", {}, info(300), [True]),
        ("clip.mp4", {"max_frames": 1}, info(300), [False]),
        ("clip.mp4", {"masks": MaskOptions(fps=25)}, info(300), [False]),
        ("door=rtsp://camera/1", {}, info(None, live=True), [False]),
        ("clip.mp4", {}, info(3), [True, False]),  # shorter than most
        ("{picture}", {}, info(40), [False, True]),  # an animation
    ],
)
def test_what_was_opened_is_taken_if_it_is_what_the_sources_ask_for(
    opened, model, red_bundle, picture, source, options, found, overlaps
):
    asked = RunOptions((source.format(picture=picture),), model, outputs=NULL, **options)
    assert (run_of(asked, red_bundle, found) == 90).all()
    assert [one.overlap for one in opened] == overlaps
    assert [one.is_ahead for one in opened] == [True, False][: len(overlaps)]
    assert all(one.engine._closed for one in opened)


def test_one_that_is_yet_to_find_out_what_is_faster_is_opened_anew(opened, model, red_bundle, monkeypatch):
    monkeypatch.setattr(engine_of_run, "is_undecided", lambda *_, **__: True)
    run_of(RunOptions(("0",), model, outputs=NULL), red_bundle, info(None, live=True))
    assert [one.is_ahead for one in opened] == [True, False]


def test_a_bundle_that_was_replaced_meanwhile_is_opened_anew(opened, model, red_bundle, make_bundle, picture):
    other = make_bundle(model="other")
    run_of(RunOptions((picture,), model, outputs=NULL), other, info(1))
    assert [one.engine.bundle for one in opened] == [red_bundle, other]


def test_one_that_nobody_takes_is_closed(opened, model, picture):
    with pytest.raises(KeyError), HeadStart(RunOptions((picture,), model, outputs=NULL)):
        raise KeyError
    assert [one.engine._closed for one in opened] == [True]
    assert not any(thread.name == "engine" for thread in threading.enumerate())


@pytest.mark.parametrize(
    "change",
    [
        {"outputs": OutputOptions()},  # a run that may be refused
        {"sources": ("gopher://a",)},
        {"model": ModelOptions("unheard-of")},  # it is compiled first
        {"model": ModelOptions("u2netp", backend="triton")},
        {"model": ModelOptions("u2netp", backend="tensorrt")},
        {"model": ModelOptions("u2netp", backend="nonsense")},
    ],
)
def test_others_are_not_begun(opened, model, picture, change):
    with HeadStart(RunOptions(**{"sources": (picture,), "model": model, "outputs": NULL, **change})):
        pass
    assert opened == []


def test_beside_a_gpu_nothing_is_begun(opened, red_bundle, picture, monkeypatch):
    monkeypatch.setattr(engine_of_run, "is_seen", lambda *_: True)
    with HeadStart(RunOptions((picture,), ModelOptions(str(red_bundle.folder)), outputs=NULL)):
        pass
    assert opened == []


def test_what_is_wrong_with_the_model_is_told_once(make_bundle, picture, cli, tmp_path):
    bundle = make_bundle(program=b"no program")
    with pytest.raises(BundleError, match="cannot load it"):
        run_of(RunOptions((picture,), ModelOptions(str(bundle.folder)), outputs=NULL), bundle, info(1))
    (bundle.folder / PROGRAM_NAME).write_bytes(b"changed")
    with pytest.raises(BundleError, match="changed or damaged"):
        Bundle.read(bundle.folder)
    done = cli("pipeline", picture, "--model", bundle.folder, "--output", tmp_path / "out.png")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2
    assert len(errors) == 1
    assert "changed or damaged" in errors[0]


def test_a_source_that_cannot_be_opened_is_told_as_ever(red_bundle, cli):
    done = cli("pipeline", "nowhere.png", "--model", red_bundle.folder, "--output", "null")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, "error: nowhere.png: no such file")


LOADED = """
import sys
from pipeline.__main__ import main
status = main(sys.argv[1:])
print(status, *sorted({name.partition(".")[0] for name in sys.modules} & {"av", "cv2", "onnxruntime", "torch", "onnx"}))
"""


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_pictures_are_read_and_written_without_ffmpeg(red_bundle, tmp_path, suffix):
    """It is a tenth of the time until the first mask."""
    cv2.imwrite(str(tmp_path / f"a{suffix}"), np.full((16, 16, 3), 90, np.uint8))
    arguments = [f"a{suffix}", "--model", str(red_bundle.folder), "--render", "mask", "--output", "mask.png"]
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{LOADED}", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 cv2 onnxruntime"
    assert (cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_UNCHANGED) == 90).all()


def test_a_run_collects_its_garbage(monkeypatch, picture):
    """Not while modules are imported, before it."""
    seen = []
    monkeypatch.setattr("pipeline.command.job.run_job", lambda *_: seen.append(gc.isenabled()))
    assert main([picture, "--output", "null", "--quiet"]) == 0
    assert seen == [True]
    assert main(["--nonsense"]) == 2
    assert gc.isenabled()


def test_a_first_mask_waits_for_no_part_that_its_run_does_not_have(first_frame_of_clip, tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pipeline.__main__ import main; main(sys.argv[1:]); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, *first_frame_of_clip], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    loaded = done.stdout.splitlines()[-1].split()
    assert "pipeline.sources.video" in loaded
    others = (
        "page.server",
        "events",
        "flight.recorder",
        "audit.shadow_gate",
        "results.regions",
        "results.zones",
        "machine.probe",
        "doctor",
    )
    assert not {f"pipeline.{name}" for name in others} & set(loaded)


def test_both_threads_have_numpy_before_they_part(model, picture):
    """Each would wait for the other's turn with Python's lock."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pipeline.__main__ import main\n"
        "from pipeline.command import engine_of_run\n"
        "engine_of_run.Prefetch = lambda *_, **__: (print('numpy' in sys.modules), sys.exit())\n"
        "main()"
    )
    arguments = [picture, "--model", model.name, "--backend", "onnxruntime", "--output", "null"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
