import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from pipeline.sinks import display
from pipeline.sinks.display import display_problem

HAS_WINDOWS = not re.search(r"GUI:\s+NONE", cv2.getBuildInformation())


@pytest.fixture(autouse=True)
def some_display(monkeypatch):
    monkeypatch.setenv("DISPLAY", ":77")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)


@pytest.fixture
def with_windows(monkeypatch):
    monkeypatch.setattr(display.cv2, "getBuildInformation", lambda: "  GUI:                           QT5\n")


def interpreter(tmp_path, monkeypatch, script):
    path = tmp_path / "interpreter"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


def test_without_a_display_no_process_is_started(monkeypatch):
    monkeypatch.delenv("DISPLAY")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    assert display_problem() == "DISPLAY and WAYLAND_DISPLAY are not set"
    monkeypatch.setenv("DISPLAY", "")
    assert display_problem() == "DISPLAY and WAYLAND_DISPLAY are not set"


def test_build_without_windows_starts_no_process(monkeypatch):
    monkeypatch.setattr(display.cv2, "getBuildInformation", lambda: "  GUI:                           NONE\n\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    assert display_problem() == "this OpenCV was built without windows: pip install opencv-python"


def test_dead_display_in_a_real_child(with_windows):
    expected = (
        "display :77 does not answer"
        if HAS_WINDOWS
        else "this OpenCV was built without windows: pip install opencv-python"
    )
    assert display_problem() == expected


def test_window_that_opens(with_windows, tmp_path, monkeypatch):
    interpreter(tmp_path, monkeypatch, "exit 0")
    assert display_problem() is None


def test_qt_abort(with_windows, tmp_path, monkeypatch):
    interpreter(tmp_path, monkeypatch, "echo 'qt.qpa.xcb: could not connect to display :77' >&2\nkill -ABRT $$")
    assert display_problem() == "display :77 does not answer"


def test_gtk_without_an_answer(with_windows, tmp_path, monkeypatch):
    message = (
        "cv2.error: OpenCV(4.8.0) window_gtk.cpp:624: error: Can't initialize GTK backend in function 'cvInitSystem'"
    )
    interpreter(tmp_path, monkeypatch, f'echo "Traceback (most recent call last):\n{message}" >&2\nexit 1')
    assert display_problem() == "display :77 does not answer"


def test_wayland_for_an_opencv_that_knows_only_x(with_windows, tmp_path, monkeypatch):
    monkeypatch.delenv("DISPLAY")
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    interpreter(tmp_path, monkeypatch, "echo 'qt.qpa.xcb: could not connect to display ' >&2\nexit 134")
    assert display_problem() == "DISPLAY is not set, and this OpenCV needs an X server"


def test_display_that_swallows_the_connection(with_windows, tmp_path, monkeypatch):
    interpreter(tmp_path, monkeypatch, "exec sleep 60")
    monkeypatch.setattr(display, "_TIMEOUT_S", 0.1)
    assert display_problem() == "display :77 does not answer"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'Traceback (most recent call last):\n  File\nImportError: libGL' >&2; exit 1", "ImportError: libGL"),
        ("echo '\nplugin xcb is broken\nreinstall it' >&2; exit 134", "plugin xcb is broken"),
        ("exit 3", "exit status 3"),
        (f"echo {'long' * 100} >&2; exit 1", "long" * 30),
    ],
)
def test_other_failures_are_quoted(with_windows, tmp_path, monkeypatch, script, reason):
    interpreter(tmp_path, monkeypatch, script)
    assert display_problem() == f"the window system failed: {reason}"


def test_no_interpreter(with_windows, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "absent"))
    assert display_problem() == "the window system failed: No such file or directory"


REAL_WINDOW = """
import threading
import numpy as np
from pipeline.sinks.display import display_problem
assert display_problem() is None, display_problem()
import cv2
from pipeline.render.annotations import Annotations
from pipeline.bundles.bundle import Manifest
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.sinks.window import WindowSink
from pipeline.stages.stage_timer import StageTimer
renderer = Renderer(Look(), "binary")
manifest = Manifest("u2netp", "binary", ("subject",), (32, 32), "fp32", {}, {}, {}, "")
annotations = Annotations(manifest, "none", renderer, hud=True, legend=True)
sink = WindowSink(SourceInfo("clip", ""), renderer, annotations)
image, mask = np.full((240, 320, 3), 90, np.uint8), np.zeros((240, 320), np.uint8)
for index in range(5):
    frame = Frame(image, index, index / 30, "clip", "clip", mask=mask, view=renderer(image, mask))
    annotations(frame, StageTimer())
    sink.write(frame)
    assert not sink.stopped
assert cv2.getWindowImageRect("edgemask clip")[2:] == (320, 240), cv2.getWindowImageRect("edgemask clip")
cv2.destroyWindow("edgemask clip")
assert sink._was_closed()
sink.close()
sink.close()
print("shown")
"""


@pytest.mark.skipif(not HAS_WINDOWS, reason="this OpenCV was built without windows")
@pytest.mark.skipif(shutil.which("Xvfb") is None, reason="Xvfb is not installed")
def test_window_on_a_virtual_screen():
    read, write = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(write), "-screen", "0", "640x480x24"], pass_fds=[write], stderr=subprocess.DEVNULL
    )
    os.close(write)
    try:
        with os.fdopen(read) as answer:
            environment = {**os.environ, "DISPLAY": f":{answer.readline().strip()}"}
        child = subprocess.run(
            [sys.executable, "-c", REAL_WINDOW],
            env=environment,
            cwd=Path(display.__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=30,
        )
    finally:
        server.terminate()
        server.wait()
    assert child.stdout == "shown\n", child.stderr
    assert child.returncode == 0
