"""What is in a corpus, and what its results are called."""

import os
import tracemalloc

import pytest

from pipeline.command.run_options import RunOptions
from pipeline.corpus.job import make_job
from pipeline.corpus.listing import Listing
from pipeline.corpus.shard import WHOLE, Shard
from pipeline.corpus.whole import look_over
from pipeline.errors import SourceError

JPEG = b"\xff\xd8\xff and so on"


@pytest.fixture
def make_files(tmp_path):
    def make(*names, content=b""):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    return make


def names(spec, output="out"):
    return [(entry.name, entry.is_video) for entry in Listing(str(spec), str(output))]


def test_a_folder_gives_all_folders_in_it_but_what_is_hidden_and_the_results(make_files, tmp_path):
    make_files("b.jpg", "a/c.PNG", "a/d.mp4", "a/.e.png", ".f/g.png", "a/labels.npy", "a/notes.md", "out/b.png")
    make_files("a/jpeg", content=JPEG)
    os.symlink(tmp_path, tmp_path / "a" / "loop")
    listing = Listing(str(tmp_path), str(tmp_path / "out"))
    assert [(entry.name, entry.is_video) for entry in listing] == [
        ("a/c", False),
        ("a/d", True),
        ("a/jpeg", False),
        ("b", False),
    ]
    assert listing.left_out == 1
    assert next(entry.path for entry in listing) == str(tmp_path / "a" / "c.PNG")


def test_names_keep_their_suffix_where_they_would_be_the_same(make_files, tmp_path):
    make_files("in/a.jpg", "in/a.png", "in/a.mp4", "in/b.png.jpg", "in/b.png", "in/c/a.png", "in/d.png")
    assert [name for name, _ in names(tmp_path / "in")] == [
        "a.jpg",
        "a.mp4",
        "a.png",
        "b",
        "b.png.jpg",
        "c/a",
        "d",
    ]


def test_a_list_gives_paths_from_its_folder_and_each_once(make_files, tmp_path):
    make_files("lists/in/a.png", "elsewhere/b.mkv")
    (tmp_path / "lists" / "all.txt").write_text(
        f"in/a.png\n\n{tmp_path}/elsewhere/b.mkv\n  ./in/a.png\nnot/there.png\nin/what\n../elsewhere/c.png\n"
    )
    away = str(tmp_path).lstrip("/")
    assert names(tmp_path / "lists" / "all.txt") == [
        ("in/a", False),
        (f"{away}/elsewhere/b", True),
        ("not/there", False),
        ("in/what", True),
        (f"{away}/elsewhere/c", False),
    ]


def test_a_pattern_gives_what_it_matches_but_the_results(make_files, tmp_path):
    make_files("in/a/b.png", "in/a/c/d.png", "in/e.png", "in/a/f.mp4", "in/a/out/b.png")
    found = names(f"{tmp_path}/in/a/**/*.png", tmp_path / "in" / "a" / "out")
    assert sorted(found) == [("b", False), ("c/d", False)]
    assert names(f"{tmp_path}/in/*/*.mp4") == [("a/f", True)]


def test_one_file_is_a_corpus_too(make_files, tmp_path):
    make_files("a.mp4")
    assert names(tmp_path / "a.mp4") == [("a", True)]


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(SourceError, match=r"nowhere: expected a folder, a pattern .* got nothing of that name"):
        Listing(str(tmp_path / "nowhere"), "out")


@pytest.mark.parametrize("count", [2, 7])
def test_shards_have_each_source_once_wherever_it_stands(make_files, tmp_path, count):
    make_files(*(f"in/{number}.png" for number in range(60)))
    keys = [entry.key for entry in Listing(str(tmp_path / "in"), "out")]
    shards = [{key for key in keys if key in Shard(index, count)} for index in range(count)]
    assert sorted(key for shard in shards for key in shard) == sorted(keys)
    assert all(len(shard) > 60 // count // 3 for shard in shards)
    make_files("in/00.png")  # in front of all others
    again = {entry.key for entry in Listing(str(tmp_path / "in"), "out")}
    assert again > set(keys)


def test_twenty_thousand_entries_take_little_memory(tmp_path, red_bundle):
    (tmp_path / "all.txt").write_text(
        "".join(f"some/folder/{number % 100:02d}/{number:06d}.jpg\n" for number in range(20_000))
    )
    job = make_job(RunOptions(()), red_bundle, str(tmp_path / "out"), "png")
    tracemalloc.start()
    survey = look_over(Listing(str(tmp_path / "all.txt"), job.output), job, WHOLE)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(survey.keys) == 20_000
    assert peak_bytes < 20e6
