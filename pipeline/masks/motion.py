"""A computed mask, moved with the picture: points on each of its subjects are followed from frame to frame."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.bundle import Task
from pipeline.frames.frame import Image
from pipeline.masks.backdrop import DIFFERS, SAME, SHADOW, UNKNOWN, Backdrop

# Subjects beyond these, the smallest, stay where they were.
_MOST_SUBJECTS, _FEWEST_PIXELS = 24, 8
# Points over all subjects, and on each.
_POINTS, _FEWEST_POINTS, _MOST_POINTS = 600, 12, 200
# A window of so many pixels is looked for around a point, at the picture's size and at 1/2, 1/4 and 1/8 of it.
_WINDOW_WH, _HALVINGS = (9, 9), 3
# A point that is not found again where it came from, within so many pixels, is lost.
_BACK_PX = 1.0
# So many points that part from their subject, by pixels or a share of the root of its area, are another one.
_BESIDE_SHARE = 0.5
_FEWEST_APART, _APART_PX, _APART_SHARE = 4, 4.0, 0.08
# Found directly from the computed frame it is more exact than step by step, where both are so near to each other.
_NEAR_PX = 3.0
# The part of a point's motion that its subject as a whole does not make holds for what lies so near, of the root of its area.
_REACH_SHARE, _BENT_SHARE = 0.1, 0.35
# Where three quarters of a subject have less texture than this (least eigenvalue of the gradients around a pixel), points on it tell
# nothing but noise: it is laid over the picture as a whole, with so much of what is around it, at this size, and moved by so much.
_FLAT_EIGENVALUE, _RIM_PX, _FLAT_SIZE, _ROOM_PX = 1e-4, 3, 96, 14
# The correlation that it has to have there.
_CORRELATED_FROM = 0.1
# Soft edges of a mask end so many pixels from it.
_EDGE_PX = 4

# Where a mask may be subject.
_SUBJECT_LEVEL = 64
# A silhouette may differ so many pixels from a moved mask, or a share of the root of its area.
_SILHOUETTE_PX, _SILHOUETTE_SHARE = 5, 0.1

Points = NDArray[np.float32]


class _Subject(NamedTuple):
    """A connected region of a mask.

    Attributes:
        x: left edge of its window in the mask.
        y: upper edge.
        alpha: (h, w) uint8, the window's pixels that belong to it.
        value: its class; of a binary mask 255.
        area: its pixels.
        points: which ones are on it.
        rim: of one without texture its pixels in the window and those around it, uint8, 1; else None.
    """

    x: int
    y: int
    alpha: Image
    value: int
    area: int
    points: NDArray[np.intp]
    rim: Image | None


class Track:
    """Follows the subjects of one mask.

    Args:
        grey: (h, w) uint8, the picture that the mask was computed for, small.
        mask: (H, W) uint8, probability × 255 or class index; kept, not changed.
        task: of the mask.
        backdrop: what is behind the subjects, which learns from this mask; None: nobody looks whether the camera stands still.

    Attributes:
        mask: as it was computed.
        sure: share of the points that were found in each picture, where least were; by their subjects' areas, 0 to 1.
    """

    def __init__(self, grey: Image, mask: Image, task: Task, backdrop: Backdrop | None = None) -> None:
        self.mask = mask
        self._backdrop = backdrop
        self._key = self._last = grey
        self._task = task
        way = cv2.INTER_NEAREST if task == "classes" else cv2.INTER_AREA
        small = np.asarray(cv2.resize(mask, grey.shape[::-1], interpolation=way), np.uint8)
        regions = sorted(_regions(small, task), key=lambda region: -region[0])[:_MOST_SUBJECTS]
        each = int(np.clip(_POINTS / max(1, len(regions)), _FEWEST_POINTS, _MOST_POINTS))
        self._ground = small.copy()
        # Which pixels differ from the backdrop, in the first picture and in the last one.
        self._states: Image | None = None
        self._now: Image | None = None
        if backdrop is not None:
            is_subject = small != _ground_of(small, task) if task == "classes" else small >= _SUBJECT_LEVEL
            self._states = backdrop.learn(grey, is_subject.astype(np.uint8))
        self._subjects: list[_Subject] = []
        found: list[Points] = []
        start = 0
        for area, value, (x, y, width, height), inside in regions:
            points = _points_on(grey[y : y + height, x : x + width], inside, each) + np.array((x, y), np.float32)
            left, top, alpha = _cut_out(small, inside, x, y, task)
            rim = _rim(alpha) if _is_flat(grey[y : y + height, x : x + width], inside) else None
            own = np.arange(start, start + len(points))
            self._subjects.append(_Subject(left, top, alpha, value, area, own, rim))
            found.append(points)
            start += len(points)
        for subject in self._subjects:
            height, width = subject.alpha.shape
            window = self._ground[subject.y : subject.y + height, subject.x : subject.x + width]
            window[subject.alpha > 0] = _ground_of(small, task)
        self._from = np.concatenate(found) if found else np.zeros((0, 2), np.float32)
        self._to = self._from.copy()
        self._is_followed = np.ones(len(self._from), bool)
        self._steps: dict[int, Points] = {}  # of those without texture, by their first point: the last one
        self.sure = 1.0
        self._is_split = False

    def follow(self, grey: Image) -> None:
        """Go on to the next picture, of the same size as the first."""
        before, self._last = self._last, grey
        if not len(self._to):
            return
        to, is_found = _found(before, grey, self._to, self._to)
        for subject in self._subjects:
            if subject.rim is not None:
                to[subject.points], is_found[subject.points] = self._laid_over(subject, subject.rim, grey)
                continue
            came, went, good = self._to[subject.points], to[subject.points], is_found[subject.points]
            if good.all():
                continue
            motion = _motion(came[good], went[good], subject.area)
            to[subject.points[~good]] = _applied(motion, came[~good])
        self._is_followed &= is_found
        self._to = to
        areas = [subject.area for subject in self._subjects]
        found = float(np.average([is_found[subject.points].mean() for subject in self._subjects], weights=areas))
        self.sure = min(self.sure, found)

    def moved(self) -> Image:
        """(H, W) uint8, new: the mask where its subjects are in the last picture."""
        out = self._ground.copy()
        if len(self._to):
            if not self._is_split:
                self._is_split = True
                self._subjects = [part for subject in self._subjects for part in self._parts(subject)]
            direct, is_found = _found(self._key, self._last, self._from, self._to)
            for subject in self._subjects:
                is_found[subject.points] &= subject.rim is None
            is_found &= np.linalg.norm(direct - self._to, axis=1) <= _NEAR_PX
            to = np.where(is_found[:, None], direct, self._to)
            if self._backdrop is not None and self._states is not None:
                self._now = self._backdrop.states(self._last)
            for subject in self._subjects:
                self._paint(out, subject, to[subject.points], (is_found | self._is_followed)[subject.points])
        height, width = self.mask.shape
        way = cv2.INTER_NEAREST if self._task == "classes" else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(out, (width, height), interpolation=way), np.uint8)

    def _laid_over(self, subject: _Subject, rim: Image, grey: Image) -> tuple[Points, bool]:
        """Where the points of a subject without texture are, as it goes on as before or a little otherwise; and whether it is there."""
        first = int(subject.points[0])
        came = self._to[first] - self._from[first]
        shift, correlation = _shift(
            self._key, grey, subject, rim, came + self._steps.get(first, np.zeros(2, np.float32))
        )
        self._steps[first] = shift - came
        return self._from[subject.points] + shift, correlation >= _CORRELATED_FROM

    def _parts(self, subject: _Subject) -> list[_Subject]:
        """A subject, or those that it turned out to be by parting: people who met when their mask was computed."""
        followed = subject.points[self._is_followed[subject.points]]
        if len(followed) < 2 * _FEWEST_APART or subject.rim is not None:
            return [subject]
        came, to = self._from[followed], self._to[followed]
        apart_px = max(_APART_PX, _APART_SHARE * subject.area**0.5)
        away = np.linalg.norm(to - _applied(_motion(came, to, subject.area), came), axis=1) > apart_px
        if not _FEWEST_APART <= away.sum() <= len(followed) - _FEWEST_APART:
            return [subject]
        if np.linalg.norm(came[away].mean(axis=0) - came[~away].mean(axis=0)) < _BESIDE_SHARE * subject.area**0.5:
            return [subject]  # points on its outline, that stay with what lies behind it
        other = _applied(_motion(came[away], to[away], subject.area), came[away])
        if np.mean(np.linalg.norm(to[away] - other, axis=1) <= apart_px) < 0.7:
            return [subject]
        # A pixel belongs to the nearest point.
        is_first = np.subtract(*(_distances(came[some], subject) for some in (~away, away))) <= 0
        at = np.rint(self._from[subject.points]).astype(int) - (subject.x, subject.y)
        height, width = subject.alpha.shape
        mine = is_first[np.clip(at[:, 1], 0, height - 1), np.clip(at[:, 0], 0, width - 1)]
        parts = []
        for pixels, points in ((is_first, mine), (~is_first, ~mine)):
            alpha = subject.alpha * pixels
            area = int((alpha >= 128).sum())
            if area:
                parts += self._parts(subject._replace(alpha=alpha, area=area, points=subject.points[points]))
        return parts

    def _paint(self, out: Image, subject: _Subject, to: Points, is_good: NDArray[np.bool_]) -> None:
        """Add a subject where its points are now."""
        came = self._from[subject.points]
        if is_good.sum() >= 6:
            came, to = came[is_good], to[is_good]
        motion = _motion(came, to, subject.area)
        left, top, right, bottom = _window(subject, motion, out.shape)
        if left >= right or top >= bottom:
            return
        # For each pixel of the window, where it was.
        back = cv2.invertAffineTransform(motion).astype(np.float32)
        xs, ys = np.arange(left, right, dtype=np.float32), np.arange(top, bottom, dtype=np.float32)[:, None]
        there_x, there_y = (row[0] * xs + row[1] * ys + row[2] for row in back)
        bent = to - _applied(motion, came)
        near = np.linalg.norm(bent, axis=1) < max(2, _BENT_SHARE * subject.area**0.5)
        if near.any():
            bent = bent[near] @ back[:, :2].T
            spread = _spread(
                to[near] - (left, top), bent, (right - left, bottom - top), _REACH_SHARE * subject.area**0.5
            )
            there_x -= spread[..., 0]
            there_y -= spread[..., 1]
        shape = cv2.remap(
            subject.alpha, there_x - subject.x, there_y - subject.y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        alpha = moved = np.asarray(shape, np.uint8)
        here = slice(top, bottom), slice(left, right)
        if self._states is not None and self._now is not None:
            was = cv2.remap(self._states, there_x, there_y, cv2.INTER_NEAREST, borderValue=UNKNOWN)
            reach_px = max(_SILHOUETTE_PX, round(_SILHOUETTE_SHARE * subject.area**0.5))
            alpha = _with_silhouette(moved, np.asarray(was, np.uint8), self._now[here], reach_px)
        if self._task == "classes":
            # What hides the street beside a subject may be another one.
            is_free = out[here] == self._ground[here]
            out[here][(alpha >= 128) & (is_free | (moved >= 128))] = subject.value
        else:
            np.maximum(out[here], alpha, out=out[here])


def _with_silhouette(alpha: Image, was: Image, now: Image, reach_px: int) -> Image:
    """A moved subject, corrected where its pixels have become what is behind, or those beside it something else.

    Args:
        alpha: (h, w) uint8, the subject where it was moved to.
        was: (h, w) uint8, states of the computed frame's pixels, moved likewise: what they were in the mask, they are now.
        now: (h, w) uint8, those of this frame's.
        reach_px: how far its outline may be from there.
    """
    inside = np.asarray(alpha >= 128, np.uint8)
    around = np.ones((2 * reach_px + 1,) * 2, np.uint8)
    gone = (was >= SHADOW) & (now == SAME) & (cv2.erode(inside, around) < inside)
    new = (was == SAME) & (now == DIFFERS) & (cv2.dilate(inside, around) > inside)
    if not (gone.any() or new.any()):
        return alpha
    corrected = np.where(new, 255, np.where(gone, 0, alpha)).astype(np.uint8)
    return np.asarray(cv2.medianBlur(corrected, 3), np.uint8)


def _regions(small: Image, task: Task) -> Iterator[tuple[int, int, tuple[int, int, int, int], Image]]:
    """Area, value, window (x, y, width, height) and pixels of each connected region; of classes all but the most frequent's."""
    if task == "classes":
        counts = np.bincount(small.ravel(), minlength=256)
        counts[_ground_of(small, task)] = 0
        layers = [(int(value), np.asarray(small == value, np.uint8)) for value in np.flatnonzero(counts)]
    else:
        layers = [(255, np.asarray(small >= 128, np.uint8))]
    for value, layer in layers:
        count, labels, stats, _ = cv2.connectedComponentsWithStats(layer)
        for label in range(1, count):
            x, y, width, height, area = (int(each) for each in stats[label])
            if area >= _FEWEST_PIXELS:
                inside = np.asarray(labels[y : y + height, x : x + width] == label, np.uint8)
                yield area, value, (x, y, width, height), inside


def _ground_of(small: Image, task: Task) -> int:
    """What lies behind the subjects."""
    return int(np.bincount(small.ravel()).argmax()) if task == "classes" else 0


def _points_on(grey: Image, inside: Image, most: int) -> Points:
    """(N, 2) x and y of corners inside, or, where there are none, of any pixels."""
    area = int(inside.sum())
    apart = max(2.0, 0.8 * (area / most) ** 0.5)
    corners = cv2.goodFeaturesToTrack(np.ascontiguousarray(grey), most, 0.002, apart, mask=inside, blockSize=3)
    if corners is not None and len(corners) >= 4:
        return np.asarray(corners.reshape(-1, 2), np.float32)
    ys, xs = np.nonzero(inside)
    some = np.linspace(0, len(xs) - 1, min(9, len(xs))).astype(int)
    return np.stack([xs[some], ys[some]], axis=1).astype(np.float32)


def _cut_out(small: Image, inside: Image, x: int, y: int, task: Task) -> tuple[int, int, Image]:
    """A subject's window with room for its edge: left, top, and its pixels."""
    height, width = inside.shape
    left, top = max(0, x - _EDGE_PX), max(0, y - _EDGE_PX)
    right, bottom = min(small.shape[1], x + width + _EDGE_PX), min(small.shape[0], y + height + _EDGE_PX)
    own = np.zeros((bottom - top, right - left), np.uint8)
    own[y - top : y - top + height, x - left : x - left + width] = inside
    if task == "classes":
        own *= 255
    else:
        values = small[top:bottom, left:right]
        edge = cv2.dilate(own, np.ones((2 * _EDGE_PX + 1,) * 2, np.uint8)) * (values < 128)
        own = values * (own | edge)
    # It ends in its window, but goes on beyond the picture's edge.
    own[:, [0] if left else []] = 0
    own[:, [-1] if right < small.shape[1] else []] = 0
    own[[0] if top else []] = 0
    own[[-1] if bottom < small.shape[0] else []] = 0
    return left, top, own


def _found(before: Image, now: Image, points: Points, guess: Points) -> tuple[Points, NDArray[np.bool_]]:
    """Where points of one picture are in another, and which of them are found again where they came from."""

    def look(one: Image, other: Image, at: Points, first: Points) -> tuple[Points, NDArray[np.bool_]]:
        there, status, _ = cv2.calcOpticalFlowPyrLK(
            one,
            other,
            at[:, None],
            first[:, None].copy(),
            winSize=_WINDOW_WH,
            maxLevel=_HALVINGS,
            criteria=(cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 12, 0.03),
            flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
            minEigThreshold=1e-5,
        )
        return np.asarray(there[:, 0], np.float32), status[:, 0] > 0

    there, is_there = look(before, now, points, guess)
    again, is_back = look(now, before, there, points)
    return there, is_there & is_back & (np.linalg.norm(again - points, axis=1) < _BACK_PX)


def _distances(points: Points, subject: _Subject) -> NDArray[np.float32]:
    """(h, w): from each pixel of a subject's window to the nearest of some points."""
    height, width = subject.alpha.shape
    away = np.ones((height, width), np.uint8)
    at = np.rint(points - (subject.x, subject.y)).astype(int)
    away[np.clip(at[:, 1], 0, height - 1), np.clip(at[:, 0], 0, width - 1)] = 0
    return np.asarray(cv2.distanceTransform(away, cv2.DIST_L2, 3), np.float32)


def _applied(motion: NDArray[np.float64], points: Points) -> NDArray[np.float64]:
    moved: NDArray[np.float64] = points @ motion[:, :2].T + motion[:, 2]
    return moved


def _is_flat(grey: Image, inside: Image) -> bool:
    """Whether a subject has no texture; its outline, which has, is left out."""
    core = cv2.erode(np.pad(inside, 1), np.ones((7, 7), np.uint8))[1:-1, 1:-1] > 0
    if not core.any():
        return False
    return float(np.percentile(cv2.cornerMinEigenVal(np.ascontiguousarray(grey), 9)[core], 75)) < _FLAT_EIGENVALUE


def _rim(alpha: Image) -> Image:
    return cv2.dilate(np.asarray(alpha >= 128, np.uint8), np.ones((2 * _RIM_PX + 1,) * 2, np.uint8)).astype(np.uint8)


def _shift(key: Image, now: Image, subject: _Subject, rim: Image, guess: Points) -> tuple[Points, float]:
    """How far a subject has moved as a whole, x and y, and how well it fits there, -1 to 1."""
    height, width = rim.shape
    scale = min(1.0, _FLAT_SIZE / max(height, width))
    left, top = round(float(guess[0])) + subject.x - _ROOM_PX, round(float(guess[1])) + subject.y - _ROOM_PX
    x0, y0 = max(0, left), max(0, top)
    window = now[y0 : max(0, top + height + 2 * _ROOM_PX), x0 : max(0, left + width + 2 * _ROOM_PX)]
    if min(window.shape) * scale < 8:
        return guess, -1.0
    away = np.array((x0 - subject.x, y0 - subject.y), np.float32)
    back: NDArray[np.float32] = np.eye(2, 3, dtype=np.float32)
    back[:, 2] = (away - guess) * scale

    def shrunk(image: Image) -> Image:
        return np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)

    own = key[subject.y : subject.y + height, subject.x : subject.x + width]
    limit = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 12, 1e-3)
    images = shrunk(window), shrunk(own)
    try:
        correlation, found = cv2.findTransformECC(*images, back, cv2.MOTION_TRANSLATION, limit, shrunk(rim), 3)
    except cv2.error:  # it does not fit anywhere near
        return guess, -1.0
    return away - np.asarray(found[:, 2] / scale, np.float32), float(correlation)


def _motion(came: Points, to: Points, area: int) -> NDArray[np.float64]:
    """(2, 3) affine: how most of the points have moved."""
    tolerance_px = max(1.0, 0.03 * area**0.5)
    motion = None
    if len(came) >= 4:
        motion, agree = cv2.estimateAffinePartial2D(came, to, ransacReprojThreshold=2 * tolerance_px, maxIters=100)
        if motion is not None and agree.sum() >= 10:
            most = agree[:, 0] > 0
            sheared, _ = cv2.estimateAffine2D(came[most], to[most], ransacReprojThreshold=tolerance_px, maxIters=100)
            if sheared is not None and 0.3 < np.linalg.det(sheared[:, :2]) < 3:
                motion = sheared
    if motion is None or not 0.3 < np.linalg.det(motion[:, :2]) < 3:
        shift = np.median(to - came, axis=0) if len(came) else np.zeros(2)
        motion = np.array([[1, 0, shift[0]], [0, 1, shift[1]]])
    return np.asarray(motion, np.float64)


def _window(subject: _Subject, motion: NDArray[np.float64], size_hw: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what a moved subject may cover."""
    height, width = subject.alpha.shape
    x, y = subject.x, subject.y
    corners = np.array([(x, y), (x + width, y), (x, y + height), (x + width, y + height)])
    there = corners @ motion[:, :2].T + motion[:, 2]
    room = _EDGE_PX + 0.1 * subject.area**0.5
    left, top = np.floor(there.min(axis=0) - room).astype(int)
    right, bottom = np.ceil(there.max(axis=0) + room).astype(int)
    # What is cut off by the picture's edge comes in there.
    return (
        max(0, int(left)) if x else 0,
        max(0, int(top)) if y else 0,
        min(size_hw[1], int(right)) if x + width < size_hw[1] else size_hw[1],
        min(size_hw[0], int(bottom)) if y + height < size_hw[0] else size_hw[0],
    )


def _spread(at: Points, values: NDArray[np.float64], size_wh: tuple[int, int], reach_px: float) -> NDArray[np.float32]:
    """(h, w, 2): what points have, a mean of those that are near; 0 far from all."""
    reach_px = max(3.0, reach_px)
    cell_px = reach_px / 2
    cells_wh = max(1, round(size_wh[0] / cell_px)), max(1, round(size_wh[1] / cell_px))
    xs, ys = (np.clip(at[:, k] * cells_wh[k] / size_wh[k], 0, cells_wh[k] - 1).astype(int) for k in (0, 1))
    sums = np.zeros((cells_wh[1], cells_wh[0], 3), np.float32)
    np.add.at(sums, (ys, xs), np.column_stack([values, np.ones(len(values))]).astype(np.float32))
    near = cv2.GaussianBlur(sums, (0, 0), 2, borderType=cv2.BORDER_CONSTANT)
    means = near[..., :2] / (near[..., 2:] + 0.012)
    return np.asarray(cv2.resize(means, size_wh, interpolation=cv2.INTER_LINEAR), np.float32)
