import json

import cv2
import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.questions.motion import COLUMNS, table
from benchmarks.shared.moving_clips import KINDS, SIZE_HW, Pictures, draw


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    """Three pictures of noise whose names end in 5, on two of them a bright subject; and one that ends in 0."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for name in ("0005", "0015", "0025", "0010"):
        coarse = random.integers(0, 120, (30, 40, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (160, 120), interpolation=cv2.INTER_CUBIC)
        mask = np.zeros((120, 160), np.uint8)
        left = 0 if name == "0025" else 50  # that one is cut off by the picture's edge
        mask[20:100, left : left + 50] = 255
        texture = cv2.resize(random.integers(130, 255, (20, 12, 3), dtype=np.uint8), (50, 80))
        image[20:100, left : left + 50] = texture
        for kind, written in (("images", image), ("masks", mask)):
            (folder / kind).mkdir(exist_ok=True)
            assert cv2.imwrite(str(folder / kind / f"{name}.png"), written)
    return folder


def test_the_command_prints_a_table_and_writes_json(data_set, tmp_path, capsys):
    result = tmp_path / "motion.json"
    asked = ["--data", data_set, "--clips", 1, "--kinds", "camera_shakes", "jumps", "--json", result]
    assert main(["motion", *map(str, asked)]) == 0
    printed = capsys.readouterr().out
    assert "1 clips of each kind, 640×360, 25 frames a second, 5 computed" in printed
    entries = json.loads(result.read_text())
    assert (entries["question"], entries["computed_fps"], entries["frame_size_hw"]) == ("motion", 5, list(SIZE_HW))
    shakes, jumps = entries["table"]
    assert "\n".join(table(entries["table"])) in printed
    # The second mask comes with the seventh frame; from there on a subject that keeps its shape is moved.
    assert shakes["moved"] == pytest.approx(69 / 75, abs=1e-4)
    assert shakes["iou"] > 0.95
    assert shakes["told"] == pytest.approx(shakes["iou"], abs=0.02)
    assert (shakes["below"], shakes["enough_fps"]) == (0, None)
    # Nobody can follow what leaps: a comparison says so, or the points that are lost.
    assert jumps["moved"] < 0.1


def test_the_more_are_computed_the_better_they_are(data_set, tmp_path):
    found = []
    for rate in (3, 12.5):
        result = tmp_path / f"{rate}.json"
        asked = ["--data", data_set, "--clips", 1, "--kinds", "bends", "--computed-fps", rate, "--json", result]
        assert main(["motion", *map(str, asked)]) == 0
        found.append(json.loads(result.read_text())["table"][0]["iou_all"])
    assert found[0] < found[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_is_where_the_subject_is(data_set, kind):
    clip = draw(kind, Pictures(data_set, "5"), 1)
    assert len(clip.images) == len(clip.masks) >= 75
    assert clip.images[0].shape == (*SIZE_HW, 3)
    # Subjects of this data set are brighter than what they move over; the one without texture is of any color.
    levels = [
        np.mean([image[where(mask)].mean() for image, mask in zip(clip.images[::10], clip.masks[::10], strict=True)])
        for where in (lambda mask: mask == 255, lambda mask: mask == 0)
    ]
    assert levels[0] > levels[1] + 40 or kind == "no_texture"


def test_a_clip_is_the_same_each_time_and_its_seed_makes_another(data_set):
    pictures = Pictures(data_set, "5")
    clip, again, other = (draw("bends", pictures, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(clip.images, again.images)
    np.testing.assert_array_equal(clip.masks, again.masks)
    assert (clip.images[0] != other.images[0]).any()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--ending", "0"],
            "expected two pictures or more whose names end in '0', one of them with a whole subject, got 1",
        ),
        (["--computed-fps", "30"], "--computed-fps: expected 1 to 25, got 30"),
        (["--clips", "0"], "--clips: expected 1 or more, got 0"),
    ],
)
def test_what_cannot_be_measured_is_told(data_set, more, message, capsys):
    assert main(["motion", "--data", str(data_set), *more]) == 2
    assert message in capsys.readouterr().err


def test_what_is_not_there_is_a_dash():
    row = dict.fromkeys(COLUMNS) | {"label": "bends", "moved": 0.0, "iou_all": 0.5}
    assert list(table([row]))[2] == "| bends | 0.500 | – | 0% | – | – | – | – | – |"
