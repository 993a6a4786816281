"""The photographs of the package: real, small, free, and never both searched on and judged on."""

import json
import re

import cv2
import numpy as np

from calibration.sets.photographs import FOLDER, PhotographSource
from calibration.sets.selection import Look


def test_enough_of_them_small_enough_each_with_its_licence():
    entries = json.loads((FOLDER / "sources.json").read_text(encoding="utf-8"))
    files = sorted(path.name for path in FOLDER.glob("*.jpg"))
    assert sorted(entry["file"] for entry in entries) == files
    assert sum((FOLDER / name).stat().st_size for name in files) <= 1_500_000
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for entry in entries:
        assert entry["author"]
        assert entry["package"]
        assert re.search(r"CC|public domain|BSD|MIT|Apache|GPL|Artistic|Free Art", entry["licence"], re.IGNORECASE), (
            entry
        )
        assert "ecssd" not in json.dumps(entry).lower()
        assert entry["file"] in readme


def test_as_frames():
    judging = list(PhotographSource("verification"))
    assert len(judging) >= 32
    assert [frame.index for frame in judging] == list(range(len(judging)))
    for frame in judging:
        assert frame.image.dtype == np.uint8
        assert frame.image.shape[2] == 3
        assert min(frame.size_hw) >= 200
        assert cv2.Laplacian(frame.image, cv2.CV_64F).std() > 2, f"{frame.name} is blank"


def test_what_is_searched_on_does_not_judge():
    searched, judging = list(PhotographSource("search")), list(PhotographSource("verification"))
    assert len(searched) >= 8
    assert not {frame.name for frame in searched} & {frame.name for frame in judging}
    vectors = np.stack([Look.of(frame.image).vector for frame in judging])
    for frame in searched:
        nearest = float(np.linalg.norm(vectors - Look.of(frame.image).vector, axis=1).min())
        assert nearest > 0.05, f"{frame.name} is a picture of the other set"
