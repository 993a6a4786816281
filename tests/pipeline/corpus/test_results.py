"""Results appear once and whole, whoever else writes them."""

import errno
import os
import threading

import numpy as np
import pytest
from PIL import Image

from pipeline.corpus import results
from pipeline.corpus.results import Parts, publish, read_stamp
from pipeline.errors import SinkError
from pipeline.sinks.pictures import write_picture

OLD, NEW = "edgemask corpus: input=1-1 bundle=a options=b", "edgemask corpus: input=2-2 bundle=a options=b"


@pytest.fixture
def parts(tmp_path):
    with Parts(str(tmp_path / "out")) as opened:
        yield opened


def make_part(parts, target, stamp, level):
    part = parts.new(target)
    if target.suffix == ".masks":
        part.mkdir()
        for number in range(3):
            write_picture(part / f"{number}.png", np.full((4, 5), level, np.uint8), stamp)
    else:
        write_picture(part, np.full((4, 5), level, np.uint8), stamp)
    return part


def level_of(target):
    if target.is_dir():
        levels = {level_of(path) for path in target.iterdir()}
        assert len(list(target.iterdir())) == 3
        assert len(levels) == 1
        return levels.pop()
    with Image.open(target) as picture:
        return picture.getpixel((0, 0))


@pytest.mark.parametrize("name", ["a/b.png", "a/b.masks"])
def test_the_first_writer_wins_and_a_changed_result_is_replaced(parts, tmp_path, name):
    target = tmp_path / "out" / name
    assert publish(make_part(parts, target, OLD, 1), target, OLD)
    assert not publish(make_part(parts, target, OLD, 2), target, OLD)
    assert (level_of(target), read_stamp(target)) == (1, OLD)
    assert publish(make_part(parts, target, NEW, 3), target, NEW)
    assert (level_of(target), read_stamp(target)) == (3, NEW)
    assert list(parts.folder.iterdir()) == []


@pytest.mark.parametrize("name", ["b.png", "b.masks"])
def test_many_writers_at_once_leave_one_whole_result(parts, tmp_path, name):
    target = tmp_path / "out" / name
    made = [make_part(parts, target, OLD, level) for level in range(8)]
    won = []
    threads = [threading.Thread(target=lambda part=part: won.append(publish(part, target, OLD))) for part in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 7 + [True]
    assert level_of(target) in range(8)
    assert list(parts.folder.iterdir()) == []


@pytest.mark.parametrize("name", ["b.png", "b.masks"])
def test_what_no_corpus_has_made_stays(parts, tmp_path, name):
    target = tmp_path / "out" / name
    if name == "b.png":
        write_picture(target, np.zeros((4, 5), np.uint8))
    else:
        target.mkdir()
        (target / "mine.txt").write_text("mine")
    with pytest.raises(SinkError, match=r"b\.(png|masks): expected nothing or a result of an earlier run"):
        publish(make_part(parts, target, OLD, 1), target, OLD)
    assert read_stamp(target) == ""
    assert list(parts.folder.iterdir()) == []


def test_a_disk_without_links_has_whole_results_too(parts, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(results.os, "link", refuse)
    target = tmp_path / "out" / "b.png"
    assert publish(make_part(parts, target, OLD, 1), target, OLD)
    assert not publish(make_part(parts, target, OLD, 2), target, OLD)
    assert level_of(target) == 1


def test_the_stamp_is_an_ordinary_comment(tmp_path):
    write_picture(tmp_path / "a.png", np.zeros((4, 5, 4), np.uint8), OLD)
    with Image.open(tmp_path / "a.png") as picture:
        picture.load()
        assert picture.text == {"Comment": OLD}
    assert read_stamp(tmp_path / "a.png") == OLD
    assert read_stamp(tmp_path / "none.png") is None
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    assert read_stamp(tmp_path / "torn.png") == ""
