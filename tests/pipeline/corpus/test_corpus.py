"""``python -m pipeline.corpus``: what comes out, what is not done again, and what has failed."""

import os
import re
import shutil
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.corpus import whole
from pipeline.corpus.results import read_stamp
from pipeline.sources.video import VideoSource
from tests.conftest import write_bundle
from tests.pipeline.corpus.conftest import command, failed, parts, results, started


@pytest.fixture
def no_work(monkeypatch):
    """Nobody may start to work."""

    def crew(*_, **__):
        raise AssertionError("there is nothing to do")

    monkeypatch.setattr(whole, "Crew", crew)


def test_each_source_has_its_result_in_the_same_folder(run_corpus, small_corpus, tmp_path, read_picture):
    done = run_corpus()
    assert done.status == 0
    assert done.lines[0] == "corpus: 7 sources, 0 there already, 7 to do"
    assert done.lines[-2].startswith("7 done, 0 there already, 0 failed; 11 frames in ")
    assert done.lines[-1].startswith("worker: 11 frames, ")
    frames = [f"b/film.masks/film_{index:06d}.png" for index in range(5)]
    assert sorted(results(tmp_path / "results")) == sorted([*(f"{name}.png" for name in small_corpus), *frames])
    for name, picture in small_corpus.items():
        np.testing.assert_array_equal(read_picture(tmp_path / "results" / f"{name}.png"), picture[..., 2])
    for name, frame in zip(frames, VideoSource(str(tmp_path / "in" / "b" / "film.mp4")), strict=True):
        np.testing.assert_array_equal(read_picture(tmp_path / "results" / name), frame.image[..., 2])
    assert parts(tmp_path / "results") == []


def test_what_is_done_is_neither_done_nor_written_again(run_corpus, small_corpus, tmp_path, request):
    run_corpus()
    before = {path: os.stat(path) for path in [tmp_path / "results", *(tmp_path / "results").rglob("*")]}
    request.getfixturevalue("no_work")
    assert run_corpus().lines[0] == "corpus: 7 sources, 7 there already, 0 to do"
    after = {path: os.stat(path) for path in [tmp_path / "results", *(tmp_path / "results").rglob("*")]}
    assert {path: (one.st_ino, one.st_mtime_ns, one.st_ctime_ns) for path, one in before.items()} == {
        path: (one.st_ino, one.st_mtime_ns, one.st_ctime_ns) for path, one in after.items()
    }


@pytest.mark.parametrize("content", ["who failed the exam\n", '{"id": 7, "error": "mine"}\n', "[]", ""])
def test_a_list_of_somebody_else_is_neither_replaced_nor_deleted(run_corpus, small_corpus, tmp_path, content):
    there = tmp_path / "results" / "failed.jsonl"
    there.parent.mkdir()
    there.write_text(content)
    done = run_corpus()
    assert done.status == 2
    assert done.lines[-1:] == [
        f"error: {there}: expected nothing or the list of an earlier run, got something else: choose another --output"
    ]
    assert there.read_text() == content


@pytest.mark.parametrize("way", ["shards", "workers"])
def test_ways_to_share_the_work_give_the_same_bytes(run_corpus, small_corpus, tmp_path, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    run_corpus(source="in")
    if way == "workers":
        run_corpus("--workers", "2", output="other")
    else:
        assert [run_corpus("--shard", f"{index}/2", output="other").status for index in (0, 1)] == [0, 0]
        assert run_corpus("--shard", "1/3", output="third").status == 0
        assert results(tmp_path / "third").items() < results(tmp_path / "results").items()
    assert results(tmp_path / "other") == results(tmp_path / "results")


def test_what_has_changed_is_done_again_and_told(run_corpus, small_corpus, tmp_path, write_picture, read_picture):
    run_corpus()
    first = results(tmp_path / "results")
    write_picture(tmp_path / "in" / "b" / "c.png", small_corpus["b/c"][::-1])
    done = run_corpus()
    assert done.lines[0] == "corpus: 7 sources, 6 there already, 1 to do, 1 of them again, because their input changed"
    assert done.status == 0
    now = results(tmp_path / "results")
    assert {name for name in now if now[name] != first[name]} == {"b/c.png"}
    np.testing.assert_array_equal(read_picture(tmp_path / "results" / "b/c.png"), small_corpus["b/c"][::-1, :, 2])

    other = write_bundle(tmp_path / "other", contract={"name": "another"})
    done = run_corpus(model=other.folder)
    assert done.lines[0].endswith("7 to do, 7 of them again, because their bundle changed")
    done = run_corpus("--render", "side", model=other.folder)
    # The pictures change in their places, and the film becomes another file.
    assert done.lines[0].endswith("7 to do, 6 of them again, because their options changed")
    assert read_picture(tmp_path / "results" / "z.png").shape == (9, 28, 3)
    assert (tmp_path / "results" / "b" / "film.mp4").is_file()
    assert len(list((tmp_path / "results" / "b" / "film.masks").iterdir())) == 5


def test_what_fails_stops_nothing_and_alone_is_tried_again(run_corpus, small_corpus, tmp_path, write_picture):
    (tmp_path / "in" / "b" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    film = (tmp_path / "in" / "b" / "film.mp4").read_bytes()
    (tmp_path / "in" / "cut.mp4").write_bytes(film[: len(film) // 2])
    (tmp_path / "in" / "none.mkv").write_bytes(b"none")
    done = run_corpus()
    assert done.status == 2
    assert done.lines[-1] == (
        f"error: 3 of 10 sources failed, and the others are done: see {tmp_path / 'results' / 'failed.jsonl'}"
    )
    rows = failed(tmp_path / "results")
    assert {name: row["tries"] for name, row in rows.items()} == {"broken.png": 2, "cut.mp4": 2, "none.mkv": 2}
    assert rows["broken.png"]["error"].startswith(f"{tmp_path / 'in' / 'b' / 'broken.png'}: expected a picture")
    assert len(results(tmp_path / "results")) == 11
    assert parts(tmp_path / "results") == []

    write_picture(tmp_path / "in" / "b" / "broken.png", small_corpus["a"])
    done = run_corpus("--shard", "0/1")
    assert done.lines[0] == "corpus: 10 sources, 7 there already, 3 to do"
    assert sorted(failed(tmp_path / "results")) == ["cut.mp4", "none.mkv"]
    for name in ("cut.mp4", "none.mkv"):
        (tmp_path / "in" / name).unlink()
    assert run_corpus().status == 0
    assert not (tmp_path / "results" / "failed.jsonl").exists()


def test_a_shard_leaves_the_failures_of_others(run_corpus, small_corpus, tmp_path):
    for number in range(4):
        (tmp_path / "in" / f"bad{number}.jpg").write_bytes(b"bad")
    statuses = [run_corpus("--shard", f"{index}/2").status for index in (0, 1, 0)]
    assert 2 in statuses
    assert sorted(failed(tmp_path / "results")) == [f"bad{number}.jpg" for number in range(4)]


@pytest.mark.parametrize("name", ["killer.png", "killer.mp4"])
def test_a_source_that_ends_its_process_fails_alone(run_corpus, small_corpus, killing, tmp_path, name):
    shutil.copy(tmp_path / "in" / ("a.png" if name.endswith("png") else "b/film.mp4"), tmp_path / "in" / "b" / name)
    assert run_corpus().status == 2
    assert failed(tmp_path / "results")[name] == {
        "source": str(tmp_path / "in" / "b" / name),
        "error": "its process was ended by SIGSEGV",
        "tries": 2,
    }
    assert len(results(tmp_path / "results")) == 11
    # A picture takes one more: the first time nobody knows which one of its block it was.
    assert len(killing.read_text().splitlines()) == (3 if name.endswith("png") else 2)
    assert parts(tmp_path / "results") == []


def test_a_source_that_hangs_fails_alone(run_corpus, small_corpus, killing, tmp_path):
    shutil.copy(tmp_path / "in" / "b" / "film.mp4", tmp_path / "in" / "b" / "hanger.mp4")
    assert run_corpus("--timeout", "8").status == 2
    assert failed(tmp_path / "results") == {
        "hanger.mp4": {
            "source": str(tmp_path / "in" / "b" / "hanger.mp4"),
            "error": "its process was ended, for no frame came of it for 8 s (--timeout)",
            "tries": 2,
        }
    }
    assert len(results(tmp_path / "results")) == 11
    assert parts(tmp_path / "results") == []


def test_names_that_are_no_text_or_a_terminals_commands(run_corpus, small_corpus, tmp_path):
    folder = os.fsencode(tmp_path / "in")
    shutil.copy(folder + b"/a.png", folder + b"/line\nend \xff.png")
    shutil.copy(folder + b"/b/film.mp4", folder + b"/\xffilm.mp4")
    (tmp_path / "in" / "bad\n\x1b[31m.png").write_bytes(b"none")
    done = run_corpus("--masks-as", "video")
    assert done.status == 2
    (told,) = (line for line in done.lines if line.startswith("failed: "))
    assert told.startswith(f"failed: {tmp_path}/in/bad  [31m.png: expected a picture")
    assert list(failed(tmp_path / "results")) == ["bad\n\x1b[31m.png"]
    made = {os.fsencode(name) for name in results(tmp_path / "results")}
    assert {b"line\nend \xff.png", b"\xffilm.mkv"} < made


def test_a_name_that_the_disk_does_not_take_for_its_result_fails_alone(run_corpus, small_corpus, tmp_path):
    for name in ("p" * 251 + ".png", "p" * 251 + ".jpg"):  # both keep their suffix
        shutil.copy(tmp_path / "in" / "a.png", tmp_path / "in" / name)
    for name in ("v" * 251 + ".mp4", "w" * 246 + ".mp4"):  # that of a folder, and those of the pictures in it
        shutil.copy(tmp_path / "in" / "b" / "film.mp4", tmp_path / "in" / name)
    assert run_corpus().status == 2
    assert len(results(tmp_path / "results")) == 11
    rows = failed(tmp_path / "results")
    assert sorted(name[0] for name in rows) == ["p", "p", "v", "w"]
    assert all("(File name too long)" in row["error"] for row in rows.values())
    assert parts(tmp_path / "results") == []


@pytest.mark.parametrize("kind", ["pipe", "broken link"])
@pytest.mark.parametrize("name", ["a.png", "b/film.mkv"])
def test_what_is_no_file_in_the_place_of_a_result_is_left(run_corpus, small_corpus, tmp_path, no_work, kind, name):
    place = tmp_path / "results" / name
    place.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("nowhere")
    before = os.lstat(place)
    done = run_corpus("--masks-as", "video")
    assert (done.status, len(done.lines)) == (2, 1)
    assert f"{place}: expected nothing or a result of an earlier run, got something else" in done.lines[0]
    assert os.lstat(place) == before


def test_pictures_are_not_done_again_for_what_changes_videos_alone(run_corpus, small_corpus, tmp_path):
    run_corpus()
    assert run_corpus("--masks-as", "video").lines[0] == "corpus: 7 sources, 6 there already, 1 to do"


def test_masks_as_video_are_lossless_and_keep_their_times(run_corpus, tmp_path, write_video, read_video):
    (tmp_path / "in").mkdir()
    pts = [0, 40, 75, 300, 301, 1500]
    frames = list(np.random.default_rng(1).integers(0, 256, (6, 32, 48, 3), np.uint8))
    from fractions import Fraction

    source = write_video(tmp_path / "in" / "film.mkv", frames, pts=pts, time_base=Fraction(1, 1000))
    assert run_corpus("--masks-as", "video").status == 0
    seen = read_video(tmp_path / "results" / "film.mkv")
    assert (seen.codec, seen.pix_fmt) == ("ffv1", "gray")
    assert seen.pts_s == [one / 1000 for one in pts]
    for image, frame in zip(seen.images, VideoSource(str(source)), strict=True):
        np.testing.assert_array_equal(image[..., 0], frame.image[..., 2])
    assert read_stamp(tmp_path / "results" / "film.mkv").startswith("edgemask corpus: input=")
    assert run_corpus("--masks-as", "video").lines[0] == "corpus: 1 sources, 1 there already, 0 to do"


def test_somebody_elses_file_in_the_place_of_a_result_is_left(run_corpus, small_corpus, tmp_path, no_work):
    (tmp_path / "results" / "b").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "results" / "b" / "c.png"), np.zeros((4, 4), np.uint8))
    before = (tmp_path / "results" / "b" / "c.png").read_bytes()
    done = run_corpus()
    assert done.status == 2
    assert done.lines == [
        f"error: {tmp_path / 'results' / 'b' / 'c.png'}: expected nothing or a result of an earlier run, got something else: "
        "choose another --output"
    ]
    assert (tmp_path / "results" / "b" / "c.png").read_bytes() == before


def test_a_model_that_cannot_be_used_ends_the_run(run_corpus, small_corpus, make_bundle):
    broken = make_bundle(program=b"no program")
    done = run_corpus(model=broken.folder)
    assert done.status == 2
    assert "cannot load it" in done.lines[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "triton"], "invalid choice: 'triton' (choose from auto, "),
        (["--shard", "2/2"], "expected I/N with I from 0 to N-1, such as 0/8, got 2/2"),
        (["--on", "slurm"], "expected ray or ray:ADDRESS, such as ray:10.0.0.1:6379, got slurm"),
        (["--workers", "0"], "expected a whole number from 1 to 1024, got 0"),
        (["--shard", "٠/2"], "expected I/N with I from 0 to N-1, such as 0/8, got ٠/2"),
        (["--timeout", "soon"], "expected a whole number from 0 to 1000000, got soon"),
        (["--output", ""], "argument -o/--output: expected a folder, got nothing"),
        (["--masks-as", "gif"], "invalid choice: 'gif' (choose from png, video)"),
    ],
)
def test_wrong_options_are_told(run_corpus, arguments, message):
    done = run_corpus(*arguments)
    assert (done.status, len(done.lines)) == (2, 1)
    assert message in done.lines[0]


def test_nothing_to_do_is_told(run_corpus, tmp_path):
    assert "got nothing of that name" in run_corpus().lines[0]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.md").write_text("none")
    assert "with pictures or videos, got none" in run_corpus().lines[0]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_it_with_what_is_done(small_corpus, tmp_path, red_bundle, number, status):
    process = started(command(tmp_path / "in", tmp_path / "results", red_bundle))
    deadline_s = time.monotonic() + 60
    while not results(tmp_path / "results") and time.monotonic() < deadline_s:
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (status, 0), said  # 0: it was through
    assert "Traceback" not in said
    assert parts(tmp_path / "results") == []


def test_parts_of_killed_processes_are_swept_and_those_of_others_stay(run_corpus, small_corpus, tmp_path):
    import fcntl

    from pipeline.bundles.file_lock import take_lock

    own, old = (tmp_path / "results" / ".edgemask" / "parts" / name for name in ("own", "old"))
    for folder in (own, old):
        folder.mkdir(parents=True)
        Path(folder, "half.png").write_bytes(b"half")
    handle = take_lock(own, fcntl.LOCK_EX)
    run_corpus()
    os.close(handle)
    assert parts(tmp_path / "results") == [own]


def test_a_folder_that_cannot_be_written_ends_the_run_in_one_line(run_corpus, small_corpus, tmp_path):
    (tmp_path / "results").symlink_to("/proc")
    done = run_corpus()
    assert done.status == 2
    assert re.fullmatch(r"error: .*/results: cannot be written \(.*\): choose another --output", done.lines[-1])
