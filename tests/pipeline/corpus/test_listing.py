"""What is in a corpus, and what its results are called."""

import os
import tracemalloc
from pathlib import Path

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


def test_a_pattern_gives_each_picture_once_whatever_links_lead_back(make_files, tmp_path):
    make_files("in/a.png", "in/b/c.png")
    for name in ("one", "two"):  # two of them in a folder are 2 ** 40 paths
        os.symlink(".", tmp_path / "in" / name)
    assert sorted(names(f"{tmp_path}/in/**/*.png")) == [("a", False), ("b/c", False)]


def test_sources_may_lie_in_the_folder_of_the_results_but_not_be_it(make_files, tmp_path):
    make_files("in/a.png", "b.png")
    for spec in (f"{tmp_path}/in/*.png", tmp_path / "in"):
        assert names(spec, tmp_path) == [("a", False)]
    for spec in (f"{tmp_path}/*.png", tmp_path):
        with pytest.raises(SourceError, match=r"expected a folder of its own for the results, got that of the source"):
            names(spec, tmp_path)


def test_links_to_nothing_are_sources_where_they_are_called_so(make_files, tmp_path):
    make_files("a.png")
    os.symlink("itself.png", tmp_path / "itself.png")
    os.symlink("gone.mp4", tmp_path / "was.mp4")
    os.symlink("gone", tmp_path / "was")
    os.mkfifo(tmp_path / "pipe.png")
    listing = Listing(str(tmp_path), "out")
    assert [(one.whole_name, one.is_video) for one in listing] == [
        ("a.png", False),
        ("itself.png", False),
        ("was.mp4", True),
    ]
    assert listing.left_out == 1


def test_no_result_takes_the_name_of_a_folder_of_others(make_files, tmp_path):
    make_files("a.jpg", "a.png/b.jpg", "c.mp4", "c.masks/d.jpg", "e.mp4/f.jpg", "e.avi", "g.mkv/h/i.jpg", "g.jpg")
    assert [name for name, _ in names(tmp_path)] == [
        "a.jpg",
        "a.png/b",
        "c.masks/d",
        "c.mp4",
        "e.avi",
        "e.mp4/f",
        "g.jpg",
        "g.mkv/h/i",
    ]


def test_folders_may_lie_deeper_in_each_other_than_calls(make_files, tmp_path):
    make_files("in/a.png")
    here = os.getcwd()
    os.chdir(tmp_path / "in")
    try:
        for _ in range(1200):
            os.mkdir("d")
            os.chdir("d")
        Path("b.png").touch()
        found = names(tmp_path / "in")
        os.unlink("b.png")
        for _ in range(1200):  # what removes the folders of tests calls itself for each
            os.chdir("..")
            os.rmdir("d")
    finally:
        os.chdir(here)
    assert [name for name, _ in found] == ["a", "d/" * 1200 + "b"]


def test_a_list_may_have_a_mark_of_its_encoding_line_ends_of_windows_and_comments(make_files, tmp_path):
    make_files("a.png", "#b.png", "ü.png")
    (tmp_path / "all.txt").write_bytes(b"\xef\xbb\xbfa.png\r\n\r\n# of 2024\r\n  ./#b.png  \r\n\xc3\xbc.png")
    assert names(tmp_path / "all.txt") == [("a", False), ("#b", False), ("ü", False)]


@pytest.mark.parametrize("content", [b"a.png\0b.png\0", "a.png\r\n".encode("utf-16")])
def test_a_list_that_is_no_lines_of_text_is_told(tmp_path, content):
    (tmp_path / "all.txt").write_bytes(content)
    with pytest.raises(SourceError, match=r"all\.txt: expected a path in each line, in UTF-8, got a NUL"):
        Listing(str(tmp_path / "all.txt"), "out")


def test_two_files_of_a_list_with_one_name_are_told(make_files, tmp_path):
    away = tmp_path / "elsewhere" / "a.png"
    name = str(away).lstrip("/")
    make_files("elsewhere/a.png", f"lists/{name}")
    (tmp_path / "lists" / "all.txt").write_text(f"{name}\n{away}\n")
    with pytest.raises(SourceError, match=f"{away}: expected a path of its own, got one whose result would be that of"):
        Listing(str(tmp_path / "lists" / "all.txt"), "out")


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
