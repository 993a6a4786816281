import itertools
import math
import re
import threading
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.sources import camera
from pipeline.sources.camera import CameraSource
from pipeline.sources.options import LiveOptions


class Camera:
    """Stands in for cv2.VideoCapture: ``frames`` pictures, then none."""

    opened = True
    frames = 3
    fps = 30.0
    fourcc = "MJPG"
    made = ()

    def __init__(self, target, backend):
        self.asked, self.released, self.given = [("open", target, backend)], 0, 0
        type(self).made = (*type(self).made, self)

    def isOpened(self):
        return self.opened

    def set(self, prop, value):
        self.asked.append((prop, value))
        return True

    def get(self, prop):
        return {cv2.CAP_PROP_FOURCC: float(cv2.VideoWriter.fourcc(*self.fourcc)), cv2.CAP_PROP_FPS: self.fps}[prop]

    def read(self):
        if self.given == self.frames:
            return False, None
        self.given += 1
        return True, np.full((48, 64, 3), self.given, np.uint8)

    def release(self):
        self.released += 1


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """``fake(frames=3, …)``: a camera source on a device that answers so, and its stand-in."""
    device = tmp_path / "video7"
    device.touch()

    def make(live=None, **facts):
        kind = type("Fake", (Camera,), facts)
        monkeypatch.setattr(camera.cv2, "VideoCapture", kind)
        return CameraSource(str(device), live), kind.made[0]

    return make


def test_motion_jpeg_is_asked_for_before_the_first_picture(fake):
    _, device = fake()
    assert (cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG")) in device.asked
    assert (cv2.CAP_PROP_BUFFERSIZE, 1) in device.asked
    assert device.given == 1


def test_the_description_says_what_the_camera_agreed_to(fake):
    source, _ = fake(fourcc="YUYV", fps=29.97002997002997)
    assert source.info.description.endswith("video7, YUYV, 64×48, 29.97 FPS")
    assert source.info.fps == Fraction(30000, 1001)
    assert (source.info.name, source.info.size_hw) == ("video7", (48, 64))
    assert (source.info.live, source.info.frame_count, source.info.paths) == (True, None, ())


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan")])
def test_a_camera_that_names_no_rate(fake, fps):
    assert fake(fps=fps)[0].info.fps is None


@pytest.mark.parametrize("fourcc", ["\0\0\0\0", "\1\2\3\4"])
def test_a_camera_that_names_no_format(fake, fourcc):
    assert "format unknown" in fake(fourcc=fourcc)[0].info.description


def test_frames_come_in_order_from_the_first_with_rising_times(fake):
    source, _ = fake()
    frames = list(itertools.islice(source, 3))
    assert [frame.image[0, 0, 0] for frame in frames] == [1, 2, 3]
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert [frame.name for frame in frames] == ["video7_000000", "video7_000001", "video7_000002"]
    times_s = [frame.pts_s for frame in frames]
    assert times_s[0] == 0
    assert times_s == sorted(times_s)
    assert not np.shares_memory(frames[0].image, frames[1].image)


def opened(fake, **facts):
    return fake(live=LiveOptions(backoff_s=0.001, backoff_max_s=0.01), **facts)


def test_a_camera_that_is_unplugged_is_opened_again_by_its_path_with_its_settings(fake, said):
    source, first = opened(fake, frames=3)
    frames = list(itertools.islice(source, 5))
    assert [frame.image[0, 0, 0] for frame in frames] == [1, 2, 3, 1, 2]
    assert [frame.index for frame in frames] == list(range(5))
    assert said[:2] == ["video7: running", "video7: reconnecting: no picture came: was it unplugged?"]
    _, second = type(first).made[:2]
    assert second.asked == first.asked
    assert first.released >= 1
    source.close()


def test_a_camera_that_is_not_back_yet_is_waited_for(fake, tmp_path, said):
    source, _ = opened(fake, frames=2)
    frames = iter(source)
    list(itertools.islice(frames, 2))
    (tmp_path / "video7").rename(tmp_path / "away")
    threading.Timer(0.3, lambda: (tmp_path / "away").rename(tmp_path / "video7")).start()
    assert next(frames).index == 2
    assert "video7: running again after" in said[-1]
    source.close()


def test_a_camera_that_is_not_there_yet_is_waited_for(monkeypatch, tmp_path, said):
    options = LiveOptions(backoff_s=0.001, backoff_max_s=0.01, refused_s=math.inf)
    monkeypatch.setattr(camera.cv2, "VideoCapture", type("Fake", (Camera,), {}))
    source = CameraSource(str(tmp_path / "video7"), options)
    assert source.info.name == "video7"
    assert source.info.description.endswith("video7, which is not there yet")
    threading.Timer(0.3, (tmp_path / "video7").touch).start()
    assert next(iter(source)).index == 0
    assert re.search("video7: reconnecting: .*no such camera", said[0])
    assert "running again after" in said[-1]
    source.close()


def test_a_device_that_is_no_camera_is_not_waited_for():
    with pytest.raises(SourceError, match=r"^/dev/null: expected a camera, got a device that gives no pictures"):
        CameraSource("/dev/null", LiveOptions(refused_s=math.inf))


def test_a_camera_that_is_only_slow_is_kept(fake, monkeypatch):
    monkeypatch.setattr(camera, "_AT_ONCE_S", 0.0)  # each failed read counts as a time-out of the driver's
    source, first = opened(fake, frames=2)
    frames = iter(source)
    list(itertools.islice(frames, 2))
    threading.Timer(0.1, lambda: setattr(first, "frames", 5)).start()
    assert next(frames).image[0, 0, 0] == 3
    assert len(type(first).made) == 1
    source.close()


def test_a_device_that_is_in_use(fake):
    with pytest.raises(
        SourceError, match=r"video7: expected a camera, got a device that gives no pictures: is another program"
    ):
        fake(opened=False)


def test_a_device_without_pictures_is_given_back(fake):
    with pytest.raises(SourceError, match=r"video7: expected pictures, got none: is another program"):
        fake(frames=0)
    assert camera.cv2.VideoCapture.made[0].released == 1


def test_close_gives_the_device_back(fake):
    source, device = fake()
    with source:
        assert device.released == 0
    assert device.released >= 1
    source.close()


def test_a_number_is_a_device_path(monkeypatch):
    monkeypatch.setattr(camera, "_check_device", lambda device: None)
    monkeypatch.setattr(camera.cv2, "VideoCapture", type("Fake", (Camera,), {}))
    assert CameraSource("2").info.name == "video2"
    assert camera.cv2.VideoCapture.made[0].asked[0] == ("open", "/dev/video2", cv2.CAP_V4L2)


@pytest.mark.parametrize("found", [[], ["video0", "video1"]])
def test_a_missing_device_names_those_there_are(monkeypatch, found):
    monkeypatch.setattr(Path, "glob", lambda *_: [Path("/dev", name) for name in reversed(found)])
    there = "there are /dev/video0, /dev/video1" if found else "this machine has none"
    with pytest.raises(SourceError, match=f"^/dev/video99: no such camera: {there}$"):
        CameraSource("99")


def test_no_permission_says_what_gives_it(monkeypatch, tmp_path):
    monkeypatch.setattr(camera.os, "access", lambda *_: False)
    with pytest.raises(
        SourceError, match=r"no permission: add yourself to its group with: sudo usermod -aG video \$USER$"
    ):
        CameraSource(str(tmp_path))
