import json
import re
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from pipeline.bundles.bundle import Manifest
from pipeline.errors import SinkError
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.render.annotations import Annotations
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.sinks.window import WindowSink
from pipeline.stages.stage_timer import StageTimer
from pipeline.terminal import shown_log

UTC = r"\d{8}T\d{6}\.\d{3}Z"


class Screen:
    """Stands in for OpenCV's window functions."""

    def __init__(self, monkeypatch):
        self.keys = []
        self.shown = []
        self.waits_ms = []
        self.titles = []
        self.properties = {cv2.WND_PROP_VISIBLE: 1.0, cv2.WND_PROP_AUTOSIZE: 0.0}
        self.fullscreen = []
        self.size_wh = None
        self.destroyed = []
        self.on_wait = lambda: None
        for name in ("imshow", "waitKey", "namedWindow", "resizeWindow", "setWindowTitle", "destroyWindow"):
            monkeypatch.setattr(cv2, name, getattr(self, name))
        monkeypatch.setattr(cv2, "getWindowProperty", self.property)
        monkeypatch.setattr(cv2, "setWindowProperty", lambda _, number, value: self.fullscreen.append((number, value)))

    def namedWindow(self, name, flags):
        self.flags = flags

    def resizeWindow(self, name, width, height):
        self.size_wh = width, height

    def setWindowTitle(self, name, title):
        self.titles.append(title)

    def imshow(self, name, picture):
        self.shown.append(picture.copy())

    def waitKey(self, wait_ms):
        self.waits_ms.append(wait_ms)
        self.on_wait()
        if not self.keys:
            if wait_ms > 1:
                pytest.fail("paused with no key left")
            return -1
        key = self.keys.pop(0)
        return ord(key) if isinstance(key, str) else key

    def property(self, name, number):
        value = self.properties[number]
        if isinstance(value, Exception):
            raise value
        return value

    def destroyWindow(self, name):
        self.destroyed.append(name)


@pytest.fixture
def screen(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return Screen(monkeypatch)


class Rig:
    def __init__(self, look=None, size_hw=(90, 160), **info):
        self.size_hw = size_hw
        self.renderer = Renderer(look or Look(), "binary")
        manifest = Manifest("u2netp", "binary", ("subject",), (32, 32), "fp32", {}, {}, {}, "")
        self.annotations = Annotations(manifest, "none", self.renderer, hud=False, legend=False)
        facts = {"fps": Fraction(25), "time_base": Fraction(1, 25), **info}
        self.sink = WindowSink(SourceInfo("my clip.mp4", "", **facts), self.renderer, self.annotations)
        self.index = 0

    def frame(self, size_hw=None):
        height, width = size_hw or self.size_hw
        image = np.full((height, width, 3), 40 + 15 * self.index, np.uint8)
        mask = np.zeros((height, width), np.uint8)
        mask[height // 4 : height // 2, width // 4 : width // 2] = 255
        mask[height // 2 : 3 * height // 4, : width // 2] = 140
        frame = Frame(image, self.index, 10 + self.index / 25, "my clip.mp4", "clip", mask=mask)
        frame.view = self.renderer(image, mask)
        self.annotations(frame, StageTimer())
        self.index += 1
        return frame

    def write(self, count=1, **kinds):
        for _ in range(count):
            frame = self.frame(**kinds)
            self.sink.write(frame)
        return frame


def test_shows_views_with_one_short_wait_each(screen):
    rig = Rig()
    frames = [rig.write() for _ in range(3)]
    assert screen.waits_ms == [1, 1, 1]
    for frame, shown in zip(frames, screen.shown, strict=True):
        np.testing.assert_array_equal(shown, frame.view)
    assert not rig.sink.stopped
    assert rig.sink.written == ""


@pytest.mark.parametrize(
    ("size_hw", "window_wh"),
    [
        ((720, 1280), (1280, 720)),
        ((1440, 2560), (1280, 720)),
        ((1280, 720), (405, 720)),
        ((48, 64), (320, 180)),
        ((480, 640), (640, 480)),
    ],
)
def test_size_at_start(screen, size_hw, window_wh):
    rig = Rig(size_hw=size_hw)
    rig.write(2)
    assert screen.size_wh == window_wh
    assert screen.flags == cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL


def test_views_of_another_shape_keep_their_proportions(screen):
    rig = Rig(size_hw=(180, 320))
    first = rig.write()
    screen.keys = ["m", "m"]
    rig.write(2)
    assert rig.renderer.look.mode == "side"
    side = rig.write()
    assert side.view.shape == (180, 640, 3)
    assert screen.shown[0].shape == first.view.shape
    assert screen.shown[-1].shape == (360, 640, 3)
    np.testing.assert_array_equal(screen.shown[-1][90:270], side.view)
    assert not screen.shown[-1][:90].any()
    rig.renderer.look = Look()
    rig.write(size_hw=(180, 160))
    assert screen.shown[-1].shape == (180, 320, 3)


def test_no_more_pixels_than_a_screen_has(screen):
    rig = Rig(size_hw=(2400, 4800))
    rig.write()
    assert screen.shown[0].shape == (1920, 3840, 3)


def test_title_has_source_rate_and_settings(screen):
    rig = Rig()
    rig.write(5)
    assert len(screen.titles) == 1
    assert screen.titles[0].startswith("my clip.mp4: overlay, alpha 0.50, threshold 0.50 (")
    screen.keys = ["+"]
    rig.write(2)
    assert re.match(r"my clip\.mp4: [\d.]+ FPS, overlay, alpha 0\.55, threshold 0\.50 \(", screen.titles[-1])


@pytest.mark.parametrize("key", ["q", "\x1b"])
def test_quit(screen, key):
    rig = Rig()
    rig.write()
    screen.keys = [key]
    rig.write()
    assert rig.sink.stopped
    assert len(screen.shown) == 2


def test_close_button(screen):
    rig = Rig()
    rig.write()
    assert not rig.sink.stopped
    screen.on_wait = lambda: screen.properties.update({cv2.WND_PROP_VISIBLE: 0.0})
    rig.write()
    assert rig.sink.stopped


def test_close_button_where_qt_forgets_the_window(screen, monkeypatch):
    rig = Rig()
    rig.write()
    gone = cv2.error("NULL guiReceiver (please create a window)")
    screen.on_wait = lambda: screen.properties.update(dict.fromkeys(screen.properties, gone))
    rig.write()
    assert rig.sink.stopped

    def destroy(name):
        raise gone

    monkeypatch.setattr(cv2, "destroyWindow", destroy)
    rig.sink.close()


def test_close_button_where_visibility_is_unknown(screen):
    screen.properties[cv2.WND_PROP_VISIBLE] = -1.0  # GTK
    rig = Rig()
    rig.write(2)
    assert not rig.sink.stopped
    screen.on_wait = lambda: screen.properties.update({cv2.WND_PROP_AUTOSIZE: -1.0})
    rig.write()
    assert rig.sink.stopped


def test_window_system_that_tells_nothing(screen):
    screen.properties = {cv2.WND_PROP_VISIBLE: -1.0, cv2.WND_PROP_AUTOSIZE: -1.0}
    rig = Rig()
    rig.write(2)
    assert not rig.sink.stopped


def unmarked(picture):
    """All but the corner where the marks of pause and recording are."""
    return picture[:, :120]


def test_pause_holds_the_frame_and_redraws_it_with_new_settings(screen):
    rig = Rig()
    screen.keys = [" ", -1, "+", "m", -1, " "]
    frame = rig.frame()
    view = frame.view.copy()
    rig.sink.write(frame)
    assert screen.keys == []
    assert screen.waits_ms[0] == 1
    assert min(screen.waits_ms[1:]) > 1
    first, paused, stronger, as_mask = screen.shown
    np.testing.assert_array_equal(first, view)
    assert not np.array_equal(paused, view)  # the mark
    np.testing.assert_array_equal(unmarked(paused), unmarked(view))
    expected = Renderer(Look(alpha=0.55), "binary")(frame.image, frame.mask)
    np.testing.assert_array_equal(unmarked(stronger), unmarked(expected))
    np.testing.assert_array_equal(unmarked(as_mask)[..., 0], unmarked(frame.mask))
    np.testing.assert_array_equal(frame.view, view)
    assert "paused" in screen.titles[1]
    rig.write()
    assert screen.waits_ms[-1] == 1


def test_a_stale_mask_is_marked_in_the_title_and_the_numbers(screen):
    rig = Rig()
    rig.annotations.hud = True
    frame = rig.frame()
    frame.stale = True
    rig.sink.write(frame)
    assert "stale mask" in screen.titles[-1]
    views = []
    for frame.stale in (True, False, False):
        frame.view = rig.renderer(frame.image, frame.mask)
        rig.annotations.redraw(frame)
        views.append(frame.view)
    assert not np.array_equal(views[0], views[1])
    np.testing.assert_array_equal(views[1], views[2])


def test_redrawn_numbers_are_those_of_the_frame(screen):
    rig = Rig()
    rig.annotations.hud = True
    rig.write(3)
    rate_hz = rig.annotations.rate_hz("my clip.mp4")
    screen.keys = [" ", "+", "-", "h", "h", "q"]
    rig.write()
    shown = screen.shown[-5:]
    np.testing.assert_array_equal(shown[0], shown[2])
    assert not np.array_equal(shown[2], shown[3])
    np.testing.assert_array_equal(shown[2], shown[4])
    assert rig.annotations.rate_hz("my clip.mp4") != rate_hz  # one frame more, however often it was drawn
    assert len(rig.annotations._written_s["my clip.mp4"]) == 4


def test_step(screen):
    rig = Rig()
    screen.keys = [" ", "."]
    rig.write()
    assert screen.keys == []
    screen.keys = [-1, -1, "."]
    rig.write()
    assert screen.keys == []
    screen.keys = [-1, " "]
    rig.write()
    assert not rig.sink.stopped
    rig.write()
    assert screen.waits_ms[-1] == 1


def test_step_while_playing_pauses_at_the_next_frame(screen):
    rig = Rig()
    screen.keys = ["."]
    rig.write()
    screen.keys = [-1, "q"]
    rig.write()
    assert screen.keys == []


@pytest.mark.parametrize("end", ["q", None])
def test_pause_ends_by_key_or_close_button(screen, end):
    rig = Rig()
    screen.keys = [" ", -1, end or -1]
    if end is None:
        screen.on_wait = lambda: len(screen.keys) == 1 and screen.properties.update({cv2.WND_PROP_VISIBLE: 0.0})
    rig.write()
    assert rig.sink.stopped
    assert screen.keys == []


def test_single_picture_stays(screen):
    rig = Rig(fps=None, frame_count=1)
    screen.keys = [-1, -1, "q"]
    rig.write()
    assert screen.keys == []
    assert rig.sink.stopped


def test_snapshot(screen, tmp_path, said):
    rig = Rig(Look(alpha=0.4, threshold=0.3))
    screen.keys = ["s"]
    frame = rig.write()
    written = sorted(path.name for path in tmp_path.iterdir())
    stem = written[0].removesuffix(".json")
    assert re.fullmatch(rf"my_clip_{UTC}", stem)
    assert written == [f"{stem}.json", f"{stem}_mask.png", f"{stem}_overlay.png", f"{stem}_raw.png"]
    np.testing.assert_array_equal(cv2.imread(f"{stem}_raw.png"), frame.image)
    np.testing.assert_array_equal(cv2.imread(f"{stem}_overlay.png"), frame.view)
    np.testing.assert_array_equal(cv2.imread(f"{stem}_mask.png", cv2.IMREAD_UNCHANGED), frame.mask)
    assert json.loads((tmp_path / f"{stem}.json").read_text()) == {
        "source": "my clip.mp4",
        "index": 0,
        "pts_s": 10.0,
        "size_hw": [90, 160],
        "mode": "overlay",
        "threshold": 0.3,
        "alpha": 0.4,
    }
    assert said == [f"snapshot: {stem}.json"]


def test_snapshot_in_a_pause_has_the_settings_of_the_pause(screen, tmp_path):
    rig = Rig()
    screen.keys = [" ", "m", "s", "q"]
    frame = rig.write()
    facts = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert facts["mode"] == "mask"
    np.testing.assert_array_equal(cv2.imread(str(next(tmp_path.glob("*_overlay.png"))))[..., 0], frame.mask)


def test_snapshot_that_cannot_be_written_is_said(screen, tmp_path, said):
    rig = Rig()
    rig.write()
    tmp_path.rename(tmp_path.with_name("renamed"))
    (tmp_path.with_name("renamed")).rmdir()
    screen.keys = ["s"]
    rig.write()
    assert not rig.sink.stopped
    assert re.match(rf"no snapshot: my_clip_{UTC}_raw\.png: cannot be written \(No such file", said[0])


def read_video(path):
    with av.open(path) as container:
        return [(float(frame.time), frame.to_ndarray(format="bgr24")) for frame in container.decode(video=0)]


def test_recording(screen, tmp_path, said):
    rig = Rig()
    rig.write(2)
    screen.keys = ["r"]
    frames = [rig.write(), rig.write(), rig.write()]
    assert list(tmp_path.glob("my_clip*")) == []  # it appears when it is complete
    assert "recording" in screen.titles[-1]
    screen.keys = ["r"]
    frames.append(rig.write())
    rig.write()
    (path,) = tmp_path.iterdir()
    assert re.fullmatch(rf"my_clip_{UTC}\.mp4", path.name)
    # The first line is the output's own, of its encoder.
    assert said[1:] == [f"recording: {path.name}", f"recorded: {path.name}"]
    video = read_video(str(path))
    assert [time_s for time_s, _ in video] == pytest.approx([0, 0.04, 0.08, 0.12])
    for (_, picture), frame in zip(video, frames, strict=True):
        np.testing.assert_allclose(picture, frame.view, atol=24)  # H.264, colour at half the size
        assert abs(picture.mean() - frame.view.mean()) < 5  # the next frame is 15 brighter
    assert not np.array_equal(screen.shown[3], frames[1].view)  # the mark is on the screen alone


def test_recording_is_finished_by_close(screen, tmp_path):
    rig = Rig()
    screen.keys = ["r", "q"]
    rig.write(2)
    rig.sink.close()
    rig.sink.close()
    (path,) = tmp_path.iterdir()
    assert len(read_video(str(path))) == 2
    assert screen.destroyed == ["edgemask my clip.mp4"]


def test_recording_is_kept_by_discard(screen, tmp_path):
    rig = Rig()
    screen.keys = ["r"]
    rig.write(2)
    rig.sink.discard()
    (path,) = tmp_path.iterdir()
    assert len(read_video(str(path))) == 2


def test_recording_keeps_proportions_when_the_mode_changes(screen, tmp_path):
    rig = Rig()
    screen.keys = ["r", "m", "m"]
    rig.write(3)
    assert rig.renderer.look.mode == "side"
    rig.write()
    rig.sink.close()
    (path,) = tmp_path.iterdir()
    last = read_video(str(path))[-1][1]
    assert last.shape == (90, 160, 3)
    assert last[:16].mean() < 10
    assert last[30:60].mean() > 60


def test_recording_that_cannot_be_written_ends_alone(screen, tmp_path, monkeypatch, said):
    rig = Rig()
    screen.keys = ["r"]
    rig.write()

    def full(*_):
        raise SinkError("out.mp4: cannot be written (no space left on device)")

    monkeypatch.setattr(rig.sink._recording, "write", full)
    rig.write(2)
    assert said[-1:] == ["recording stopped: out.mp4: cannot be written (no space left on device)"]
    assert not rig.sink.stopped
    assert list(tmp_path.iterdir()) == []


def test_recording_of_a_camera_grows_in_place(screen, tmp_path, said):
    rig = Rig(live=True)
    screen.keys = ["r"]
    rig.write(14)
    (path,) = tmp_path.iterdir()
    assert said[-1:] == [f"recording: {path.name}"]
    with av.open(str(path)) as container:  # what a kill would leave
        assert len(list(container.decode(video=0))) >= 5
    rig.sink.close()
    assert said[-1:] == [f"recorded: {path.name}"]


def test_recording_that_cannot_be_opened_is_said(screen, monkeypatch, said):
    def refused(*_):
        raise SinkError("out.mp4: cannot be written (Permission denied): choose another --output")

    monkeypatch.setattr("pipeline.sinks.window.open_sink", refused)
    rig = Rig()
    screen.keys = ["r"]
    rig.write(2)
    assert said == ["no recording: out.mp4: cannot be written (Permission denied): choose another --output"]


def test_help_is_drawn_on_the_screen_alone(screen):
    rig = Rig()
    screen.keys = ["?"]
    rig.write()
    frame = rig.frame()
    view = frame.view.copy()
    rig.sink.write(frame)
    np.testing.assert_array_equal(frame.view, view)
    assert not np.array_equal(screen.shown[1], view)
    screen.keys = ["?"]
    rig.write()
    frame = rig.write()
    np.testing.assert_array_equal(screen.shown[-1], frame.view)


def test_full_screen_and_back(screen):
    rig = Rig()
    screen.keys = ["f", "f"]
    rig.write(2)
    number = cv2.WND_PROP_FULLSCREEN
    assert screen.fullscreen == [(number, cv2.WINDOW_FULLSCREEN), (number, cv2.WINDOW_NORMAL)]


def test_frame_without_view_is_a_bug(screen):
    rig = Rig()
    frame = rig.frame()
    frame.view = None
    with pytest.raises(ValueError, match="has no mask or view yet"):
        rig.sink.write(frame)


def test_window_that_cannot_be_shown(screen, monkeypatch):
    def refuse(*_):
        raise cv2.error("OpenCV: The function is not\n implemented.")

    monkeypatch.setattr(cv2, "namedWindow", refuse)
    rig = Rig()
    with pytest.raises(SinkError, match=r"window: cannot be shown .*function is not implemented.*run with --headless"):
        rig.write()
    rig.sink.close()
    assert screen.destroyed == []


def test_a_command_shows_it_on_stderr(screen, capsys):
    rig = Rig()
    sink = WindowSink(SourceInfo("clip", ""), rig.renderer, rig.annotations)
    screen.keys = ["s"]
    with shown_log():
        sink.write(rig.frame())
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"snapshot: clip_{UTC}\.json\n", err)


def test_names_that_are_no_file_names(screen, tmp_path, said):
    rig = Rig()
    for name in ("../.hidden/..", "a b:c*?.mp4", "ü" * 300, ""):
        sink = WindowSink(SourceInfo(name, ""), rig.renderer, rig.annotations)
        screen.keys = ["s"]
        sink.write(rig.frame())
    assert all(line.startswith("snapshot: ") for line in said)
    assert len(list(tmp_path.iterdir())) == 16
