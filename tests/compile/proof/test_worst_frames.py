"""What the picture in a bundle shows."""

import cv2
import numpy as np

from compile.proof.verify import Expected, take_samples, verify
from compile.proof.worst_frames import MOST_ROWS, draw_worst
from pipeline.frames.frame import Frame


def drawn(subjects, damaged=()):
    """The sheet of frames that are all gray, of which some have a subject, and some other masks than were expected."""
    frames = [
        Frame(np.full((40, 60, 3), 60 + 10 * index, np.uint8), index, float(index), "x", f"f{index}")
        for index in range(8)
    ]

    def reference(frames_nhwc):
        mask = np.zeros(frames_nhwc.shape[:3], np.uint8)
        mask[:, 10:30, 20:50] = 255 * ((int(frames_nhwc[0, 0, 0, 0]) - 60) // 10 in subjects)
        return Expected(mask, None)

    def masks(frames_nhwc):
        mask = reference(frames_nhwc).masks_nhw.copy()
        if (int(frames_nhwc[0, 0, 0, 0]) - 60) // 10 in damaged:
            mask[:, 10:20] = 0
        return mask

    samples = take_samples(frames, reference, "x")
    result = verify(masks, samples, "binary", source="x", runtime="y")
    png = draw_worst(masks, samples, result, "binary")
    sheet = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    pictures = sheet[:, 100, 0].tolist()  # down the first column
    return [
        index for index in sorted(range(8), key=lambda i: _first(pictures, 60 + 10 * i)) if 60 + 10 * index in pictures
    ]


def _first(values, value):
    return values.index(value) if value in values else len(values)


def test_where_nothing_differs_frames_with_a_subject_come_first():
    shown = drawn(subjects={3, 6, 7})
    assert len(shown) == MOST_ROWS
    assert shown[:3] == [3, 6, 7]


def test_what_differs_comes_before_all():
    assert drawn(subjects={2, 3, 6, 7}, damaged={7})[:2] == [7, 2]
