"""Which frames judge, and which may be searched on."""

import cv2
import numpy as np
import pytest

from calibration.sets.photographs import PhotographSource
from compile.proof.frames import SEARCHED_FRAMES, VerificationFrames, spread
from pipeline.errors import OptionError
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.sources.base import Source


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """60 pictures that differ."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for index in range(60):
        blobs = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{index:02}.png"), cv2.resize(blobs, (64, 48), interpolation=cv2.INTER_CUBIC))
    return folder


def names(frames):
    return [frame.name for frame in frames]


def opened(verify=None, calib=None, calib_size=64):
    return VerificationFrames(verify, None if calib is None else str(calib), calib_size)


def test_without_anything_the_photographs_of_the_package():
    with opened() as frames:
        judging, searched = names(frames.judging(32)), names(frames.searched())
    assert judging == names(PhotographSource("verification"))
    assert searched == names(PhotographSource("search"))
    assert "photographs" in frames.origin
    assert "--verify" in frames.advice


def test_frames_of_the_users_own_are_spread_over_all_of_them_and_others_searched(folder):
    with opened(str(folder)) as frames:
        judging, searched = names(frames.judging(20)), names(frames.searched())
    assert judging == [f"{index:02}" for index in range(1, 60, 3)]
    assert len(searched) == SEARCHED_FRAMES
    assert not set(judging) & set(searched)
    assert frames.advice == ""


def test_where_all_of_them_judge_photographs_are_searched(folder):
    with opened(str(folder)) as frames:
        assert len(names(frames.judging(60))) == 60
        assert names(frames.searched()) == names(PhotographSource("search"))


def test_a_part_of_the_calibration_frames_is_held_back(folder):
    with opened(calib=folder, calib_size=24) as frames:
        judging = names(frames.judging(32))
        calibrated, searched = names(frames.calibration), names(frames.searched())
    assert len(judging) == 12
    assert len(calibrated) == 24
    assert not set(judging) & set(calibrated)
    assert set(searched) <= set(calibrated)
    assert "held back" in frames.origin
    assert frames.calibration.info.frame_count == 24


def test_a_scene_is_not_on_both_sides(folder, tmp_path):
    # Each picture four times, a little brighter each time: no near-duplicate, but the same scene.
    for path in sorted(folder.iterdir())[:12]:
        image = cv2.imread(str(path)).astype(np.float32)
        for step in range(4):
            cv2.imwrite(str(tmp_path / f"{path.stem}-{step}.png"), np.clip(image * 0.7 + 18 * step, 0, 255))
    with opened(calib=tmp_path, calib_size=20) as frames:
        scenes = [{name.split("-")[0] for name in names(part)} for part in (frames.judging(32), frames.calibration)]
    assert scenes[0]
    assert not scenes[0] & scenes[1]


def test_one_frame_to_calibrate_on_leaves_the_photographs(folder):
    with opened(calib=folder / "00.png") as frames:
        assert names(frames.judging(32)) == names(PhotographSource("verification"))
        assert "photographs" in frames.origin


def test_synthetic_frames_prove_no_int8(folder):
    with pytest.raises(OptionError, match=r"--verify test://: expected real frames"):
        opened("test://", folder)
    with opened("test://") as frames:  # for trying things
        assert names(frames.judging(2))
    with opened(calib="test://?size=96x64&frames=9&step=11") as frames:
        assert names(frames.judging(32)) == names(PhotographSource("verification"))


class Camera(Source):
    def __init__(self):
        self.info = SourceInfo("camera", "25 FPS", live=True)

    def __iter__(self):
        for index in range(100):
            yield Frame(np.zeros((2, 2, 3), np.uint8), index, index / 25, "camera", str(index))


def test_a_camera_gives_a_frame_a_second():
    assert names(spread(Camera(), 3)) == ["0", "25", "50"]
