"""A window that shows the views while they are made, and its keys."""

from __future__ import annotations

import contextlib
import json
import re
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import cast

import cv2

from pipeline.errors import SinkError
from pipeline.frames.frame import Frame, Image, SourceInfo
from pipeline.render.annotations import Annotations
from pipeline.render.controls import Command, Controls
from pipeline.render.hud import draw_help
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.render.square import squared
from pipeline.sinks import open_sink
from pipeline.sinks.base import Sink
from pipeline.sinks.kinds import SinkKind
from pipeline.sinks.options import DEFAULTS, SinkOptions
from pipeline.sinks.pictures import write_picture
from pipeline.stages.telemetry import State, Telemetry
from pipeline.terminal import logger_of

log = logger_of(__name__)

WINDOW = SinkKind(
    name="window", opens="WindowSink", help="a window, and its keys", order=90, extra="cpu", option="--show"
)

# At start the window is no larger than a small screen, and large enough to be found and to hold the help.
_MIN_WINDOW_WH = 320, 180
_MAX_WINDOW_WH = 1280, 720
# The window systems copy and scale every picture in full, so more pixels than a screen has only cost time.
_MAX_SHOWN_WH = 3840, 2160
_PAUSED_WAIT_MS = 30
_TITLE_EVERY_S = 0.5  # digits that change more often cannot be read
_RED = (0, 0, 255)
_WHITE = (255, 255, 255)
_DIMMED = 0.4
# What tells whether a window is open, with the value from which it is: GTK does not know whether a window is visible.
_OPEN_FROM = ((cv2.WND_PROP_VISIBLE, 1), (cv2.WND_PROP_AUTOSIZE, 0))


class WindowSink(Sink):
    """Shows the views in a window; it has to be written and closed on the main thread.

    A source of a single picture is paused at once, so that the window stays. `Controls` lists the keys. Snapshots and
    recordings go into the current folder, named after the source and the time in UTC.

    Args:
        info: the source.
        renderer: draws again what is shown in a pause; keys change its look.
        annotations: likewise.
        telemetry: the source's; while it does not run, the last view is dimmed, with its state and for how long. None: not shown.
        options: of recordings.
    """

    def __init__(
        self,
        info: SourceInfo,
        renderer: Renderer,
        annotations: Annotations,
        *,
        options: SinkOptions = DEFAULTS,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._options = options
        self._info = info
        self._renderer = renderer
        self._annotations = annotations
        self._controls = Controls(renderer, annotations)
        self._name = f"edgemask {info.name}"
        self._window_wh: tuple[int, int] | None = None  # the size at start; None: there is no window
        self._telling: tuple[int, int] | None = None
        self._title = ""
        self._title_due_s = 0.0
        self._paused = info.frame_count == 1
        self._help = False
        self._fullscreen = False
        self._recording: Sink | None = None
        self._recording_start_s = 0.0
        self._recording_wh = 0, 0
        self._telemetry = telemetry
        self._last: Frame | None = None

    def write(self, frame: Frame) -> None:
        """Show a frame and do what the keys say; returns when the next frame is wanted, so not during a pause.

        Raises:
            SinkError: the window cannot be shown.
        """
        if frame.view is None or frame.mask is None:
            raise ValueError(f"{frame!r} has no mask or view yet")
        self._last = frame
        self._record(frame)
        self._show(frame)
        wait_ms = 1  # as short as possible: files run as fast as they can
        while True:
            command = self._controls.press(cv2.waitKey(wait_ms))
            if command is not None:
                self._obey(command, frame)
            self.stopped = self.stopped or self._was_closed()
            if self.stopped or not self._paused or command is Command.STEP:
                return
            if command is Command.REDRAW:
                frame = self._drawn_again(frame)
            if command is not None:
                self._show(frame)
            wait_ms = _PAUSED_WAIT_MS

    def idle(self) -> None:
        """Do what the keys say, and show how long the source has been away."""
        if self._last is None or self._window_wh is None:
            return
        command = self._controls.press(cv2.waitKey(1))
        if command is not None:
            self._obey(command, self._last)
        if command is Command.REDRAW:
            self._last = self._drawn_again(self._last)
        self.stopped = self.stopped or self._was_closed()
        snapshot = self._telemetry.snapshot() if self._telemetry is not None else None
        if snapshot is None or snapshot.state is State.RUNNING:
            return
        assert self._last.view is not None
        view = cast(Image, cv2.convertScaleAbs(self._last.view, alpha=_DIMMED))
        draw_help(view, [f"{snapshot.state.value} {snapshot.state_s:.0f} s"])
        self._show(replace(self._last, view=view))

    def close(self) -> None:
        """Close the window and finish a recording.

        Raises:
            SinkError: the recording cannot be finished.
        """
        if self._window_wh is not None:
            self._window_wh = None
            with contextlib.suppress(cv2.error):  # Qt's word for a window that the user has closed
                cv2.destroyWindow(self._name)
                cv2.waitKey(1)  # GTK closes it only now
        self._finish_recording()

    def _obey(self, command: Command, frame: Frame) -> None:
        self._title_due_s = 0.0
        match command:
            case Command.QUIT:
                self.stopped = True
            case Command.PAUSE:
                self._paused = not self._paused
            case Command.STEP:
                self._paused = True
            case Command.HELP:
                self._help = not self._help
            case Command.FULLSCREEN:
                self._fullscreen = not self._fullscreen
                mode = cv2.WINDOW_FULLSCREEN if self._fullscreen else cv2.WINDOW_NORMAL
                cv2.setWindowProperty(self._name, cv2.WND_PROP_FULLSCREEN, mode)
            case Command.SNAPSHOT:
                try:
                    log.info(f"snapshot: {write_snapshot(_file_stem(self._info), frame, self._renderer.look)}")
                except SinkError as error:
                    log.info(f"no snapshot: {error}")
            case Command.RECORD:
                self._switch_recording(frame)
            case Command.REDRAW:
                pass  # the next frame is drawn with the setting; only a pause has to draw again

    def _drawn_again(self, frame: Frame) -> Frame:
        """The frame with the view that the settings now give."""
        assert frame.mask is not None
        frame = replace(frame, view=self._renderer(frame.image, frame.mask))
        self._annotations.redraw(frame)
        return frame

    def _show(self, frame: Frame) -> None:
        assert frame.view is not None
        view = squared(_shrunk(frame.view), frame.sample_aspect)
        try:
            if self._window_wh is None:
                self._open_window(view)
            assert self._window_wh is not None
            cv2.imshow(self._name, _padded(self._marked(view), self._window_wh))
            self._update_title()
        except cv2.error as error:
            raise SinkError(f"window: cannot be shown ({' '.join(str(error).split())}): run with --headless") from error
        if self._telling is None:
            self._telling = next((known for known in _OPEN_FROM if self._property(known[0]) >= known[1]), None)

    def _open_window(self, view: Image) -> None:
        cv2.namedWindow(self._name, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        scale = min(1.0, _MAX_WINDOW_WH[0] / view.shape[1], _MAX_WINDOW_WH[1] / view.shape[0])
        self._window_wh = (
            max(_MIN_WINDOW_WH[0], round(view.shape[1] * scale)),
            max(_MIN_WINDOW_WH[1], round(view.shape[0] * scale)),
        )
        cv2.resizeWindow(self._name, *self._window_wh)

    def _marked(self, view: Image) -> Image:
        """The view with the help and the marks of a pause and a recording, which no other output gets."""
        if not (self._help or self._paused or self._recording):
            return view
        view = view.copy()
        size = max(4, min(view.shape[:2]) // 40)
        right, top = view.shape[1] - 2 * size, size
        if self._recording:
            cv2.circle(view, (right, top + size), size, _RED, cv2.FILLED, cv2.LINE_AA)
            right -= 4 * size
        if self._paused:
            for left in (right - size, right + size // 3):
                cv2.rectangle(view, (left, top), (left + size // 2, top + 2 * size), _WHITE, cv2.FILLED)
                cv2.rectangle(view, (left, top), (left + size // 2, top + 2 * size), (0, 0, 0), 1)
        if self._help:
            draw_help(view, self._controls.help_lines())
        return view

    def _update_title(self) -> None:
        now_s = time.monotonic()
        if now_s < self._title_due_s:
            return
        self._title_due_s = now_s + _TITLE_EVERY_S
        look, rate_hz = self._renderer.look, self._annotations.rate_hz(self._info.name)
        parts = [f"{rate_hz:.1f} FPS"] if rate_hz else []  # there is none before the second frame
        parts += [look.mode, f"alpha {look.alpha:.2f}", f"threshold {look.threshold:.2f}"]
        parts += ["paused"] if self._paused else []
        parts += ["recording"] if self._recording else []
        parts += ["stale mask"] if self._last is not None and self._last.stale else []
        title = f"{self._info.name}: {', '.join(parts)} (? for help)"
        if title != self._title:
            self._title = title
            cv2.setWindowTitle(self._name, title)

    def _was_closed(self) -> bool:
        """Whether the user has closed the window; known only since the window system answered that it was open."""
        return self._telling is not None and self._property(self._telling[0]) < self._telling[1]

    def _property(self, number: int) -> float:
        try:
            return cv2.getWindowProperty(self._name, number)
        except cv2.error:  # Qt's answer once its last window is closed
            return -1.0

    def _switch_recording(self, frame: Frame) -> None:
        try:
            if self._recording is not None:
                self._finish_recording()
                return
            recording = open_sink(f"{_file_stem(self._info)}.mp4", self._info, self._renderer, self._options)
        except SinkError as error:
            log.info(f"no recording: {error}")
            return
        assert frame.view is not None
        self._recording, self._recording_start_s = recording, frame.pts_s
        self._recording_wh = frame.view.shape[1], frame.view.shape[0]
        self._record(frame)
        if self._recording is not None:
            log.info(f"recording: {self._recording.written}")

    def _record(self, frame: Frame) -> None:
        """Write a frame to the recording, if there is one; when it cannot be written, only the recording ends."""
        if self._recording is None:
            return
        assert frame.view is not None
        view = _padded(frame.view, self._recording_wh)
        try:
            self._recording.write(replace(frame, view=view, pts_s=frame.pts_s - self._recording_start_s))
        except SinkError as error:
            recording, self._recording = self._recording, None
            recording.discard()
            log.info(f"recording stopped: {error}")

    def _finish_recording(self) -> None:
        if self._recording is not None:
            recording, self._recording = self._recording, None
            recording.close()
            log.info(f"recorded: {recording.written}")


def write_snapshot(stem: str, frame: Frame, look: Look) -> str:
    """Write all that belongs to a frame: ``STEM_raw.png``, ``STEM_overlay.png``, ``STEM_mask.png`` and ``STEM.json``.

    Args:
        stem: path of the files without what distinguishes them.
        frame: with its mask and view; the mask's file holds the mask itself, 8-bit grey.
        look: what the view was drawn with; its numbers go into the JSON file.

    Returns:
        The path of the JSON file, which is written last.

    Raises:
        SinkError: a file cannot be written.
    """
    if frame.view is None or frame.mask is None:
        raise ValueError(f"{frame!r} has no mask or view yet")
    for suffix, picture in (("raw", frame.image), ("overlay", frame.view), ("mask", frame.mask)):
        write_picture(Path(f"{stem}_{suffix}.png"), picture)
    facts = {
        "source": frame.source,
        "index": frame.index,
        "pts_s": frame.pts_s,
        "size_hw": frame.size_hw,
        "mode": look.mode,
        "threshold": look.threshold,
        "alpha": look.alpha,
    }
    path = Path(f"{stem}.json")
    try:
        path.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise SinkError(f"{path}: cannot be written ({error.strerror})") from error
    return str(path)


def _file_stem(info: SourceInfo) -> str:
    """The source's name and the time in UTC to the millisecond, so that no file replaces another."""
    source = re.sub(r"[^\w.-]+", "_", Path(info.name).stem).lstrip(".-")[:40] or "source"
    return f"{source}_{datetime.now(timezone.utc):%Y%m%dT%H%M%S.%f}"[:-3] + "Z"


def _shrunk(view: Image) -> Image:
    scale = min(_MAX_SHOWN_WH[0] / view.shape[1], _MAX_SHOWN_WH[1] / view.shape[0])
    if scale >= 1:
        return view
    size_wh = max(1, round(view.shape[1] * scale)), max(1, round(view.shape[0] * scale))
    return cast(Image, cv2.resize(view, size_wh, interpolation=cv2.INTER_AREA))


def _padded(view: Image, like_wh: tuple[int, int]) -> Image:
    """The view on black, with the proportions of a window or a video.

    Later views may have others than the first (mode "side", a folder of pictures), and would be shown distorted.
    """
    height, width = view.shape[:2]
    rows = max(0, round(width * like_wh[1] / like_wh[0]) - height)
    columns = max(0, round(height * like_wh[0] / like_wh[1]) - width)
    if rows <= 1 and columns <= 1:  # rounding
        return view
    top, left = rows // 2, columns // 2
    return cast(Image, cv2.copyMakeBorder(view, top, rows - top, left, columns - left, cv2.BORDER_CONSTANT))
