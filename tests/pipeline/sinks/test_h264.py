"""Which encoder is taken, on machines with and without one in the GPU."""

import re
import subprocess
from fractions import Fraction

import av
import numpy as np
import pytest

from pipeline.errors import SinkError
from pipeline.frames.frame import SourceInfo
from pipeline.sinks import h264
from pipeline.sinks.h264 import Muxer, choose_encoder, reason


@pytest.fixture(autouse=True)
def _no_trial_is_remembered():
    h264._nvenc_problem.cache_clear()
    yield
    h264._nvenc_problem.cache_clear()


def without(monkeypatch, error):
    class Codecs:
        @staticmethod
        def create(*_):
            raise error

    monkeypatch.setattr(h264.av, "CodecContext", Codecs)


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (av.error.PermissionError(1, "Operation not permitted", "avcodec_open2"), "operation not permitted"),
        (
            av.error.ExternalError(542398533, "Generic error in an external library"),
            "generic error in an external library",
        ),
        (av.codec.codec.UnknownCodecError("h264_nvenc"), "h264_nvenc"),
    ],
)
def test_a_machine_without_nvenc_takes_x264(monkeypatch, error, problem):
    without(monkeypatch, error)
    encoder = choose_encoder("auto", (64, 96), live=True)
    assert (encoder.name, encoder.description) == ("libx264", "H.264 by the CPU (x264)")
    expected = f"^--encoder nvenc: expected a GPU that encodes H.264, got: {problem}: use --encoder auto$"
    with pytest.raises(SinkError, match=expected):
        choose_encoder("nvenc", (64, 96), live=True)


class Trial:
    """An encoder that keeps what it is told."""

    def __init__(self, packets):
        self.packets = packets

    def encode(self, picture):
        return [picture] * self.packets if picture is not None else []


@pytest.mark.parametrize(("packets", "name"), [(1, "h264_nvenc"), (0, "libx264"), (2, "libx264")])
def test_nvenc_is_taken_where_every_picture_comes_out(monkeypatch, packets, name):
    created = []

    class Codecs:
        @staticmethod
        def create(*what):
            assert what == ("h264_nvenc", "w")
            created.append(Trial(packets))
            return created[-1]

    monkeypatch.setattr(h264.av, "CodecContext", Codecs)
    monkeypatch.setattr(h264.av, "VideoCodecContext", Trial)
    for _ in range(3):
        assert choose_encoder("auto", (64, 96), live=True).name == name
    assert len(created) == 1
    assert (created[0].height, created[0].width, created[0].options["zerolatency"]) == (64, 96, "1")
    choose_encoder("x264", (64, 96), live=True)
    choose_encoder("auto", (128, 96), live=True)
    assert len(created) == 2


@pytest.mark.needs_program("ffmpeg")
@pytest.mark.parametrize("settings", ["_NVENC", "_NVENC_LIVE", "_X264", "_X264_LIVE"])
def test_the_encoders_know_their_settings(settings):
    """One that an encoder does not know would be ignored without a word."""
    codec = "h264_nvenc" if "NVENC" in settings else "libx264"
    text = subprocess.run(["ffmpeg", "-h", f"encoder={codec}"], capture_output=True, text=True, check=True).stdout
    if "not recognized" in text:
        pytest.skip(f"this ffmpeg has no {codec}")
    known = set(re.findall(r"^ +-([\w-]+) ", text, re.MULTILINE)) | {"b", "bf"}  # of every encoder
    assert set(getattr(h264, settings)) <= known


def test_a_live_picture_leaves_the_encoder_at_once(tmp_path, monkeypatch):
    info = SourceInfo("cam", "", fps=Fraction(30), live=True)
    muxer = Muxer(f"file:{tmp_path / 'x.mkv'}", info, live=True, options={"flush_packets": "1"})
    came = []
    mux = muxer._container.mux

    class Container:
        add_stream = muxer._container.add_stream
        close = muxer._container.close

        @staticmethod
        def mux(packets):
            came.append([packet.pts for packet in packets])
            mux(packets)

    muxer._container = Container
    for number in range(10):
        muxer.write(np.full((32, 48, 3), 20 * number, np.uint8), number / 30)
    assert [len(packets) for packets in came] == [1] * 10
    muxer.close()


def test_a_reason_has_no_address():
    error = av.error.ConnectionRefusedError(111, "Connection refused", "rtsp://me:hunter2@h/")
    assert reason(error) == "connection refused"
    assert reason(ValueError("No Codec")) == "no codec"
