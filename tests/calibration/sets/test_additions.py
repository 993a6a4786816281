"""More frames for a set that is there: its own pictures stay, and what it verifies on is not calibrated on."""

import json

import cv2
import numpy as np
import pytest

from calibration.__main__ import main
from calibration.sets.calibration_set import MANIFEST_NAME, read_set


@pytest.fixture
def pictures(tmp_path):
    """``pictures("name", seeds)``: a folder of pictures, each of another scene."""

    def make(name, seeds):
        folder = tmp_path / name
        folder.mkdir()
        for seed in seeds:
            small = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
            cv2.imwrite(str(folder / f"{seed:03d}.png"), cv2.resize(small, (96, 96), interpolation=cv2.INTER_NEAREST))
        return folder

    return make


def collect(source, output, *options):
    return main(["--source", str(source), "--output", str(output), "--quiet", *options])


def test_what_is_new_is_added_and_the_rest_stays(pictures, tmp_path, capsys):
    place = tmp_path / "set"
    assert collect(pictures("first", range(6)), place) == 0
    before = read_set(place)
    assert collect(pictures("second", range(4, 9)), place, "--add") == 0
    after = read_set(place)
    assert after.verification == before.verification
    assert after.calibration[: len(before.calibration)] == before.calibration
    assert {entry.sha256 for entry in before.entries} < {entry.sha256 for entry in after.entries}
    assert len(after.entries) == len(before.entries) + 3  # two of the five were there
    assert len({entry.index for entry in after.entries}) == len(after.entries)
    added = json.loads((place / MANIFEST_NAME).read_text())["added"]
    assert [(one["name"], one["count"]) for one in added] == [("second", 3)]
    assert (place / "report.txt").read_text().endswith("added: 3 of second: 5 pictures\n")


def test_scenes_to_verify_on_are_left_out(pictures, tmp_path, capfd):
    place = tmp_path / "set"
    assert collect(pictures("first", range(6)), place) == 0
    verified = [int(entry.frame) for entry in read_set(place).entries if entry.split == "verification"]
    before = (place / MANIFEST_NAME).read_bytes()
    assert collect(pictures("again", verified), place, "--add") == 2
    assert "has nothing like, got none of" in capfd.readouterr().err
    assert (place / MANIFEST_NAME).read_bytes() == before


def test_without_a_set_one_is_made(pictures, tmp_path):
    assert collect(pictures("first", range(4)), tmp_path / "set", "--add") == 0
    assert len(read_set(tmp_path / "set").entries) == 4


def test_a_damaged_set_is_refused(pictures, tmp_path, capfd):
    place = tmp_path / "set"
    assert collect(pictures("first", range(4)), place) == 0
    read_set(place).calibration[0].write_bytes(b"x")
    assert collect(pictures("second", range(4, 8)), place, "--add") == 2
    assert "was changed or damaged" in capfd.readouterr().err
