"""Videos and streams whose pictures stay on a GPU that is none (``tests.fakes.cuda_decoder``): the same as those of the CPU."""

import gc
import itertools
import weakref
from http.server import BaseHTTPRequestHandler

import av
import numpy as np
import pytest

from pipeline.errors import BackendUnavailableError, ShapeError, SourceError
from pipeline.frames.frame import Frame
from pipeline.frames.on_device import FramesOnDevice
from pipeline.sources import nvdec, open_source, open_sources
from pipeline.sources.base import Source
from pipeline.sources.options import LiveOptions
from tests.fakes import cuda_decoder
from tests.fakes.motion_jpeg import serving

BT709 = {"x264-params": "colormatrix=bt709:colorprim=bt709:transfer=bt709:range=tv"}


@pytest.fixture
def decoder(monkeypatch):
    made = cuda_decoder.CudaDecoder()
    made.install(monkeypatch)
    return made


@pytest.fixture
def clip(tmp_path, write_video, red_images):
    return str(write_video(tmp_path / "clip.mp4", red_images, **BT709))


def read(spec, pixels="nv12", **options):
    with open_source(spec, **options) as source:
        source.pixels = pixels
        return list(source)


def test_frames_lie_on_the_gpu_and_come_down_when_they_are_asked_for(decoder, clip, red_images):
    expected, frames = read(clip), read(clip, decode="cuda")
    assert len(frames) == len(expected) == len(red_images)
    for frame, other in zip(frames, expected, strict=True):
        assert frame.device is not None
        assert (frame.size_hw, frame.size_bytes) == (other.size_hw, other.pixels.nbytes) == ((32, 48), 32 * 48 * 3 // 2)
        assert (frame.index, frame.pts_s, frame.name, frame.shift_s) == (
            *(other.index, other.pts_s, other.name),
            other.shift_s,
        )
        assert repr(frame).endswith("pixels=(48, 48) uint8 on the GPU)")
        assert frame.device is not None, "what was asked for so far needs no copy"
        np.testing.assert_array_equal(frame.pixels, other.pixels)
        assert frame.device is None, "its memory is given back"
        np.testing.assert_array_equal(frame.image, other.image)
    assert decoder.frames == len(red_images) + 1  # and the one that was tried


def test_planes_are_where_the_decoder_says(decoder, clip):
    frame = read(clip, decode="cuda")[3]
    device = frame.device
    assert device.luma.pitch_bytes == device.chroma.pitch_bytes == cuda_decoder.PITCH
    assert [device.luma.address, device.chroma.address] == [plane.buffer_ptr for plane in device.owner.planes]
    assert device.shape == device.placeholder.shape == frame.pixels.shape


def test_the_memory_of_a_picture_is_free_when_its_frame_is_gone_or_has_come_down(decoder, clip):
    frames = read(clip, decode="cuda")
    held = [weakref.ref(frame.device.owner) for frame in frames]
    assert frames[0].pixels.shape == (48, 48)
    del frames[1]
    gc.collect()
    assert [one() is None for one in held] == [True, True] + [False] * 10


def test_an_engine_for_bgr_gets_bgr(decoder, clip):
    for frame, other in zip(read(clip, "bgr", decode="cuda"), read(clip, "bgr"), strict=True):
        assert (frame.format, frame.device) == ("bgr", None)
        np.testing.assert_array_equal(frame.pixels, other.pixels)


@pytest.mark.parametrize(
    ("written", "got"),
    [
        ({"pix_fmt": "yuv444p", **BT709}, r"h264 in yuv444p, which NVDEC does not decode"),
        ({"codec": "ffv1", "pix_fmt": "bgr0"}, r"ffv1 in bgr0, which NVDEC does not decode"),
        ({"pix_fmt": "yuv420p10le", **BT709}, r"h264 in p010le"),
        ({"pix_fmt": "yuvj420p"}, r"pictures in full range"),
        ({}, r"pictures of other colors than BT\.709's"),
        ({"x264-params": "colormatrix=bt709:colorprim=bt2020"}, r"high dynamic range or wide colors"),
        ({"rotation": 90, **BT709}, r"turned or mirrored pictures"),
        ({"x264-params": "colormatrix=bt709:tff=1"}, r"interlaced pictures"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_stay_there_is_refused_at_the_start(decoder, tmp_path, write_video, red_images, written, got):
    try:
        path = write_video(tmp_path / ("a.mkv" if written.get("codec") == "ffv1" else "a.mp4"), red_images, **written)
    except (av.error.FFmpegError, ValueError) as error:
        pytest.skip(f"this PyAV cannot write it: {error}")
    with pytest.raises(SourceError, match=rf"a\.m..: --decode cuda: expected a video that .*, got {got}: leave "):
        open_source(str(path), decode="cuda")


def test_pictures_that_change_later_are_converted_on_the_cpu_and_that_is_told(decoder, clip, said):
    to_device = nvdec.ToDevice("clip", "h264", note=said.append)
    with av.open(clip) as container:
        pictures = list(itertools.islice(container.decode(video=0), 3))
    pictures[1].color_range = 2
    lie = [cuda_decoder.CudaFrame(one, "nv12", cuda_decoder.Placed) for one in pictures]
    assert [to_device(one).device is not None for one in lie] == [True, False, True]
    assert to_device(lie[1]).pixels.any()
    assert said == ["--decode cuda: pictures in full range: converted on the CPU"] * 2


def test_a_stream(decoder, tmp_path, write_video, red_images):
    content = write_video(tmp_path / "a.ts", red_images * 4, **BT709).read_bytes()
    expected = read(str(tmp_path / "a.ts"))

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "video/mp2t")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with serving(Server) as place, open_source(f"http://{place}/a.ts", LiveOptions(), "cuda") as source:
        source.pixels = "nv12"
        frames = list(itertools.islice(source, 10))
    for frame, other in zip(frames, expected[:10], strict=True):
        assert frame.device is not None
        np.testing.assert_array_equal(frame.pixels, other.pixels)


def test_a_stream_that_cannot_stay_there_is_refused_by_its_first_picture(decoder, tmp_path, write_video, red_images):
    content = write_video(tmp_path / "a.ts", red_images * 4, pix_fmt="yuv444p", **BT709).read_bytes()

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    message = r"--decode cuda: expected .*, got h264 in yuv444p, which NVDEC does not"
    with (
        serving(Server) as place,
        open_source(f"http://{place}/", LiveOptions(), "cuda") as source,
        pytest.raises(SourceError, match=message),
    ):
        list(source)


def test_other_sources_are_refused_and_those_before_them_closed(decoder, clip, tmp_path, write_picture, picture_hwc):
    write_picture(tmp_path / "a.png", picture_hwc)
    for spec in ("test://", str(tmp_path / "a.png")):
        with pytest.raises(SourceError, match=r"--decode cuda: expected a video or a stream that FFmpeg decodes, got "):
            open_sources([clip, spec], decode="cuda")


def test_the_gpu_is_taken_once_before_any_engine_and_kept(decoder, clip):
    open_sources([clip, clip], decode="cuda")
    assert len(nvdec._KEPT) == 1
    assert nvdec._KEPT[0] is decoder.made[0]


def test_without_a_gpu_here_by_pyav_itself(clip, monkeypatch):
    monkeypatch.setattr(nvdec, "_KEPT", [])
    nvdec.require_gpu.cache_clear()
    message = (
        r"^--decode cuda: expected an NVIDIA GPU with its driver, and nothing that used it before .*, got none \(.+\): "
    )
    for spec in (clip, "rtsp://127.0.0.1:1/a"):
        with pytest.raises(BackendUnavailableError, match=message):
            open_source(spec, decode="cuda")


def test_a_placeholder_takes_no_memory_and_frames_check_themselves(decoder, clip):
    device = read(clip, decode="cuda")[0].device
    assert device.placeholder.strides == (0, 0)
    with pytest.raises(ShapeError, match=r"expected \(H, W, 3\) uint8, got \(48, 48\) uint8"):
        Frame(device.placeholder, 0, 0.0, "a", "a", "bgr", device=device)
    with pytest.raises(AttributeError, match="no_such_name"):
        read(clip, decode="cuda")[0].no_such_name  # noqa: B018


def test_frames_for_an_engine_are_of_one_size(decoder, clip, tmp_path, write_video):
    other = write_video(tmp_path / "b.mp4", [np.zeros((16, 16, 3), np.uint8)], **BT709)
    small, large = read(str(other), decode="cuda")[0].device, read(clip, decode="cuda")[0].device
    together = FramesOnDevice((large, large))
    assert (together.shape, together.size, together.dtype) == ((2, 48, 48), 2 * 48 * 48, np.uint8)
    for pictures in ((), (small, large)):
        with pytest.raises(ShapeError, match="expected some of one size"):
            FramesOnDevice(pictures)


def test_the_fake_has_only_names_that_pyav_has():
    from av.codec.hwaccel import HWAccel
    from av.video.plane import VideoPlane

    names = {
        av.VideoFrame: (*cuda_decoder._OWN, *cuda_decoder._PASSED_ON),
        VideoPlane: ("buffer_ptr", "line_size"),
        HWAccel: ("create", "is_hw_owned", "options"),
    }
    for kind, used in names.items():
        assert [name for name in used if not hasattr(kind, name)] == []
    assert Source.decode_on_gpu.__doc__
