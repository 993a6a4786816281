"""Which frames are worth adding to a calibration set that is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calibration.sets.calibration_set import CalibrationSet
from calibration.sets.selection import Candidate, Look, is_duplicate, is_same_scene
from pipeline.sources.picture_file import read_picture


def worth_adding(there: CalibrationSet, candidates: Sequence[Candidate], paths: Sequence[Path]) -> list[Candidate]:
    """Those that are near-duplicates of no picture to calibrate on, and show no scene that is for verification.

    Args:
        there: the set.
        candidates: frames that may be added.
        paths: their pictures.
    """
    calibration = [Look.of(read_picture(path)) for path in there.calibration]
    verification = [Look.of(read_picture(path)) for path in there.verification]
    worth = []
    for candidate, path in zip(candidates, paths, strict=True):
        look = Look.of(read_picture(path))
        is_known = any(is_duplicate(look, other) for other in calibration)
        if not is_known and not any(is_same_scene(look, other) for other in verification):
            worth.append(candidate)
    return worth
