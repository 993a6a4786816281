"""Views through a real GStreamer pipeline."""

import os
import threading
import time

import numpy as np
import pytest

from pipeline.errors import SinkError
from pipeline.sinks import gstreamer, stream
from pipeline.sinks.gstreamer import GStreamerSink

pytestmark = pytest.mark.needs_program("gst-launch-1.0")
WAIT_S = 30  # only a broken test waits so long


@pytest.fixture
def open_pipeline(make_info, renderer, monkeypatch):
    monkeypatch.setattr(stream, "_FIRST_WAIT_S", 0.05)
    sinks = []

    def start(pipeline, **facts):
        sinks.append(GStreamerSink(f"gst:{pipeline}", make_info(**{"fps": 25, **facts}), renderer))
        return sinks[-1]

    yield start
    for sink in sinks:
        sink.discard()


def raw(path, size_hw):
    """The BGR pictures of a file; GStreamer's rows begin at multiples of 4 bytes."""
    height, width = size_hw
    stride = -(-3 * width // 4) * 4
    pictures = np.fromfile(path, np.uint8).reshape(-1, height, stride)
    return pictures[:, :, : 3 * width].reshape(-1, height, width, 3)


@pytest.mark.parametrize("size_hw", [(32, 48), (31, 17)])
def test_every_picture_of_a_file_arrives_as_it_was(open_pipeline, make_frame, tmp_path, size_hw):
    path = tmp_path / "with space.raw"
    sink = open_pipeline(f"video/x-raw,format=BGR ! filesink location='{path}'")
    noise = np.random.default_rng(0)
    images = [noise.integers(0, 255, (*size_hw, 3), np.uint8) for _ in range(30)]
    for index, image in enumerate(images):
        sink.write(make_frame(image, index))
    sink.close()
    sink.close()
    np.testing.assert_array_equal(raw(path, size_hw), images)
    assert (sink.dropped, sink.written) == (0, "")


@pytest.mark.needs_program("ffprobe")
def test_a_muxer_finishes_its_file(open_pipeline, make_frame, tmp_path, read_video):
    sink = open_pipeline(f"x264enc speed-preset=ultrafast ! mp4mux ! filesink location={tmp_path}/out.mp4")
    for index in range(25):
        sink.write(make_frame(np.full((48, 64, 3), 8 * index, np.uint8), index))
    sink.close()
    seen = read_video(tmp_path / "out.mp4")
    assert (len(seen.images), seen.fps) == (25, 25)
    assert [image[20, 20, 1] for image in seen.images] == pytest.approx([8 * index for index in range(25)], abs=4)


def test_views_of_another_size_are_scaled(open_pipeline, make_frame, tmp_path):
    sink = open_pipeline(f"video/x-raw,format=BGR ! filesink location={tmp_path}/out.raw")
    for index, size_hw in enumerate([(32, 48), (64, 96), (10, 10)]):
        sink.write(make_frame(np.full((*size_hw, 3), 50 + index, np.uint8), index))
    sink.close()
    assert [picture[0, 0, 0] for picture in raw(tmp_path / "out.raw", (32, 48))] == [50, 51, 52]


@pytest.mark.parametrize("text", ["gst:", "gst:  "])
def test_no_pipeline(make_info, renderer, text):
    with pytest.raises(SinkError, match="expected a pipeline such as gst:autovideosink, got nothing"):
        GStreamerSink(text, make_info(), renderer)


def test_a_quotation_mark_left_open(make_info, renderer):
    with pytest.raises(SinkError, match=r"got text with a quotation mark left open$"):
        GStreamerSink("gst:filesink location='x", make_info(), renderer)


def test_a_machine_without_gstreamer(make_info, renderer, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        SinkError, match=r"expected gst-launch-1.0 on this machine, got none: install gstreamer1.0-tools$"
    ):
        GStreamerSink("gst:fakesink", make_info(), renderer)


def write_until_refused(sink, make_frame):
    image = np.zeros((32, 48, 3), np.uint8)
    end_s = time.monotonic() + WAIT_S
    while time.monotonic() < end_s:
        try:
            sink.write(make_frame(image))
        except SinkError as error:
            return str(error)
        time.sleep(0.01)
    raise AssertionError("it was not refused")


@pytest.mark.parametrize("live", [False, True])
def test_a_pipeline_that_makes_no_sense_ends_the_output(open_pipeline, make_frame, live):
    sink = open_pipeline("nosuchelement ! fakesink", live=live)
    problem = write_until_refused(sink, make_frame)
    assert problem.startswith("gst:nosuchelement ! fakesink: expected a pipeline of GStreamer, got: WARNING: erroneous")
    assert "\n" not in problem
    sink.close()


def test_a_pipeline_that_fails_ends_a_file(open_pipeline, make_frame, tmp_path):
    sink = open_pipeline(f"filesink location={tmp_path}/no/such/folder")
    assert "ERROR" in write_until_refused(sink, make_frame)


def test_no_shell_reads_the_pipeline(open_pipeline, make_frame, tmp_path):
    sink = open_pipeline(f"fakesink name=$(touch {tmp_path}/a) ; touch {tmp_path}/b")
    write_until_refused(sink, make_frame)
    assert os.listdir(tmp_path) == []


def test_passwords_are_not_said(open_pipeline, make_frame):
    sink = open_pipeline("rtspclientsink location=rtsp://me:hunter2@127.0.0.1:9/live user-pw=hunter2 nosuch=1")
    assert "hunter2" not in write_until_refused(sink, make_frame)


def test_a_live_pipeline_that_ends_is_started_again(open_pipeline, make_frame, tmp_path, said):
    sink = open_pipeline("identity error-after=5 ! fakesink", live=True)
    threads = threading.active_count()
    image = np.zeros((32, 48, 3), np.uint8)
    end_s = time.monotonic() + WAIT_S
    index = 0
    while sum(line.endswith(": sending") for line in said) < 3:
        assert time.monotonic() < end_s, said
        sink.write(make_frame(image, index))
        index += 1
        time.sleep(0.01)
    sink.discard()
    assert threading.active_count() < threads + 1
    assert said[1].startswith("gst:identity error-after=5 ! fakesink: not sent (ERROR")
    assert said[1].endswith("): trying again")


def test_a_live_pipeline_that_takes_nothing_holds_nobody_up(open_pipeline, make_frame, monkeypatch, said):
    monkeypatch.setattr(gstreamer, "_TAKE_WITHIN_S", 0.3)
    sink = open_pipeline("identity sleep-time=100000000 ! fakesink", live=True)
    image = np.zeros((480, 640, 3), np.uint8)
    slowest_s, end_s = 0.0, time.monotonic() + WAIT_S
    index = 0
    while not any("takes nothing" in line for line in said):
        assert time.monotonic() < end_s, said
        start_s = time.monotonic()
        sink.write(make_frame(image, index))
        slowest_s = max(slowest_s, time.monotonic() - start_s)
        index += 1
        time.sleep(0.005)
    assert slowest_s < 0.25
    assert sink.dropped > 0


def test_discard_does_not_wait_for_a_pipeline(open_pipeline, make_frame):
    sink = open_pipeline("identity sleep-time=100000000 ! fakesink")
    sink.write(make_frame(np.zeros((480, 640, 3), np.uint8)))
    start_s = time.monotonic()
    sink.discard()
    assert time.monotonic() - start_s < 5
