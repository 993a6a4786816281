"""What one process does with its sources, and what it leaves on the disk."""

import numpy as np
import pytest

from pipeline.command.run_options import LookOptions, ModelOptions, RunOptions
from pipeline.corpus.job import make_job
from pipeline.corpus.listing import Listing
from pipeline.corpus.task import Task
from pipeline.errors import EdgemaskError
from tests.pipeline.corpus.conftest import results


@pytest.mark.parametrize("masks_as", ["png", "video"])
def test_a_video_that_is_cut_off_leaves_nothing(tmp_path, red_bundle, write_video, masks_as):
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(3)
    film = write_video(tmp_path / "in" / "film.mkv", list(rng.integers(0, 256, (9, 64, 96, 3), np.uint8)))
    whole = film.read_bytes()
    film.write_bytes(whole[: len(whole) * 3 // 4])
    options = RunOptions((), ModelOptions(str(red_bundle.folder)), look=LookOptions("mask"))
    job = make_job(options, red_bundle, str(tmp_path / "out"), masks_as)
    finished = []
    with Task(job, lambda: None, lambda: finished.append(True)) as task:
        with pytest.raises(EdgemaskError, match="cut off"):
            task(list(Listing(str(tmp_path / "in"), job.output)), lambda *_: None)
        (mine,) = (tmp_path / "out" / ".edgemask" / "parts").iterdir()
        assert list(mine.iterdir()) == []  # and not only when the process ends, with those of a million others
        assert finished == []
        film.write_bytes(whole)
        task(list(Listing(str(tmp_path / "in"), job.output)), lambda *_: None)
        assert finished == [True]
    assert len(results(tmp_path / "out")) == (1 if masks_as == "video" else 9)
