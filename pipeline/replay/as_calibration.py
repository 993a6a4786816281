"""Frames of a recording for a calibration set, which the build half adds them to."""

from __future__ import annotations

import tempfile
from pathlib import Path

import cv2

from pipeline.builds.build_half import told_by
from pipeline.errors import OptionError
from pipeline.flight.recording import Recording
from pipeline.frames.pixels import bands_of


def add_to_set(recording: Recording, calibration_set: str) -> str:
    """Add the frames of a recording to a set, or make one of them.

    Args:
        recording: its frames are looked at as those of any source: near-duplicates are left out.
        calibration_set: a folder.

    Returns:
        Where the set can be looked at.

    Raises:
        SourceError: the recording is damaged.
        OptionError: its frames are of other channels than pictures have.
        BuildError: the set cannot be read or written, or there is nothing to add.
    """
    with tempfile.TemporaryDirectory(prefix="edgemask.") as name:
        folder = Path(name) / recording.path.stem
        folder.mkdir()
        for number, frame in enumerate(recording):
            if bands := bands_of(frame.format):
                raise OptionError(
                    f"--as-calibration: expected ordinary pictures, as sets have them, got frames of {bands}"
                )
            content = cv2.imencode(".png", frame.image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
            (folder / f"{number:06d}.png").write_bytes(content.tobytes())
        return told_by(
            "calibration", ["--source", str(folder), "--output", calibration_set, "--add", "--quiet"]
        ).rstrip()
