"""Clips whose mask is known in every frame: subjects of a data set with ground truth move over its other pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.metrics.truth import read_truths
from pipeline.errors import OptionError
from pipeline.frames.frame import Image

SIZE_HW = 360, 640
FPS = 25

# Of a camera in daylight, in levels of 255.
_NOISE_LEVELS = 3.0
# A subject has to be one region, whole in its picture, and not too small to be enlarged.
_LEAST_SHARE, _MOST_SHARE, _RIM_PX, _ONE_REGION = 0.04, 0.6, 2, 0.97
_SUB_FRAMES = 4  # of one with motion blur
_LEGS_FROM = 0.55  # of a pedestrian's height

Floats = NDArray[np.float32]
Drawn = tuple[Floats, Floats]
"""A picture (H, W, 3), 0 to 255, and its mask (H, W), 0 to 1."""


class Clip(NamedTuple):
    """What was drawn.

    Attributes:
        images: each (360, 640, 3) uint8 BGR.
        masks: of each (360, 640) uint8, opacity × 255.
    """

    images: list[Image]
    masks: list[Image]


class Pictures:
    """Subjects and backgrounds of a data set.

    Args:
        data: a folder with images/ and masks/ of the same names.
        ending: of the names that are used.

    Raises:
        EdgemaskError: there are too few.
    """

    def __init__(self, data: Path, ending: str) -> None:
        truths = read_truths(str(data / "masks"), "binary", "--data")
        self._paths = sorted(path for path in (data / "images").glob("*") if path.stem.endswith(ending))
        self._subjects: list[Floats] = []
        for path in self._paths:
            image = cv2.imread(str(path))
            if image is None:
                raise OptionError(f"--data {path}: expected a picture, got a file that cannot be decoded")
            cut = _cut_out(np.asarray(image, np.uint8), truths(path.stem, image.shape[:2]))
            self._subjects += [] if cut is None else [cut]
        if len(self._paths) < 2 or not self._subjects:
            raise OptionError(
                f"--data {data}: expected two pictures or more whose names end in {ending!r}, one of them with a whole subject, "
                f"got {len(self._paths)} pictures and {len(self._subjects)} such subjects"
            )

    def subject(self, random: np.random.Generator, width_px: int | None, height_px: int) -> Floats:
        """(h, w, 4): colors × opacity and opacity, resized; None: as wide as its height says."""
        cut = self._subjects[random.integers(len(self._subjects))]
        width_px = width_px or round(cut.shape[1] * height_px / cut.shape[0])
        small = cv2.resize(cut, (max(2, width_px), height_px), interpolation=cv2.INTER_AREA)
        return np.pad(small, ((2, 2), (2, 2), (0, 0)))

    def panorama(self, random: np.random.Generator, width_px: int) -> Floats:
        """(360, width, 3): one picture beside the other; with so little contrast that passing by is no scene cut."""
        parts = [self.background(random) for _ in range(-(-width_px // SIZE_HW[1]))]
        return np.asarray(64 + 0.5 * np.hstack(parts)[:, :width_px], np.float32)

    def background(self, random: np.random.Generator) -> Floats:
        """(360, 640, 3)."""
        height, width = SIZE_HW
        image = cv2.imread(str(self._paths[random.integers(len(self._paths))]))
        assert image is not None
        scale = max(height / image.shape[0], width / image.shape[1])
        large = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        return np.asarray(large[:height, :width], np.float32)


def draw(kind: str, pictures: Pictures, seed: int) -> Clip:
    """Draw a clip; the same one each time.

    Args:
        kind: of ``KINDS``.
        pictures: what it is made of.
        seed: which one of its kind.
    """
    random = np.random.default_rng([seed, *kind.encode()])
    clip = Clip([], [])
    for image, mask in KINDS[kind][1](pictures, random):
        noisy = image + _NOISE_LEVELS * random.standard_normal(image.shape, dtype=np.float32)
        clip.images.append(np.rint(np.clip(noisy, 0, 255)).astype(np.uint8))
        clip.masks.append(np.rint(255 * mask).astype(np.uint8))
    return clip


def _pedestrians(pictures: Pictures, random: np.random.Generator) -> Iterator[Drawn]:
    street, people = pictures.background(random), []
    for _ in range(6):
        width = int(random.integers(22, 29))
        person = pictures.subject(random, width, round(width * random.uniform(2.3, 2.7)))
        speed_px = random.uniform(1.0, 3.0) * random.choice((-1, 1))
        people.append((random.uniform(160, 270), random.uniform(60, 560), speed_px, random.uniform(0, 6.3), person))
    people.sort(key=lambda each: each[0] + each[4].shape[0])
    for t in range(75):
        image, mask = _onto(street)
        for y, x, speed_px, phase, person in people:
            height, width, _ = person.shape
            at_x, at_y = x + speed_px * t, y + np.sin(phase + 0.6 * t)
            _paint(image, None, _shadow(width), _shift(at_x - 0.2 * width, y + height - 7))
            stride = _with_stride(person, 0.2 * width * np.sin(phase + 0.3 * t))
            _paint(image, mask, stride, _shift(at_x - (stride.shape[1] - width) / 2, at_y))
        yield image, mask


def _camera_turns(pictures: Pictures, random: np.random.Generator) -> Iterator[Drawn]:
    street = pictures.panorama(random, 14 * 75 + SIZE_HW[1])
    subject = pictures.subject(random, None, 170)
    for t in range(75):
        image, mask = _onto(street[:, 14 * t : 14 * t + SIZE_HW[1]])
        _paint(image, mask, subject, _shift(220 + 25 * np.sin(t / 8), 120 + 5 * np.sin(t / 2)))
        yield image, mask


def _camera_shakes(pictures: Pictures, random: np.random.Generator) -> Iterator[Drawn]:
    street, subject = pictures.panorama(random, SIZE_HW[1]), pictures.subject(random, None, 150)
    shakes = cv2.GaussianBlur(random.normal(0, 9, (75, 1, 2)).astype(np.float32), (1, 5), 1.0)[:, 0]
    for t, (dx, dy) in enumerate(shakes):
        shaken = cv2.warpAffine(street, _shift(dx, dy), SIZE_HW[::-1], borderMode=cv2.BORDER_REFLECT)
        image = np.asarray(shaken, np.float32)
        mask = np.zeros(SIZE_HW, np.float32)
        _paint(image, mask, subject, _shift(200 + t + dx, 120 + dy))
        yield image, mask


def _runs_by(pictures: Pictures, random: np.random.Generator) -> Iterator[Drawn]:
    street, subject = pictures.background(random), pictures.subject(random, None, 150)
    start = random.uniform(0, 6.3)
    for t in range(75):
        drawn = []
        for part in range(_SUB_FRAMES):
            image, mask = _onto(street)
            at = t + 0.5 * part / _SUB_FRAMES
            _paint(image, mask, subject, _shift(260 + 220 * np.sin(start + at / 13.75), 120 + 6 * np.sin(at / 2)))
            drawn.append((image, mask))
        images, masks = zip(*drawn, strict=True)
        yield np.mean(images, axis=0, dtype=np.float32), np.mean(masks, axis=0, dtype=np.float32)


def _turns(pictures: Pictures, random: np.random.Generator) -> Iterator[Drawn]:
    street, subject = pictures.background(random), pictures.subject(random, None, 140)
    height, width, _ = subject.shape
    for t in range(75):
        turned = np.asarray(cv2.getRotationMatrix2D((width / 2, height / 2), 3 * t, 1 + 0.4 * t / 75), np.float64)
        turned[:, 2] += 250 + t, 110
        image, mask = _onto(street)
        _paint(image, mask, subject, turned)
        yield image, mask


def _bends(pictures: Pictures, random: np.random.Generator) -> Iterator[Drawn]:
    street, subject = pictures.background(random), pictures.subject(random, None, 180)
    subject = np.pad(subject, ((0, 0), (16, 16), (0, 0)))
    ys, xs = _indices(subject)
    for t in range(75):
        bent = 14 * np.sin(2 * np.pi * (ys / 180 + t / 30))
        image, mask = _onto(street)
        shape = cv2.remap(subject, np.asarray(xs + bent, np.float32), ys, cv2.INTER_LINEAR)
        _paint(image, mask, np.asarray(shape, np.float32), _shift(200 + t, 90))
        yield image, mask


def _has_no_texture(pictures: Pictures, random: np.random.Generator) -> Iterator[Drawn]:
    street, subject = pictures.background(random), pictures.subject(random, None, 140)
    subject[..., :3] = random.uniform(20, 235, 3) * subject[..., 3:]
    for t in range(75):
        image, mask = _onto(street)
        _paint(image, mask, subject, _shift(60 + 5 * t, 110 + 20 * np.sin(t / 6)))
        yield image, mask


def _jumps(pictures: Pictures, random: np.random.Generator) -> Iterator[Drawn]:
    street, subject = pictures.background(random), pictures.subject(random, None, 140)
    for t in range(75):
        if t % 3 == 0:
            at = random.uniform((0, 0), (SIZE_HW[1] - subject.shape[1], SIZE_HW[0] - subject.shape[0]))
        image, mask = _onto(street)
        _paint(image, mask, subject, _shift(*at))
        yield image, mask


def _changes(pictures: Pictures, random: np.random.Generator) -> Iterator[Drawn]:
    street = pictures.panorama(random, 14 * 75 + SIZE_HW[1])
    subject = pictures.subject(random, None, 140)
    for t in range(225):
        left, y = 14 * max(0, t - 150), 110.0
        if t < 75:
            x = 260 + 220 * np.sin(t / 13.75)
        elif t < 150:
            x, y = random.uniform((0, 0), (400, 200)) if t % 3 == 0 else (x, y)
        else:
            x = 250 + 25 * np.sin(t / 8)
        image, mask = _onto(street[:, left : left + SIZE_HW[1]])
        _paint(image, mask, subject, _shift(x, y))
        yield image, mask


KINDS: dict[str, tuple[str, Callable[[Pictures, np.random.Generator], Iterator[Drawn]]]] = {
    # kind: (what tables call it, who draws it)
    "pedestrians": ("pedestrians", _pedestrians),
    "camera_turns": ("the camera turns", _camera_turns),
    "camera_shakes": ("the camera shakes", _camera_shakes),
    "runs_by": ("runs by", _runs_by),
    "turns": ("turns", _turns),
    "bends": ("bends", _bends),
    "no_texture": ("has no texture", _has_no_texture),
    "jumps": ("jumps every third frame: nobody can follow", _jumps),
    "changes": ("runs by, then jumps, then the camera turns", _changes),
}


def _cut_out(image: Image, truth: Image) -> Floats | None:
    """(h, w, 4): a subject's colors × opacity and its opacity; None where it is not one that is whole."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(np.asarray(truth > 128, np.uint8))
    if len(stats) < 2:
        return None
    x, y, width, height, area = max(stats[1:], key=lambda each: int(each[4]))
    inside = min(x, y, truth.shape[1] - x - width, truth.shape[0] - y - height) >= _RIM_PX
    is_one = area >= _ONE_REGION * stats[1:, 4].sum()
    if not (inside and is_one and _LEAST_SHARE <= area / truth.size <= _MOST_SHARE):
        return None
    alpha = np.asarray(truth[y : y + height, x : x + width, None] > 128, np.float32)
    return np.concatenate([image[y : y + height, x : x + width] * alpha, alpha], axis=2)


def _onto(background: Floats) -> Drawn:
    return background.copy(), np.zeros(SIZE_HW, np.float32)


def _indices(subject: Floats) -> tuple[Floats, Floats]:
    """Rows and columns of the pixels."""
    ys, xs = np.indices(subject.shape[:2])
    return np.asarray(ys, np.float32), np.asarray(xs, np.float32)


def _shift(x: float, y: float) -> NDArray[np.float64]:
    return np.array([[1, 0, x], [0, 1, y]], np.float64)


def _paint(image: Floats, mask: Floats | None, subject: Floats, motion: NDArray[np.float64]) -> None:
    """Draw a subject over a picture, and its opacity into a mask."""
    height, width, _ = subject.shape
    corners = np.array([(0, 0), (width, 0), (0, height), (width, height)]) @ motion[:, :2].T + motion[:, 2]
    left, top = np.maximum(np.floor(corners.min(axis=0)).astype(int), 0)
    right, bottom = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 1, SIZE_HW[::-1])
    if left >= right or top >= bottom:
        return
    here = motion - [[0, 0, left], [0, 0, top]]
    drawn = cv2.warpAffine(subject, here, (int(right - left), int(bottom - top)), flags=cv2.INTER_LINEAR)
    window = image[top:bottom, left:right]
    window *= 1 - drawn[..., 3:]
    window += drawn[..., :3]
    if mask is not None:
        np.maximum(mask[top:bottom, left:right], drawn[..., 3], out=mask[top:bottom, left:right])


def _shadow(width: int) -> Floats:
    """A dark spot as wide as a person and a half."""
    spot = np.zeros((14, round(1.5 * width), 4), np.float32)
    cv2.ellipse(spot, (round(0.75 * width), 7), (round(0.6 * width), 4), 0, 0, 360, (0, 0, 0, 0.4), -1)
    return np.asarray(cv2.GaussianBlur(spot, (0, 0), 1.5), np.float32)


def _with_stride(person: Floats, swing_px: float) -> Floats:
    """A person whose legs, the halves of what is below the hips, are so far apart at the feet."""
    height, width, _ = person.shape
    wide = np.pad(person, ((0, 0), (8, 8), (0, 0)))
    ys, xs = _indices(wide)
    leg = np.maximum(0, ys - _LEGS_FROM * height) / ((1 - _LEGS_FROM) * height)
    is_left: NDArray[np.bool_] = (xs < 8 + width / 2)[..., None]
    back, front = (
        np.asarray(
            cv2.remap(np.where(side, wide, 0), np.asarray(xs - swing * leg, np.float32), ys, cv2.INTER_LINEAR),
            np.float32,
        )
        for side, swing in ((is_left, swing_px), (~is_left, -swing_px))
    )
    return back * (1 - front[..., 3:]) + front
