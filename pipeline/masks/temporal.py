"""Steady masks for video: smoothed over time where the picture stands still, taken as they come where it moves."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import cv2
import numpy as np

from pipeline.bundles.bundle import Task
from pipeline.errors import OptionError
from pipeline.frames.frame import Image, check_mask
from pipeline.quick_dataclass import dataclass
from pipeline.render.look import subject_level

DEFAULT_TIME_CONSTANT_S = 0.5
DEFAULT_BAND = 0.1

# A pixel has moved where the mean gray of the 5×5 pixels around it differs by so many levels of 255 from the frame before ...
_MOVED_LEVELS = 3
# ... or by so many from the frame whose mask was last taken as it came, so that slow motion and slowly changing light add up.
_DRIFTED_LEVELS = 12
_SIDE = 5

# After a longer gap smoothing starts afresh. Two frames with the same time stamp are taken to be a usual step apart.
LONGEST_GAP_S = 1.0
_USUAL_STEP_S = 1 / 30

# A scene without a subject for so long is empty. What covers less than this share of the picture counts as a subject only when it is
# seen in two successive frames, at most so far apart.
_EMPTY_AFTER_S = 0.2
_SURE_SHARE = 0.01
_SAME_PLACE_PX = 9

# A scene cut is a change of a thumbnail's mean gray levels that is large both in itself and compared with the motion just before it. A
# change beyond the last bound always is a cut.
_CUT_LEVELS = 20.0
_CUT_TO_MOTION = 3.0
_SURELY_CUT_LEVELS = 50.0
_MOTION_FRAMES = 8
_SAMPLES_WH, _TILES_WH = (256, 144), (32, 18)

# A mask value is certain from the high level on and below the low one. Where it is certain and on the side that is shown already, it is
# taken at once, so that no haze is left behind a subject.
_SURE_HIGH, _SURE_LOW = 249, 7

# A pixel amid motion may keep its gray level by chance, and would be held though it moved. So within this distance of motion a mask
# value that is clear is taken as it comes: from the high level on, or below the low one.
_NEAR_MOTION_PX = 7
_CLEAR_HIGH, _CLEAR_LOW = 230, 26

# Rows taken at a time: few enough that what is between the steps stays in the processor's cache.
_STRIP_ROWS = 128
# Multiples of the golden ratio spread evenly over 0 to 1, however many are taken.
_GOLDEN = (math.sqrt(5) - 1) / 2


class Smoothing:
    """Steadies the masks of one source: ``steady_hw = smoothing(image_hwc, mask_hw, pts_s)``, frame after frame.

    Where the picture has changed, a mask is taken as it comes, so that nothing trails behind a subject that moves. Within 7 pixels
    of such a change, mask values that are clear are taken as well. Everywhere else the mask is smoothed:

    * A binary mask exponentially over time, in 8 bits, rounded so that errors even out over frames. A pixel changes sides only
      when its smoothed probability is past the threshold by ``band``.
    * In a class map, a pixel takes a new class once that class was seen for the time constant. Time in which the old class was
      seen again counts against it, twice.

    Smoothing starts afresh, and the mask is passed through, at the first frame, at a scene cut, at another frame size, and where
    time goes back or leaps. When for 0.2 s no pixel was subject or within the band, the scene is empty and nothing is held any more.
    What covers less than 1 % of the picture counts as a subject once two successive frames show it in one place; in an empty scene
    it is not shown before that.

    Passive; one instance for each source, used by one thread. Keeps 5 bytes for each pixel of a frame.

    Attributes:
        task: "binary" (mask = probability × 255) or "classes" (mask = class index).
        time_constant_s: where the picture stands still, 63 % of a change is shown after this time.
        band: how far past the threshold a pixel must be to change sides, as a probability; smaller where the threshold is near 0 or 1.
        threshold: the probability from which a pixel is subject, 0 to 1; may be changed between two frames.
        cuts: how many scene cuts were found.

    Raises:
        OptionError: a value is not what is described above.
    """

    def __init__(
        self,
        task: Task = "binary",
        *,
        time_constant_s: float = DEFAULT_TIME_CONSTANT_S,
        band: float = DEFAULT_BAND,
        threshold: float = 0.5,
    ) -> None:
        if task not in ("binary", "classes"):
            raise OptionError(f"task: expected binary or classes, got {task!r}")
        # Written so that NaN is refused too.
        if not 0 < time_constant_s <= 60:
            raise OptionError(f"smoothing: expected a time constant above 0 s, at most 60 s, got {time_constant_s}")
        for name, value in (("band", band), ("threshold", threshold)):
            if not 0 <= value <= 1:
                raise OptionError(f"{name}: expected 0 to 1, got {value}")
        self.task = task
        self.time_constant_s = time_constant_s
        self.band = band
        self.threshold = threshold
        self.cuts = 0
        self._pts_s = 0.0
        self._motion: _Motion | None = None
        self._held: _Probabilities | _Classes | None = None

    def reset(self) -> None:
        """Forget everything: the next mask is passed through."""
        self._motion = self._held = None

    def __call__(self, image_hwc: Image, mask_hw: Image, pts_s: float) -> Image:
        """Steady the next frame's mask.

        Args:
            image_hwc: (H, W, 3) uint8 BGR; not changed, not kept.
            mask_hw: (H, W) uint8 as ``task`` says; not changed, not kept.
            pts_s: the frame's time in seconds.

        Returns:
            (H, W) uint8: a new array that is the caller's.

        Raises:
            ShapeError: the two are not of one size, or not uint8.
        """
        check_mask("smoothing", image_hwc, mask_hw)
        mask = np.ascontiguousarray(mask_hw)
        step_s = pts_s - self._pts_s
        self._pts_s = pts_s
        grey = _local_mean(image_hwc)
        motion, held = self._motion, self._held
        follows = 0 <= step_s <= LONGEST_GAP_S  # false for NaN
        if motion is None or held is None or not follows or motion.size_hw != mask.shape:
            self._motion, self._held = _Motion(grey), self._hold(mask)
            return np.array(mask)
        moved = motion(grey)
        if moved is None:
            self.cuts += 1
            self._held = self._hold(mask)
            return np.array(mask)
        level = _Level.of(self.threshold, self.band)
        return held(mask, moved, step_s or _USUAL_STEP_S, self.time_constant_s, level)

    def _hold(self, mask: Image) -> _Probabilities | _Classes:
        return _Classes(mask) if self.task == "classes" else _Probabilities(mask)


@dataclass(frozen=True, slots=True)
class _Level:
    """The threshold in levels of a mask: the smallest that is subject, and from where to where a pixel keeps its side."""

    subject: int
    lowest: int
    highest: int

    @classmethod
    def of(cls, threshold: float, band: float) -> _Level:
        subject = max(1, subject_level(threshold))
        reach = round(255 * min(band, threshold, 1 - threshold))
        return cls(subject, max(1, subject - reach), min(255, subject + reach))


class SceneCuts:
    """Finds where another scene begins; one instance for each source."""

    def __init__(self) -> None:
        self._tiles: Image | None = None
        self._steps: deque[float] = deque(maxlen=_MOTION_FRAMES)

    def __call__(self, image_hw: Image) -> bool:
        """Whether a frame is of another scene than the one before it; of the first there is none before.

        Args:
            image_hw: (H, W) uint8, gray; not kept.
        """
        samples = cv2.resize(image_hw, _SAMPLES_WH, interpolation=cv2.INTER_LINEAR)
        tiles = np.asarray(cv2.resize(samples, _TILES_WH, interpolation=cv2.INTER_AREA), np.uint8)
        before, self._tiles = self._tiles, tiles
        if before is None:
            return False
        step = float(cv2.mean(cv2.absdiff(tiles, before))[0])
        if step > _SURELY_CUT_LEVELS or step > max(_CUT_LEVELS, _CUT_TO_MOTION * max(self._steps, default=0.0)):
            self._steps.clear()
            return True
        self._steps.append(step)
        return False


class _Motion:
    """Where the picture has changed, from the frames' local means; ``None`` where it is another scene."""

    def __init__(self, grey: Image) -> None:
        self.size_hw = grey.shape
        self._is_cut = SceneCuts()
        self._is_cut(grey)
        self._begin(grey)

    def _begin(self, grey: Image) -> None:
        self._before = grey
        self._taken = np.array(grey)

    def __call__(self, grey: Image) -> Image | None:
        """(H, W) uint8, 255 where a mask is taken as it comes, or None at a cut; ``grey`` is kept."""
        if self._is_cut(grey):
            self._begin(grey)
            return None
        moved: Image = np.empty_like(grey)
        for rows in _strips(grey):
            fast = _from(cv2.absdiff(grey[rows], self._before[rows]), _MOVED_LEVELS)
            slow = _from(cv2.absdiff(grey[rows], self._taken[rows]), _DRIFTED_LEVELS)
            cv2.bitwise_or(fast, slow, dst=moved[rows])
            cv2.copyTo(grey[rows], moved[rows], self._taken[rows])
        self._before = grey
        return moved


class _Probabilities:
    """A binary mask's state: its smoothed values, and on which side of the threshold each pixel is."""

    def __init__(self, mask: Image) -> None:
        self._smooth = np.array(mask)
        self._sides: Image | None = None
        self._level: _Level | None = None
        self._frames = 0
        self._before: Image | None = None  # the subject of the frame before
        self._without_s: float | None = None  # since the first frame without one
        self._empty = False

    def __call__(self, mask: Image, moved: Image, step_s: float, time_constant_s: float, level: _Level) -> Image:
        if self._sides is None or level != self._level:
            self._sides, self._level = _from(self._smooth, level.subject), level
        was_empty = self._empty
        # What is still within the band is held as subject, but begins none.
        self._look_for_subject(_from(mask, level.subject if was_empty else level.lowest), step_s)
        if self._empty:  # what flashes up is shown as far below the threshold as a pixel has to be to change its side
            mask = np.minimum(mask, np.uint8(level.lowest - 1))
        if self._empty != was_empty:
            self._smooth, self._sides = np.array(mask), _from(mask, level.subject)
            return np.array(mask)
        # The share of each difference that this frame takes over; what is added before rounding makes its errors even out over frames.
        share = -math.expm1(-step_s / time_constant_s)
        self._frames += 1
        phase = 0.998 * (self._frames * _GOLDEN % 1 - 0.5)  # never near to 0.5, which would move what is at rest
        near = cv2.dilate(moved, _square(_NEAR_MOTION_PX))
        shown: Image = np.empty_like(mask)
        for rows in _strips(mask):
            new, smooth, side = mask[rows], self._smooth[rows], self._sides[rows]
            clearly = cv2.bitwise_or(
                cv2.bitwise_and(_from(new, _CLEAR_HIGH), cv2.bitwise_not(side)),
                cv2.bitwise_and(cv2.bitwise_not(_from(new, _CLEAR_LOW)), side),
            )
            takes = cv2.bitwise_or(moved[rows], cv2.bitwise_and(near[rows], clearly))
            cv2.addWeighted(new, share, smooth, 1 - share, phase, dst=smooth)
            above = cv2.bitwise_and(
                cv2.bitwise_and(side, _from(new, _SURE_HIGH)), cv2.bitwise_not(_from(smooth, _SURE_HIGH))
            )
            below = cv2.bitwise_and(
                cv2.bitwise_not(cv2.bitwise_or(side, _from(new, _SURE_LOW))), _from(smooth, _SURE_LOW)
            )
            cv2.copyTo(new, cv2.bitwise_or(takes, cv2.bitwise_or(above, below)), smooth)
            cv2.bitwise_and(side, _from(smooth, level.lowest), dst=side)
            cv2.bitwise_or(side, _from(smooth, level.highest), dst=side)
            cv2.copyTo(_from(smooth, level.subject), takes, side)
            # Those on the subject's side are shown from its level on, the others below it.
            np.maximum(smooth, side & np.uint8(level.subject), out=shown[rows])
            np.minimum(shown[rows], side | np.uint8(level.subject - 1), out=shown[rows])
        return shown

    def _look_for_subject(self, subject: Image, step_s: float) -> None:
        """Find out whether the scene is empty: there is nothing but what flashes up for a frame."""
        before, self._before = self._before, subject
        count = cv2.countNonZero(subject)
        if count and (count >= _SURE_SHARE * subject.size or _near(subject, before)):
            self._empty, self._without_s = False, None
            return
        self._without_s = 0.0 if self._without_s is None else self._without_s + step_s
        self._empty = self._empty or self._without_s >= _EMPTY_AFTER_S


class _Classes:
    """A class map's state: the classes that are shown, each pixel's rival, and how much of its time that has been seen."""

    def __init__(self, mask: Image) -> None:
        self._shown = np.array(mask)
        self._rivals = np.array(mask)
        self._credit = np.zeros_like(mask)

    def __call__(self, mask: Image, moved: Image, step_s: float, time_constant_s: float, level: _Level) -> Image:
        gain = min(255, max(1, round(255 * step_s / time_constant_s)))
        loss = min(255, 2 * gain)
        for rows in _strips(mask):
            new, shown, rival, credit = mask[rows], self._shown[rows], self._rivals[rows], self._credit[rows]
            differs = cv2.compare(new, shown, cv2.CMP_NE)
            # A third class is another rival, and begins at nothing; where the old class is seen, its rival waits.
            other = cv2.bitwise_and(differs, cv2.compare(new, rival, cv2.CMP_NE))
            cv2.copyTo(new, other, rival)
            cv2.bitwise_and(credit, cv2.bitwise_not(other), dst=credit)
            cv2.add(credit, differs & np.uint8(gain), dst=credit)
            cv2.subtract(credit, cv2.bitwise_not(differs) & np.uint8(loss), dst=credit)
            takes = cv2.bitwise_or(moved[rows], cv2.bitwise_and(differs, _from(credit, 255)))
            cv2.copyTo(new, takes, shown)
            cv2.bitwise_and(credit, cv2.bitwise_not(takes), dst=credit)
        return np.array(self._shown)


def _local_mean(image_hwc: Image) -> Image:
    grey = cv2.cvtColor(np.ascontiguousarray(image_hwc), cv2.COLOR_BGR2GRAY)
    return np.asarray(cv2.blur(grey, (_SIDE, _SIDE)), np.uint8)


def _near(subject: Image, before: Image | None) -> bool:
    """Whether any of the subject is near to where there was one."""
    if before is None or cv2.countNonZero(before) == 0:
        return False
    around = cv2.dilate(before, _square(_SAME_PLACE_PX))
    return bool(cv2.countNonZero(cv2.bitwise_and(subject, around)))


def _square(reach_px: int) -> Image:
    """What dilates by so many pixels to each side."""
    return np.ones((2 * reach_px + 1, 2 * reach_px + 1), np.uint8)


def _from(values: Any, level: int) -> Image:
    """255 where a value is ``level`` or more, else 0."""
    return np.asarray(cv2.threshold(values, level - 1, 255, cv2.THRESH_BINARY)[1], np.uint8)


def _strips(mask: Image) -> list[slice]:
    return [slice(start, start + _STRIP_ROWS) for start in range(0, mask.shape[0], _STRIP_ROWS)]
