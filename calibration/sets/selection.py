"""Which frames of a source stand for it: no near-duplicates, spread over scenes and brightness, within a fixed memory."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.frames.frame import Image
from pipeline.frames.tile_planes import TILES, tile_planes

BRIGHTNESS_BANDS = (("very dark", 0.10), ("dark", 0.25), ("medium", 0.50), ("bright", 0.75), ("very bright", 1.01))
"""Name of each band of a frame's mean luma, and where it ends."""

# Distances are the root mean square over 16×16 tiles of luma and both color differences, each 0 to 1.
_DUPLICATE = 0.02
_DUPLICATE_LAYOUT = 0.98
_SAME_SCENE = 0.05
_SAME_SCENE_LAYOUT = 0.80
# Correlation of luma alone, which stays when somebody switches the light on.
_SAME_LAYOUT = 0.95
# A cut is a step that is large in itself, and large beside the motion just before it; beyond the last bound it always is one.
_CUT = 0.08
_CUT_TO_MOTION = 3.0
_SURELY_CUT = 0.2
_MOTION_FRAMES = 8
# Below this standard deviation there is nothing in a picture but its color and noise.
_BLANK = 0.01
_FLAT_LUMA = 0.005
# Share of a lone scene's length between its two parts.
_GAP = 0.05

Vector = NDArray[np.float32]
SplitName = Literal["calibration", "verification"]


@dataclass(frozen=True, slots=True)
class Look:
    """What is compared of a frame.

    Attributes:
        vector: (768,) float32; the Euclidean distance of two is their root mean square difference.
        layout: (256,) float32, luma without its mean and of length 1; all 0 where luma is flat.
        brightness: mean luma, 0 to 1.
        blank: one color all over.
    """

    vector: Vector
    layout: Vector
    brightness: float
    blank: bool

    @classmethod
    def of(cls, image: Image) -> Look:
        """Describe a frame, (H, W, 3) uint8 BGR; it is not changed and not kept."""
        small, planes = tile_planes(image)
        luma = planes[..., 0].ravel()
        deviation = luma - luma.mean()
        length = float(np.linalg.norm(deviation))
        flat = length / TILES < _FLAT_LUMA
        return cls(
            vector=np.asarray(planes.ravel() / TILES, np.float32),
            layout=np.asarray(np.zeros_like(deviation) if flat else deviation / length, np.float32),
            brightness=float(luma.mean()),
            blank=float(small.std(axis=(0, 1)).max()) / 255 < _BLANK,
        )


@dataclass(slots=True, eq=False)
class Candidate:
    """A frame that may be chosen.

    Attributes:
        index: the frame's, which also orders it in time.
        name: the frame's.
        pts_s: the frame's time stamp.
        brightness: mean luma, 0 to 1.
        scene: frames of one number show the same scene.
        vector: as in ``Look``.
    """

    index: int
    name: str
    pts_s: float
    brightness: float
    scene: int
    vector: Vector


@dataclass(frozen=True, slots=True)
class Split:
    """What was chosen.

    Attributes:
        calibration: in order of time.
        verification: in order of time; no scene of ``calibration`` unless ``by`` is "time".
        by: "scenes", or "time" where there is one scene only, whose end is for verification.
    """

    calibration: list[Candidate]
    verification: list[Candidate]
    by: Literal["scenes", "time"]


@dataclass(slots=True)
class Seen:
    """What was seen of a source.

    Attributes:
        frames: how many.
        duplicates: near-duplicates of a frame before them.
        blank: frames of one color.
        brightness: frames by band of brightness.
    """

    frames: int = 0
    duplicates: int = 0
    blank: int = 0
    brightness: Counter[str] = field(default_factory=Counter)


class Pool:
    """The most different frames so far, at most ``capacity`` of them whatever the length of the source.

    When it is full, a frame that is farther from all others than the two closest are from each other replaces one of these.

    Args:
        capacity: most candidates.
        moving: neighboring frames follow each other in time, so that a scene lasts until a cut; else they are pictures, of
            which only similar ones are of one scene.
    """

    def __init__(self, capacity: int, *, moving: bool) -> None:
        self.candidates: list[Candidate] = []
        self.seen = Seen()
        self._capacity = capacity
        self._moving = moving
        self._vectors = np.zeros((capacity, 3 * TILES * TILES), np.float32)
        self._layouts = np.zeros((capacity, TILES * TILES), np.float32)
        self._scenes = np.zeros(capacity, np.int64)
        self._distances = np.full((capacity, capacity), np.inf, np.float32)
        self._previous: Look | None = None
        self._motion: deque[float] = deque(maxlen=_MOTION_FRAMES)
        self._scene = 0
        self._last_scene = 0

    def add(self, image: Image, index: int, name: str, pts_s: float) -> tuple[bool, Candidate | None]:
        """Look at the next frame.

        Args:
            image: (H, W, 3) uint8 BGR; not kept.
            index: larger than that of every frame before.
            name: the frame's.
            pts_s: its time stamp.

        Returns:
            Whether it is a candidate now, and the one that it replaced.
        """
        look = Look.of(image)
        self.seen.frames += 1
        self.seen.brightness[brightness_band(look.brightness)] += 1
        if look.blank:
            self.seen.blank += 1
            self._previous = None  # a film that fades to black comes back with another scene
            return False, None
        self._follow(look)
        count = len(self.candidates)
        distances = np.linalg.norm(self._vectors[:count] - look.vector, axis=1)
        layouts = self._layouts[:count] @ look.layout
        self._join(distances, layouts)
        flat = not look.layout.any()
        if np.any((distances < _DUPLICATE) & ((layouts > _DUPLICATE_LAYOUT) | flat)):
            self.seen.duplicates += 1
            return False, None
        candidate = Candidate(index, name, pts_s, look.brightness, self._scene, look.vector)
        if count < self._capacity:
            self.candidates.append(candidate)
            self._put(count, look, distances)
            return True, None
        first, second = np.unravel_index(int(np.argmin(self._distances)), self._distances.shape)
        if float(distances.min()) <= float(self._distances[first, second]):
            return False, None
        # Of the two closest the one goes that has another frame near it as well.
        slot = int(min(first, second, key=lambda place: float(np.partition(self._distances[place], 1)[1])))
        replaced, self.candidates[slot] = self.candidates[slot], candidate
        self._put(slot, look, distances)
        return True, replaced

    def result(self) -> list[Candidate]:
        """The candidates in order of time, their scenes numbered from 1 in that order."""
        slots = sorted(range(len(self.candidates)), key=lambda slot: self.candidates[slot].index)
        numbers: dict[int, int] = {}
        for slot in slots:
            self.candidates[slot].scene = numbers.setdefault(int(self._scenes[slot]), len(numbers) + 1)
        return [self.candidates[slot] for slot in slots]

    def _put(self, slot: int, look: Look, distances: Vector) -> None:
        self._vectors[slot], self._layouts[slot], self._scenes[slot] = look.vector, look.layout, self._scene
        self._distances[slot, : len(distances)] = self._distances[: len(distances), slot] = distances
        self._distances[slot, slot] = np.inf

    def _follow(self, look: Look) -> None:
        """Whether the frame belongs to the scene of the one before it."""
        before, self._previous = self._previous, look
        if before is not None:
            step = float(np.linalg.norm(before.vector - look.vector))
            if self._moving:
                # Just after a cut the motion is unknown; a scene taken for two could come to be in both splits.
                motion = float(np.median(self._motion)) if self._motion else np.inf
                self._motion.append(step)
                same = step <= min(max(_CUT, _CUT_TO_MOTION * motion), _SURELY_CUT)
            else:
                layout = np.asarray([before.layout @ look.layout], np.float32)
                same = bool(_same_scene(np.asarray([step], np.float32), layout)[0])
            if same:
                return
        self._motion.clear()
        self._last_scene += 1
        self._scene = self._last_scene

    def _join(self, distances: Vector, layouts: Vector) -> None:
        """A scene that comes back, or is seen in two ways, is one scene."""
        near = np.unique(self._scenes[: len(distances)][_same_scene(distances, layouts)])
        if near.size:
            self._scenes[np.isin(self._scenes, [*near, self._scene])] = near[0]
            self._scene = int(near[0])


def is_duplicate(look: Look, other: Look) -> bool:
    """Whether a frame is a near-duplicate of another one, as in ``Pool``."""
    distance = float(np.linalg.norm(look.vector - other.vector))
    return distance < _DUPLICATE and (float(look.layout @ other.layout) > _DUPLICATE_LAYOUT or not look.layout.any())


def is_same_scene(look: Look, other: Look) -> bool:
    """Whether two frames show the same scene, as in ``Pool``."""
    distance = np.asarray([np.linalg.norm(look.vector - other.vector)], np.float32)
    return bool(_same_scene(distance, np.asarray([look.layout @ other.layout], np.float32))[0])


def brightness_band(brightness: float) -> str:
    """The name of a brightness, 0 to 1."""
    return next(name for name, end in BRIGHTNESS_BANDS if brightness < end)


def choose(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """Choose frames so that every scene has its share, of these every brightness, and of these the most different.

    Args:
        candidates: in order of time.
        count: how many; all where there are fewer.

    Returns:
        In order of time. The same for the same candidates.
    """
    if len(candidates) <= count:
        return list(candidates)
    vectors = np.stack([candidate.vector for candidate in candidates])
    scenes = np.array([candidate.scene for candidate in candidates])
    bands = np.array([_band_number(candidate.brightness) for candidate in candidates])
    scenes = np.unique(scenes, return_inverse=True)[1].reshape(-1)
    of_scene, of_band = np.zeros(len(candidates), np.int64), np.zeros(len(BRIGHTNESS_BANDS), np.int64)
    free = np.ones(len(candidates), np.bool_)
    nearest = np.full(len(candidates), np.inf, np.float32)
    for _ in range(count):
        open_ = np.flatnonzero(free)
        open_ = open_[of_scene[scenes[open_]] == of_scene[scenes[open_]].min()]
        open_ = open_[of_band[bands[open_]] == of_band[bands[open_]].min()]
        best = int(open_[np.argmax(nearest[open_])])
        free[best] = False
        of_scene[scenes[best]] += 1
        of_band[bands[best]] += 1
        nearest = np.minimum(nearest, np.linalg.norm(vectors - vectors[best], axis=1))
    return [candidates[int(place)] for place in np.flatnonzero(~free)]


def split(candidates: Sequence[Candidate], count: int, verify_share: float) -> Split:
    """Choose frames for calibration, and others of other scenes to verify on.

    Args:
        candidates: at least 2, in order of time.
        count: how many in all; all where there are fewer.
        verify_share: which share of them for verification, more than 0, at most 0.5; as near as whole scenes allow, at least one.
    """
    total = min(count, len(candidates))
    wanted = min(max(1, round(total * verify_share)), total - 1)
    sizes = Counter(candidate.scene for candidate in candidates)
    if len(sizes) == 1:
        return _split_in_time(candidates, total, wanted)
    apart = _scenes_to_verify(candidates, sizes, verify_share)
    pools: dict[bool, list[Candidate]] = {True: [], False: []}
    for candidate in candidates:
        pools[candidate.scene in apart].append(candidate)
    verification = choose(pools[True], max(wanted, total - len(pools[False])))
    return Split(choose(pools[False], total - len(verification)), verification, "scenes")


def _scenes_to_verify(candidates: Sequence[Candidate], sizes: Counter[int], verify_share: float) -> set[int]:
    """Scenes from dark to bright, each time that the share has become due."""
    brightness = dict.fromkeys(sizes, 0.0)
    for candidate in candidates:
        brightness[candidate.scene] += candidate.brightness / sizes[candidate.scene]
    due, apart = 0.0, set()
    for scene in sorted(sizes, key=lambda number: (brightness[number], number)):
        due += verify_share * sizes[scene]
        if due >= sizes[scene] / 2:
            apart.add(scene)
            due -= sizes[scene]
    if not apart:
        target = verify_share * len(candidates)
        apart = {min(sizes, key=lambda number: (abs(sizes[number] - target), number))}
    taken = sum(sizes[scene] for scene in apart)
    return apart if 2 * taken <= len(candidates) else sizes.keys() - apart


def _split_in_time(candidates: Sequence[Candidate], total: int, wanted: int) -> Split:
    part = max(1, round(len(candidates) * wanted / total))
    later = list(candidates[-part:])
    gap = _GAP * (candidates[-1].index - candidates[0].index)
    earlier = [candidate for candidate in candidates[:-part] if later[0].index - candidate.index > gap]
    earlier = earlier or list(candidates[:1])
    return Split(choose(earlier, total - wanted), choose(later, wanted), "time")


def _same_scene(distances: Vector, layouts: Vector) -> NDArray[np.bool_]:
    # Two dark pictures are near each other whatever they show: their layout must be alike as well.
    alike = (distances < _SAME_SCENE) & (layouts > _SAME_SCENE_LAYOUT)
    return np.asarray(alike | (layouts > _SAME_LAYOUT), np.bool_)


def _band_number(brightness: float) -> int:
    return sum(brightness >= end for _, end in BRIGHTNESS_BANDS)
