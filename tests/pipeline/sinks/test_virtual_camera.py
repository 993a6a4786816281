"""A virtual camera. There is no v4l2loopback in tests: FFmpeg's own muxer of raw pictures takes the device's place."""

import os
import stat
import types

import av
import numpy as np
import pytest

from pipeline.errors import SinkError
from pipeline.sinks import open_sink, sink_kind, virtual_camera
from pipeline.sources.decoded import ToPixels


@pytest.fixture
def device(tmp_path, monkeypatch):
    """A file that is opened as a device, and what was asked of FFmpeg."""
    path, asked = tmp_path / "video9", []

    def opened(name, mode, format):  # noqa: A002 - PyAV's word
        asked.append((name, mode, format))
        return av.open(name, mode, format="rawvideo")

    real = os.stat
    fake = types.SimpleNamespace(st_mode=stat.S_IFCHR | 0o660)
    path.touch()
    monkeypatch.setattr(
        virtual_camera.os, "stat", lambda place, **more: fake if place == str(path) else real(place, **more)
    )
    monkeypatch.setattr(
        virtual_camera, "av", types.SimpleNamespace(open=opened, VideoStream=av.VideoStream, VideoFrame=av.VideoFrame)
    )
    return path, asked


def pictures(path, height, width):
    raw = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, height * 3 // 2, width)
    return [ToPixels()(av.VideoFrame.from_ndarray(one, format="yuv420p")).pixels for one in raw]


@pytest.mark.parametrize("spec", ["v4l2://{}", "v4l2:{}"])
def test_each_picture_is_written(device, spec, make_info, make_frame, red_images, renderer):
    path, asked = device
    assert sink_kind(spec.format(path)) == "virtual camera"
    with open_sink(spec.format(path), make_info(), renderer) as out:
        for index, image in enumerate(red_images):
            out.write(make_frame(image, index))
    assert asked == [(str(path), "w", "v4l2")]
    height, width = red_images[0].shape[:2]
    seen = pictures(path, height, width)
    assert len(seen) == len(red_images)
    for one, image in zip(seen, red_images, strict=True):
        assert np.abs(one.astype(int) - image).mean() < 6


def test_odd_sizes_are_made_even(device, make_info, make_frame, renderer):
    path, _ = device
    with open_sink(f"v4l2://{path}", make_info(), renderer) as out:
        out.write(make_frame(np.full((35, 51, 3), 90, np.uint8)))
    (seen,) = pictures(path, 36, 52)
    assert np.abs(seen.astype(int) - 90).max() <= 3


def test_another_size_ends_the_device(device, make_info, make_frame, renderer):
    path, _ = device
    out = open_sink(f"v4l2://{path}", make_info(), renderer)
    out.write(make_frame(np.zeros((48, 64, 3), np.uint8)))
    out.write(make_frame(np.zeros((24, 64, 3), np.uint8), 1))
    with pytest.raises(SinkError, match=r"cannot be sent \(the size of the picture has changed\)"):
        out.close()


@pytest.mark.parametrize(
    ("place", "got"), [("absent", "no such file or directory"), ("file", "something that is no device")]
)
def test_what_is_no_device_is_refused(tmp_path, place, got, make_info, renderer):
    (tmp_path / "file").touch()
    with pytest.raises(
        SinkError, match=rf"expected a device that v4l2loopback has made, got {got}: sudo modprobe v4l2loopback"
    ):
        open_sink(f"v4l2://{tmp_path / place}", make_info(), renderer)


def test_a_device_that_takes_no_pictures_is_told(make_info, make_frame, renderer):
    """The real muxer on a real device, which is no camera."""
    out = open_sink("v4l2:///dev/null", make_info(), renderer)
    out.write(make_frame(np.zeros((48, 64, 3), np.uint8)))
    with pytest.raises(SinkError, match=r"v4l2:///dev/null: cannot be sent \(inappropriate ioctl for device\)"):
        out.close()
