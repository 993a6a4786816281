import json
import os
import resource
import subprocess
from collections import deque
from fractions import Fraction

import numpy as np
import pytest

from pipeline.errors import SinkError
from pipeline.sinks import video
from pipeline.sinks.options import SinkOptions
from pipeline.sinks.video import VideoSink
from pipeline.sources import open_source

COLOURS = {
    "red": (0, 0, 255),
    "green": (0, 255, 0),
    "blue": (255, 0, 0),
    "grey": (128, 128, 128),
    "skin": (120, 150, 200),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}


def patches(height, width):
    """Flat upright bars, one for each colour; and the middle of each."""
    image = np.zeros((height, width, 3), np.uint8)
    edges = np.linspace(0, width, len(COLOURS) + 1).astype(int)
    for colour, left, right in zip(COLOURS.values(), edges[:-1], edges[1:], strict=True):
        image[:, left:right] = colour
    return image, {
        name: (height // 2, (left + right) // 2)
        for name, left, right in zip(COLOURS, edges[:-1], edges[1:], strict=True)
    }


@pytest.fixture
def save(tmp_path, make_info, make_frame, renderer):
    """``save("out.mp4", images, fps=25)``: writes a video; gives its path."""

    def write(name, images, pts_s=None, **facts):
        info = make_info(**facts)
        path = tmp_path / name
        sink = VideoSink(str(path), info, renderer)
        for index, image in enumerate(images):
            time_s = pts_s[index] if pts_s else index / float(info.fps or 1)
            sink.write(make_frame(image, index, time_s))
        sink.close()
        assert os.listdir(tmp_path) == [path.name]
        return path

    return write


@pytest.mark.parametrize("suffix", [".mp4", ".m4v", ".mov", ".mkv", ".MP4"])
def test_it_is_what_browsers_play(save, red_images, read_video, suffix):
    seen = read_video(save(f"out{suffix}", red_images))
    assert (seen.codec, seen.pix_fmt, len(seen.images)) == ("h264", "yuv420p", 12)
    assert seen.tags == (1, 1, 1)
    assert seen.color_range == 1


def test_the_index_lies_before_the_pictures(save, red_images):
    content = save("out.mp4", red_images).read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")


# In the smallest the bars are 23 pixels wide, and the codec lets their colours run a little.
@pytest.mark.parametrize(("size_hw", "tolerance"), [((720, 1280), 2), ((480, 640), 2), ((90, 160), 6)])
def test_colours_come_back_as_they_were(save, read_video, size_hw, tolerance):
    image, middles = patches(*size_hw)
    path = save("out.mp4", [image] * 2)
    (ours, _), seen = open_source(str(path)), read_video(path).images[0]
    for name, middle in middles.items():
        np.testing.assert_allclose(ours.image[middle], COLOURS[name], atol=tolerance, err_msg=name)
        np.testing.assert_allclose(seen[middle], COLOURS[name], atol=tolerance, err_msg=name)


@pytest.mark.needs_program("ffprobe")
@pytest.mark.parametrize("size_hw", [(720, 1280), (480, 640)])
def test_ffprobe_sees_bt709_and_the_rate(save, size_hw):
    path = save("out.mp4", [patches(*size_hw)[0]] * 5, fps="30000/1001")
    command = ["ffprobe", "-v", "error", "-show_streams", "-of", "json", str(path)]
    (stream,) = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["streams"]
    expected = {
        "codec_name": "h264",
        "pix_fmt": "yuv420p",
        "color_space": "bt709",
        "color_primaries": "bt709",
        "color_transfer": "bt709",
        "color_range": "tv",
        "avg_frame_rate": "30000/1001",
        "r_frame_rate": "30000/1001",
        "nb_frames": "5",
    }
    assert {name: stream[name] for name in expected} == expected


@pytest.mark.needs_program("ffmpeg")
@pytest.mark.parametrize("size_hw", [(720, 1280), (480, 640)])
def test_ffmpeg_sees_the_colours(save, tmp_path, size_hw):
    image, middles = patches(*size_hw)
    path = save("out.mp4", [image] * 2)
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-frames:v", "1", "-pix_fmt", "bgr24", "-f", "rawvideo", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    seen = np.frombuffer(raw, np.uint8).reshape(*size_hw, 3)
    for name, middle in middles.items():
        np.testing.assert_allclose(seen[middle], COLOURS[name], atol=6, err_msg=name)


@pytest.mark.parametrize("fps", ["24000/1001", "25", "30000/1001", "29.97", "59.94", "1", "1/2"])
def test_the_rate_stays(save, red_images, read_video, fps):
    rate = Fraction(fps)
    seen = read_video(save("out.mp4", red_images, fps=fps, time_base=1 / rate))
    assert seen.fps == rate
    assert seen.pts_s == pytest.approx([float(number / rate) for number in range(12)])
    assert seen.duration_s == pytest.approx(float(12 / rate), rel=1e-3)


@pytest.mark.parametrize(
    "time_base", [Fraction(1, 90_000), Fraction(1, 1000), Fraction(1, 12_800), Fraction(1, 10_000_000)]
)
def test_times_stay_in_any_time_base(save, red_images, read_video, time_base):
    pts_s = [0, 0.04, 0.075, 0.3, 0.301, 0.5, 0.9, 1.0, 1.1, 2.0, 2.5, 3.0]
    assert read_video(save("out.mp4", red_images, pts_s, time_base=time_base)).pts_s == pytest.approx(pts_s, abs=0.001)


def test_time_that_stands_still_or_runs_backward_does_not_end_it(save, red_images, read_video):
    pts_s = [0, 0.04, 0.04, 0.02, 0.12, 0.16, 0.1, 0.24, 0.28, 0.32, 0.36, 0.4]
    seen = read_video(save("out.mp4", red_images, pts_s, time_base=Fraction(1, 1000)))
    assert len(seen.images) == 12
    assert seen.pts_s == sorted(set(seen.pts_s))
    assert seen.pts_s[-1] == pytest.approx(0.4)


def test_pictures_are_shown_for_a_second_each(save, red_images, read_video):
    seen = read_video(save("out.mp4", red_images[:3], fps=None))
    assert seen.pts_s == [0, 1, 2]
    assert seen.duration_s == pytest.approx(3)


def test_a_single_picture_lasts_a_second(save, red_images, read_video):
    assert read_video(save("out.mp4", red_images[:1], fps=None)).duration_s == pytest.approx(1)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (31, 17), (2, 3), (90, 161)])
def test_odd_sizes_are_made_even_by_repeating_the_edge(save, read_video, height, width):
    image = np.full((height, width, 3), (40, 80, 120), np.uint8)
    seen = read_video(save("out.mp4", [image] * 3))
    assert seen.size_hw == (height + height % 2, width + width % 2)
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        np.testing.assert_allclose(seen.images[0][corner], (40, 80, 120), atol=6)


def test_frames_of_other_sizes_are_scaled_into_the_first(save, read_video):
    images = [np.full(shape, 100, np.uint8) for shape in ((32, 48, 3), (31, 17, 3), (100, 200, 3), (32, 48, 3))]
    seen = read_video(save("out.mp4", images))
    assert [image.shape for image in seen.images] == [(32, 48, 3)] * 4
    np.testing.assert_allclose(seen.images[1], 100, atol=4)


@pytest.mark.parametrize("name", ["a b.mp4", "ünï.mp4", "100%03d.mp4", "-dash.mp4", "a:b.mp4", "x" * 251 + ".mp4"])
def test_any_name(save, red_images, read_video, name):
    assert len(read_video(save(name, red_images)).images) == 12


def test_folders_above_are_made_and_relative_names_work(
    tmp_path, monkeypatch, make_info, make_frame, renderer, red_images
):
    monkeypatch.chdir(tmp_path)
    sink = VideoSink("-new/er/out.mp4", make_info(), renderer)
    sink.write(make_frame(red_images[0]))
    sink.close()
    assert os.listdir("-new/er") == ["out.mp4"]
    assert sink.written == "-new/er/out.mp4"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_who_may_read_it_is_the_users_choice(save, red_images, umask, mode):
    before = os.umask(umask)
    try:
        assert save("out.mp4", red_images).stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)


def test_the_file_appears_when_it_is_complete(tmp_path, make_info, make_frame, renderer, red_images, read_video):
    path = tmp_path / "out.mp4"
    path.write_bytes(b"old")
    sink = VideoSink(str(path), make_info(), renderer)
    for index, image in enumerate(red_images):
        sink.write(make_frame(image, index))
        assert path.read_bytes() == b"old"
    sink.close()
    sink.close()
    assert len(read_video(path).images) == 12
    sink.discard()
    assert os.listdir(tmp_path) == ["out.mp4"]


def test_discard_leaves_nothing(tmp_path, make_info, make_frame, renderer, red_images):
    sink = VideoSink(str(tmp_path / "out.mp4"), make_info(), renderer)
    for index, image in enumerate(red_images):
        sink.write(make_frame(image, index))
    sink.discard()
    sink.discard()
    sink.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("end", ["close", "discard"])
def test_without_frames_there_is_no_file(tmp_path, make_info, renderer, end):
    getattr(VideoSink(str(tmp_path / "out.mp4"), make_info(), renderer), end)()
    assert os.listdir(tmp_path) == []


def test_a_closed_output_takes_no_frame(tmp_path, make_info, make_frame, renderer, red_images):
    sink = VideoSink(str(tmp_path / "out.mp4"), make_info(), renderer)
    sink.close()
    with pytest.raises(ValueError, match="the output is closed"):
        sink.write(make_frame(red_images[0]))


def test_the_encoder_is_told_once(tmp_path, make_info, make_frame, renderer, red_images, said):
    sink = VideoSink(str(tmp_path / "out.mp4"), make_info(), renderer, SinkOptions(encoder="x264"))
    for index, image in enumerate(red_images):
        sink.write(make_frame(image, index))
    sink.discard()
    assert said == [f"{tmp_path / 'out.mp4'}: H.264 by the CPU (x264)"]


def test_the_frame_is_not_changed(tmp_path, make_info, make_frame, renderer, red_images):
    frame = make_frame(red_images[5])
    kept = frame.view.copy()
    sink = VideoSink(str(tmp_path / "out.mp4"), make_info(), renderer)
    sink.write(frame)
    sink.discard()
    np.testing.assert_array_equal(frame.view, kept)


def test_below_a_file_nothing_can_be_made(tmp_path, make_info, renderer):
    (tmp_path / "file").touch()
    for name in ("file/out.mp4", "file/deep/out.mp4"):
        with pytest.raises(SinkError, match=rf"{name}: cannot be written \(.*\): choose another --output$"):
            VideoSink(str(tmp_path / name), make_info(), renderer)


@pytest.mark.parametrize("spec", ["/proc/x.mp4", "/proc/deep/x.mp4"])
def test_where_not_even_root_can_write(make_info, renderer, spec):
    with pytest.raises(SinkError, match=rf"^{spec}: cannot be written \(.*\): choose another --output$"):
        VideoSink(spec, make_info(), renderer)


def test_a_name_that_is_too_long_is_said_before_any_work(tmp_path, make_info, renderer):
    with pytest.raises(SinkError, match=r"cannot be written \(File name too long\): choose another --output$"):
        VideoSink(str(tmp_path / ("x" * 300 + ".mp4")), make_info(), renderer)
    assert os.listdir(tmp_path) == []


def test_a_container_that_ffmpeg_does_not_know_leaves_nothing(tmp_path, make_info, renderer):
    with pytest.raises(SinkError, match=r"out.xyz: FFmpeg cannot write it \(.*\): choose another --output$"):
        VideoSink(str(tmp_path / "out.xyz"), make_info(), renderer)
    assert os.listdir(tmp_path) == []


def test_an_ffmpeg_without_the_encoder_says_so(tmp_path, make_info, make_frame, renderer, red_images, monkeypatch):
    sink = VideoSink(str(tmp_path / "out.mp4"), make_info(), renderer)

    class Without:
        def add_stream(self, name, **_):
            raise ValueError(f"unknown encoder {name}")

        def close(self):
            pass

    monkeypatch.setattr(sink._muxer, "_container", Without())
    with pytest.raises(SinkError, match="this FFmpeg has no libx264: pip install av, or write a folder of pictures"):
        sink.write(make_frame(red_images[0]))
    sink.discard()
    assert os.listdir(tmp_path) == []


@pytest.fixture
def full_disk():
    """Files may grow to 64 KiB, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("full_disk")
def test_a_disk_that_fills_up_is_one_sentence_and_leaves_nothing(tmp_path, make_info, make_frame, renderer):
    rng = np.random.default_rng(0)
    frames = [make_frame(rng.integers(0, 256, (128, 128, 3), np.uint8), index) for index in range(200)]
    sink = VideoSink(str(tmp_path / "out.mp4"), make_info(), renderer)
    with pytest.raises(SinkError, match=r"out.mp4: cannot be written \(.*too large.*\)$"):
        deque(map(sink.write, frames), 0)
    sink.discard()
    assert os.listdir(tmp_path) == []


def test_an_error_at_the_very_end_leaves_the_old_file(
    tmp_path, make_info, make_frame, renderer, red_images, monkeypatch
):
    def fail(*_):
        raise OSError(28, "No space left on device")

    path = tmp_path / "out.mp4"
    path.write_bytes(b"old")
    sink = VideoSink(str(path), make_info(), renderer)
    sink.write(make_frame(red_images[0]))
    monkeypatch.setattr(video.os, "replace", fail)
    with pytest.raises(SinkError, match=r"out.mp4: cannot be finished \(no space left on device\)$"):
        sink.close()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out.mp4"]


def test_a_size_that_the_encoder_refuses_is_one_sentence(tmp_path, make_info, make_frame, renderer):
    sink = VideoSink(str(tmp_path / "out.mp4"), make_info(), renderer)
    with pytest.raises(SinkError, match=r"out.mp4: cannot be written \("):
        sink.write(make_frame(np.zeros((2, 20_000, 3), np.uint8)))
    sink.discard()
    assert os.listdir(tmp_path) == []
