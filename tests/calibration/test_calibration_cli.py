"""``python -m calibration`` as people use it; in this process, except where the process is what is tested."""

import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest

from calibration import __main__ as command
from calibration.sets.calibration_set import read_set
from pipeline.errors import SourceError
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.sources.base import Source

ROOT = Path(__file__).parents[2]
SIZE_HW = (48, 64)
WAIT_S = 60  # only a broken test waits so long


@pytest.fixture
def main(capsys):
    def run(*arguments):
        status = command.main([*map(str, arguments)])
        out, err = capsys.readouterr()
        return SimpleNamespace(status=status, out=out, err=err)

    return run


def blocks(number):
    grid = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    return cv2.resize(grid, SIZE_HW[::-1], interpolation=cv2.INTER_CUBIC)


def moving(number, step):
    return np.roll(blocks(number), step * 2, axis=1)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A video of six scenes of twelve frames with hard cuts; scene 2 comes again at the end."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"preset": "ultrafast"})
        stream.height, stream.width = SIZE_HW
        stream.pix_fmt = "yuv420p"
        for number, step in itertools.product((0, 1, 2, 3, 4, 5, 2), range(12)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moving(number, step), format="bgr24")))
        container.mux(stream.encode(None))
    return path


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


# What comes out


def test_a_video_with_cuts_has_no_scene_in_both_splits(main, film, tmp_path):
    done = main("--source", film, "--output", tmp_path / "set", "--count", "24", "--verify-share", "0.3")
    assert done.status == 0, done.err
    shown = {"calibration": set(), "verification": set()}
    for entry in manifest_of(tmp_path / "set")["files"]:
        shown[entry["split"]].add((0, 1, 2, 3, 4, 5, 2)[entry["index"] // 12])
    assert shown["calibration"]
    assert shown["verification"]
    assert not shown["calibration"] & shown["verification"]
    assert shown["calibration"] | shown["verification"] == set(range(6))
    assert "84 frames read" in done.out
    assert "24 chosen from 6 scenes" in done.out
    assert done.out.endswith(f"{tmp_path / 'set' / 'contact_sheet.png'}\n")
    assert cv2.imread(str(tmp_path / "set" / "contact_sheet.png")).shape[1] == 1920
    assert os.listdir(tmp_path) == ["set"]


def test_the_manifest_says_what_was_asked_and_seen(main, film, tmp_path):
    assert main("-s", film, "-o", tmp_path / "set", "--count", "10", "--max-frames", "40", "-q").status == 0
    manifest = manifest_of(tmp_path / "set")
    assert manifest["source"]["name"] == "film.mp4"
    assert manifest["count"] == len(manifest["files"]) == 10
    assert manifest["read"]["frames"] == 40
    assert manifest["sha256"] == read_set(tmp_path / "set").sha256


def test_quiet_says_only_where_the_sheet_is(main, film, tmp_path):
    done = main("-s", film, "-o", tmp_path / "set", "--count", "10", "--quiet")
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines() == [str(tmp_path / "set" / "contact_sheet.png")]


def test_two_runs_make_the_same_set(main, film, tmp_path):
    for name in ("one", "two"):
        assert main("-s", film, "-o", tmp_path / name, "--count", "16").status == 0
    one, two = manifest_of(tmp_path / "one"), manifest_of(tmp_path / "two")
    assert one["files"] == two["files"]
    assert one["sha256"] == two["sha256"]
    assert (tmp_path / "one" / "contact_sheet.png").read_bytes() == (
        tmp_path / "two" / "contact_sheet.png"
    ).read_bytes()


def test_the_sample_clip_and_pictures(main, tmp_path):
    done = main("-s", ROOT / "samples" / "clip.mp4", "-o", tmp_path / "clip", "--count", "8", "--max-frames", "150")
    assert done.status == 0
    by_split = {entry["split"]: entry["index"] >= 125 for entry in manifest_of(tmp_path / "clip")["files"]}
    assert by_split["calibration"] != by_split["verification"]
    done = main("-s", ROOT / "samples" / "pictures", "-o", tmp_path / "pictures")
    assert done.status == 0
    assert "4 chosen from 4 scenes" in done.out


def test_one_scene_is_told_in_one_line(main, tmp_path):
    done = main("-s", "test://?size=160x120&frames=100", "-o", tmp_path / "set", "--count", "20")
    assert done.status == 0
    assert done.err.count("one scene only: its end is set apart") == 1
    assert manifest_of(tmp_path / "set")["split_by"] == "time"


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: -s/--source, -o/--output"),
        (("-s", "test://"), "required: -o/--output"),
        (("-s", "test://", "-o", ""), "expected a folder, got nothing"),
        (("-s", "test://", "-o", "x", "--count", "1"), "--count: expected a whole number from 2 to 2048, got 1"),
        (("-s", "test://", "-o", "x", "--count", "9e9"), "--count: expected a whole number from 2 to 2048, got 9e9"),
        (("-s", "test://", "-o", "x", "--max-frames", "0"), "--max-frames: expected a whole number from 1, got 0"),
        (
            ("-s", "test://", "-o", "x", "--verify-share", "0"),
            "--verify-share: expected a number above 0, at most 0.5, got 0",
        ),
        (("-s", "test://", "-o", "x", "--verify-share", "nan"), "at most 0.5, got nan"),
        (("-s", "none.mp4", "-o", "x"), "none.mp4: no such file"),
        (("-s", "", "-o", "x"), "--source: expected a camera"),
    ],
)
def test_a_wrong_option_is_one_line(main, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = main(*arguments)
    assert done.status == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert done.out == ""
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            [np.zeros((9, 9, 3), np.uint8)] * 3,
            "got 0 of 3 read (0 near-duplicates, 3 of one color): is the lens covered?",
        ),
        ([blocks(1)], "expected at least 2 frames that differ, got 1 of 1 read"),
        ([blocks(1)] * 4, "got 1 of 4 read (3 near-duplicates, 0 of one color): give more scenes"),
    ],
)
def test_pictures_that_make_no_set_leave_nothing(main, tmp_path, images, message):
    (tmp_path / "pictures").mkdir()
    for number, image in enumerate(images):
        cv2.imwrite(str(tmp_path / "pictures" / f"{number}.png"), image)
    done = main("-s", tmp_path / "pictures", "-o", tmp_path / "set", "-q")
    assert done.status == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert os.listdir(tmp_path) == ["pictures"]


def test_a_damaged_picture_leaves_nothing(main, tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        cv2.imwrite(str(tmp_path / "pictures" / f"{number}.png"), blocks(number))
    (tmp_path / "pictures" / "3.png").write_bytes(b"no picture")
    done = main("-s", tmp_path / "pictures", "-o", tmp_path / "set", "-q")
    assert done.status == 2
    assert "3.png: expected a picture, got a file that is none" in done.err
    assert os.listdir(tmp_path) == ["pictures"]


def test_a_set_is_no_source_but_its_pictures_are(main, film, tmp_path):
    assert main("-s", film, "-o", tmp_path / "set", "--count", "12", "-q").status == 0
    done = main("-s", tmp_path / "set", "-o", tmp_path / "other", "-q")
    assert done.status == 2
    assert f"got a calibration set with its contact sheet: give {tmp_path / 'set' / 'calibration'}" in done.err
    assert main("-s", tmp_path / "set" / "calibration", "-o", tmp_path / "other", "-q").status == 0


def test_a_disk_that_fills_up_is_one_line(film, tmp_path):
    def small_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    line = [sys.executable, "-m", "calibration", "-s", film, "-o", tmp_path / "set", "--quiet"]
    done = subprocess.run(line, cwd=ROOT, preexec_fn=small_files, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert (
        done.stderr
        == f"error: {tmp_path / 'set'}: cannot be written (File too large): make room, or choose another --output\n"
    )
    assert os.listdir(tmp_path) == []


# Cameras and signals


class Camera(Source):
    """Shows a new scene every ten frames, without end; ``at`` frame 95 something happens."""

    def __init__(self, at):
        self.info = SourceInfo(name="camera", description="pretended", fps=Fraction(25), live=True)
        self._at = at

    def __iter__(self):
        for index in itertools.count():
            if index == 95:
                self._at()
            time.sleep(0.001)  # a camera has a rate
            yield Frame(moving(index // 10, index % 10), index, index / 25, "camera", f"{index}")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_recording_that_is_stopped_makes_its_set(main, tmp_path, monkeypatch, number, status):
    monkeypatch.setattr(command, "open_source", lambda _: Camera(lambda: os.kill(os.getpid(), number)))
    done = main("-s", "0", "-o", tmp_path / "set", "--count", "12")
    assert done.status == status
    assert "Ctrl-C ends the recording" in done.err
    assert "12 chosen" in done.out
    assert len(read_set(tmp_path / "set").entries) == 12
    assert os.listdir(tmp_path) == ["set"]


def test_a_camera_that_hangs_does_not_keep_it_from_ending(main, tmp_path, monkeypatch):
    class Hanging(Camera):
        left = threading.Event()

        def __iter__(self):
            for frame in super().__iter__():
                if frame.index == 90:
                    os.kill(os.getpid(), signal.SIGINT)
                    assert self.left.wait(WAIT_S)
                    return
                yield frame

        def close(self):
            self.left.set()

    monkeypatch.setattr(command, "open_source", lambda _: Hanging(lambda: None))
    assert main("-s", "0", "-o", tmp_path / "set", "--count", "12", "-q").status == 130
    assert not [thread for thread in threading.enumerate() if thread.name == "decode"]
    assert len(read_set(tmp_path / "set").entries) == 12


def test_a_camera_that_is_unplugged_leaves_its_set_and_is_told(main, tmp_path, monkeypatch):
    def unplug():
        raise SourceError("camera: was it unplugged?")

    monkeypatch.setattr(command, "open_source", lambda _: Camera(unplug))
    done = main("-s", "0", "-o", tmp_path / "set", "--count", "12", "-q")
    assert (done.status, done.err) == (2, "error: camera: was it unplugged?\n")
    assert len(read_set(tmp_path / "set").entries) == 12


def test_a_camera_is_watched_for_ten_minutes(main, tmp_path, monkeypatch):
    class Slow(Camera):
        def __iter__(self):
            for frame in super().__iter__():
                frame.pts_s = frame.index * 10.0
                yield frame

    monkeypatch.setattr(command, "open_source", lambda _: Slow(lambda: None))
    assert main("-s", "0", "-o", tmp_path / "set", "--count", "12", "-q").status == 0
    assert manifest_of(tmp_path / "set")["files"][-1]["pts_s"] < 600


def test_stopped_before_there_is_a_set_leaves_nothing(main, tmp_path, monkeypatch):
    class Covered(Camera):
        def __iter__(self):
            for frame in super().__iter__():
                frame.image[:] = 0
                yield frame

    monkeypatch.setattr(command, "open_source", lambda _: Covered(lambda: os.kill(os.getpid(), signal.SIGINT)))
    done = main("-s", "0", "-o", tmp_path / "set")
    assert done.status == 130
    assert "no set: camera: expected at least 2 frames that differ" in done.err
    assert os.listdir(tmp_path) == []


def test_a_process_that_is_interrupted_makes_its_set(tmp_path):
    line = [sys.executable, "-m", "calibration", "-s", "test://?size=160x120&frames=100000000", "-o", "set", "-q"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    job = subprocess.Popen(
        line, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end_s = time.monotonic() + WAIT_S
    try:
        while not len(list(tmp_path.glob(".edgemask.*/frames/*.png"))) > 20:
            assert job.poll() is None, job.communicate()
            assert time.monotonic() < end_s
            time.sleep(0.01)
        job.send_signal(signal.SIGINT)
        out, err = job.communicate(timeout=WAIT_S)
    finally:
        job.kill()
        job.communicate()
    assert (job.returncode, err) == (130, "")
    assert out == "set/contact_sheet.png\n"
    assert len(read_set(tmp_path / "set").entries) > 10
    assert os.listdir(tmp_path) == ["set"]
