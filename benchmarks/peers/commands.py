"""Ours, as a command and in a process; and rembg, as a command and in a process. All write PNG files, or ours a video."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.peers.runs import Clock, Job, Run, children_cpu_s, run_of_files
from benchmarks.shared.passes import alone_hz
from pipeline.engines import open_engine
from pipeline.engines.base import Engine
from pipeline.errors import BackendUnavailableError
from pipeline.flow.events import Events
from pipeline.flow.run import run
from pipeline.flow.views import Views
from pipeline.frames.frame import Frame, Image
from pipeline.frames.pixels import frames_shape
from pipeline.own_process import module_command
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.sinks import open_sink
from pipeline.sources import open_source

INSTALL = "pip install 'edgemask[peers]'"


def our_command(job: Job, folder: Path, render: str) -> Run:
    """``python -m pipeline``, which writes a picture for each frame."""
    command = [*module_command("pipeline"), "--source", str(job.clip), "--model", str(job.bundle.folder)]
    command += ["--backend", job.backend, "--render", render, "--output", f"{folder}{os.sep}", "--quiet"]
    start_s, start_cpu_s = time.perf_counter(), children_cpu_s()
    _call([*command, "--max-frames", str(job.frames)])
    return run_of_files(start_s, time.perf_counter(), folder, job.frames, children_cpu_s() - start_cpu_s)


def our_run(job: Job, folder: Path, render: str, output: str) -> Run:
    """The pipeline in this process, from opening the video to closing what is written; the engine is there already."""
    with open_engine(job.bundle, job.backend, overlap=True) as engine:
        return run_with(engine, job, folder, render, output)


def run_with(engine: Engine, job: Job, folder: Path, render: str, output: str) -> Run:
    """The same with an engine that is not closed here."""
    masks: list[Image] = []
    renderer = Renderer(Look(render), "binary")
    (grey,) = np.full(frames_shape(engine.pixels, 1, job.size_hw), 128, np.uint8)
    alone_hz(engine, [grey], engine.in_flight + 1)  # all that may be in flight is there, and on a GPU recorded
    clock = Clock()
    with open_source(str(job.clip)) as source:
        sink = open_sink(str(folder / output) + (os.sep if not Path(output).suffix else ""), source.info, renderer)
        try:
            views = Views(renderer, refine=lambda frame: None if frame.mask is None else masks.append(frame.mask))
            run(source, engine, views, [sink], events=_Ticks(clock), max_frames=job.frames)
            sink.close()
        except BaseException:
            sink.discard()
            raise
    return clock.run(masks, folder / output if (folder / output).is_dir() else folder)


class _Ticks(Events):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def written(self, frame: Frame, dropped: int) -> None:
        self._clock.tick()


def rembg_command(job: Job, folder: Path, options: Sequence[str]) -> Run:
    """``rembg b``: raw frames from FFmpeg through a pipe, a picture for each frame."""
    program = _rembg_program()
    if program is None:
        raise BackendUnavailableError(f"rembg is not here: {INSTALL}")
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise BackendUnavailableError("ffmpeg, which feeds it, is not here: install FFmpeg's programs")
    height, width = job.size_hw
    raw = ["-an", "-frames:v", str(job.frames), "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
    command = [
        program,
        "b",
        "-m",
        job.network.stem,
        *options,
        "-o",
        f"{folder}{os.sep}%06d.png",
        str(width),
        str(height),
    ]
    start_s, start_cpu_s = time.perf_counter(), children_cpu_s()
    decoder = subprocess.Popen(
        [ffmpeg, "-nostdin", "-v", "error", "-i", str(job.clip), *raw], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    try:
        _call(command, stdin=decoder.stdout, home=job.home)
    finally:
        if decoder.stdout is not None:
            decoder.stdout.close()  # ends it where its reader has failed
        decoder.wait()
    return run_of_files(start_s, time.perf_counter(), folder, job.frames, children_cpu_s() - start_cpu_s)


def rembg_loop(job: Job, folder: Path) -> Run:
    """``rembg.remove(…, only_mask=True)`` on each picture that OpenCV reads; a PNG file for each, as ``rembg b`` writes them."""
    with _home(job.home):
        rembg, pillow = _rembg(), importlib.import_module("PIL.Image")
        session = rembg.new_session(job.network.stem)
    remove = partial(rembg.remove, session=session, only_mask=True)
    remove(pillow.fromarray(np.zeros((*job.size_hw, 3), np.uint8)))
    masks: list[Image] = []
    clock = Clock()
    capture = cv2.VideoCapture(str(job.clip))
    for index in range(job.frames):
        read, image = capture.read()
        if not read:
            break
        mask = remove(pillow.fromarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)))
        mask.save(folder / f"{index:06d}.png", format="PNG")
        clock.tick()
        masks.append(np.asarray(mask, np.uint8))
    capture.release()
    return clock.run(masks, folder)


def _rembg_program() -> str | None:
    """Where it is: installed beside this Python, for another one's may be another version."""
    return shutil.which("rembg", path=str(Path(sys.executable).parent))


def _rembg() -> Any:
    try:
        return importlib.import_module("rembg")
    except (ImportError, SystemExit) as error:  # it leaves where its own ONNX Runtime is missing
        raise BackendUnavailableError(f"rembg is not here ({error}): {INSTALL}") from error


def _call(command: Sequence[str], *, stdin: Any = subprocess.DEVNULL, home: Path | None = None) -> None:
    environment = {**os.environ, "DISPLAY": ""}
    if home is not None:
        environment["U2NET_HOME"] = str(home)
    # Its output is a pipe: rembg refuses to run where it is a file.
    done = subprocess.run(command, stdin=stdin, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise BackendUnavailableError(f"{Path(command[0]).name}: expected it to run, got {said[0][-200:]}")


@contextmanager
def _home(folder: Path) -> Iterator[None]:
    before = os.environ.get("U2NET_HOME")
    os.environ["U2NET_HOME"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["U2NET_HOME"]
        else:
            os.environ["U2NET_HOME"] = before


OURS: dict[str, tuple[str, Callable[[Job, Path], Run]]] = {
    # key: (what the table calls it, how it runs)
    "command_masks": ("masks, a command", partial(our_command, render="mask")),
    "command_cutouts": ("cut-outs, a command", partial(our_command, render="cutout")),
    "masks": ("masks, in a process", partial(our_run, render="mask", output="masks")),
    "video": ("video, in a process", partial(our_run, render="overlay", output="video.mp4")),
}
"""Ours, once for each kind of output that others are compared in."""
