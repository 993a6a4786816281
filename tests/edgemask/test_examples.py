"""The scripts in examples/ do what they say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import cv2
import pytest

ROOT = Path(__file__).parents[2]
PICTURE = next((ROOT / "samples" / "pictures").glob("*.jpg"))


@pytest.fixture
def example(tmp_path):
    def run(name, *arguments):
        done = subprocess.run(
            [sys.executable, ROOT / "examples" / f"{name}.py", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "EDGEMASK_CACHE": str(tmp_path / "cache")},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def frames_of(path):
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_there_are_six_and_each_has_a_test():
    names = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert names == {"picture", "video", "camera", "own_network", "polygons", "two_cameras"}


def test_picture(example, tmp_path):
    example("picture", PICTURE, "out.png")
    assert cv2.imread(str(tmp_path / "out.png")).shape == cv2.imread(str(PICTURE)).shape


def test_video(example, tmp_path):
    example("video", "test://?size=320x240&frames=6", "out.mp4")
    assert frames_of(tmp_path / "out.mp4") == 6


def test_camera(example):
    lines = example("camera", "test://?size=320x240&frames=9", 3).splitlines()
    assert len(lines) == 3
    assert all(line.endswith("% subject") for line in lines)


def test_polygons(example):
    found = json.loads(example("polygons", PICTURE))
    assert found["label"] == "subject"
    height, width = cv2.imread(str(PICTURE)).shape[:2]
    points = [point for polygon in found["polygons"] for point in polygon]
    assert len(points) > 8
    assert all(0 <= x < width and 0 <= y < height for x, y in points)


def test_two_cameras(example, tmp_path):
    address = "test://?size=320x240&frames=9"
    example("two_cameras", address, address, tmp_path, 4)
    assert [frames_of(tmp_path / f"camera{number}.mp4") for number in (0, 1)] == [4, 4]
