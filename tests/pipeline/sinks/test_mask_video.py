"""Masks as a video, as FFmpeg reads it."""

import json
import subprocess
from fractions import Fraction

import numpy as np
import pytest

from pipeline.errors import SinkError
from pipeline.sinks.mask_video import MaskVideoSink, video_comment
from pipeline.sinks.options import SinkOptions

COMMENT = "edgemask corpus: input=1-2"


@pytest.fixture
def written(tmp_path, make_info, make_frame, renderer):
    """Two files of the same masks, 5 of 31×47 at 12.5 FPS with a pause, and the masks."""
    images = np.random.default_rng(2).integers(0, 256, (5, 31, 47, 3), np.uint8)
    times_s = [0, 0.08, 0.16, 2.5, 2.58]
    paths = [tmp_path / name for name in ("a.mkv", "b.mkv")]
    for path in paths:
        info = make_info(Fraction(25, 2), time_base=Fraction(1, 12_800))
        with MaskVideoSink(str(path), info, renderer, SinkOptions(comment=COMMENT)) as sink:
            for index, (image, pts_s) in enumerate(zip(images, times_s, strict=True)):
                sink.write(make_frame(image, index, pts_s))
        assert sink.written == str(path)
    return paths, images[..., 2], times_s


@pytest.mark.needs_program("ffprobe")
def test_ffmpeg_reads_the_same_masks_at_the_same_times(written):
    (path, _), masks, times_s = written
    raw = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", path, "-f", "rawvideo", "-fps_mode", "passthrough", "-pix_fmt", "gray", "-"],
        capture_output=True,
        check=True,
    ).stdout
    np.testing.assert_array_equal(np.frombuffer(raw, np.uint8).reshape(masks.shape), masks)
    told = subprocess.run(
        ["ffprobe", "-v", "error", "-of", "json", "-show_streams", "-show_format", "-show_frames", path],
        capture_output=True,
        check=True,
    ).stdout
    told = json.loads(told)
    (stream,) = told["streams"]
    assert (stream["codec_name"], stream["pix_fmt"], stream["avg_frame_rate"]) == ("ffv1", "gray", "25/2")
    assert [float(frame["pts_time"]) for frame in told["frames"]] == times_s
    assert {key.lower(): value for key, value in told["format"]["tags"].items()}["comment"] == COMMENT


def test_two_files_of_the_same_masks_are_the_same(written):
    (first, second), _, _ = written
    assert first.read_bytes() == second.read_bytes()
    assert video_comment(first) == COMMENT


def test_masks_of_another_size_are_refused_and_nothing_is_left(tmp_path, make_info, make_frame, renderer):
    def write():
        with MaskVideoSink(str(tmp_path / "a.mkv"), make_info(), renderer) as sink:
            sink.write(make_frame(np.zeros((4, 6, 3), np.uint8), 0))
            sink.write(make_frame(np.zeros((5, 6, 3), np.uint8), 1))

    with pytest.raises(SinkError, match=r"expected masks of one size, 4×6, got 5×6 in frame 1: use --masks-as png"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_video_has_no_comment(tmp_path):
    (tmp_path / "a.mkv").write_bytes(b"none")
    assert video_comment(tmp_path / "a.mkv") == ""
