"""What a video of masks says of itself, and that it is the same each time."""

from fractions import Fraction

import numpy as np
import pytest

from pipeline.corpus.video_comment import video_comment
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.sinks.options import SinkOptions
from pipeline.sinks.video import VideoSink

COMMENT = "edgemask corpus: input=1-2"


@pytest.fixture
def written(tmp_path, make_info, make_frame):
    images = np.random.default_rng(2).integers(0, 256, (5, 31, 47, 3), np.uint8)
    paths = [tmp_path / name for name in ("a.mkv", "b.mkv")]
    for path in paths:
        info = make_info(Fraction(25, 2), time_base=Fraction(1, 12_800))
        with VideoSink(str(path), info, Renderer(Look(mode="mask"), "binary"), SinkOptions(comment=COMMENT)) as sink:
            for index, image in enumerate(images):
                sink.write(make_frame(image, index, index * 0.08))
    return paths


def test_two_files_of_the_same_masks_are_the_same(written):
    first, second = written
    assert first.read_bytes() == second.read_bytes()
    assert video_comment(first) == COMMENT


def test_what_is_no_video_has_no_comment(tmp_path):
    (tmp_path / "a.mkv").write_bytes(b"none")
    assert video_comment(tmp_path / "a.mkv") == ""
