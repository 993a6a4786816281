"""The frames that agree least, as one picture for the bundle: the frame, the mask of the reference, ours, and the difference."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from compile.proof.verify import Masks, Sample, Verification
from pipeline.bundles.bundle import Task
from pipeline.frames.frame import Image
from pipeline.render.palette import load_palette

MOST_ROWS = 5

_CELL_WIDTH = 200
_GAP, _CAPTION = 6, 24
_PAPER, _INK = (30, 26, 24), (225, 225, 225)
_COLUMNS = ("picture", "reference", "compiled", "difference")


def draw_worst(masks: Masks, samples: Sequence[Sample], verification: Verification, task: Task) -> bytes:
    """Draw the worst frames of a verification, the worst first, and where they agree alike those with a clear subject.

    Args:
        masks: what was compiled.
        samples: those of the verification.
        verification: its result.
        task: what masks mean.

    Returns:
        A PNG.
    """
    by_name = {sample.name: sample for sample in samples}
    strips = [
        _text(
            4 * _CELL_WIDTH + 3 * _GAP, [(column * (_CELL_WIDTH + _GAP), name) for column, name in enumerate(_COLUMNS)]
        )
    ]
    # Of frames that agree alike, those with a clear subject: they show whether the masks are what one expects.
    worst = sorted(verification.per_frame, key=lambda result: (round(result.iou, 4), result.left_out is not None))
    for result in worst[:MOST_ROWS]:
        sample = by_name[result.name]
        expected, got = sample.expected_nhw[-1], masks(sample.frames_nhwc)[-1]
        shown = [_shown(expected, task), _shown(got, task), _difference(got, expected, task)]
        picture = sample.frames_nhwc[-1] if sample.shown_hwc is None else sample.shown_hwc
        cells = [_scaled(image) for image in (picture, *shown)]
        gap = np.full((cells[0].shape[0], _GAP, 3), _PAPER, np.uint8)
        strips.append(np.hstack([part for cell in cells for part in (cell, gap)][:-1]))
        caption = f"{result.name}: IoU {result.iou:.4f}" + (f" ({result.left_out})" if result.left_out else "")
        strips.append(_text(strips[0].shape[1], [(0, caption)]))
    return cv2.imencode(".png", np.vstack(strips), [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()


def _shown(mask_hw: NDArray[np.uint8], task: Task) -> Image:
    if task == "binary":
        return np.dstack([mask_hw] * 3)
    palette = load_palette("default")
    return np.asarray(palette.table_bgr()[mask_hw, 0], np.uint8)


def _difference(got_hw: NDArray[np.uint8], expected_hw: NDArray[np.uint8], task: Task) -> Image:
    """White where the masks are far apart; of classes, where they differ."""
    apart = cv2.absdiff(got_hw, expected_hw) if task == "binary" else np.where(got_hw != expected_hw, 255, 0)
    return np.dstack([apart.astype(np.uint8)] * 3)


def _scaled(image: Image) -> Image:
    height = max(1, round(image.shape[0] * _CELL_WIDTH / image.shape[1]))
    return np.asarray(cv2.resize(image, (_CELL_WIDTH, height), interpolation=cv2.INTER_AREA), np.uint8)


def _text(width: int, texts: Sequence[tuple[int, str]]) -> Image:
    strip = np.full((_CAPTION, width, 3), _PAPER, np.uint8)
    for left, text in texts:
        plain = "".join(character if " " <= character <= "~" else "?" for character in text)
        cv2.putText(strip, plain, (left + 4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, _INK, 1, cv2.LINE_AA)
    return strip
