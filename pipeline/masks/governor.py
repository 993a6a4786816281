"""A target rate on a slow engine: between its masks the last one is moved with the picture.

The engine works on one frame at a time on a thread of its own. Every other frame gets the mask that was computed last, moved as its
subjects have moved since, or as it is where nothing moved; a frame that does not differ is not computed anew.
How right that is, is measured on the way: for the frame that the engine works on, masks are moved too, and compared with the one that
comes: the last computed one, and the one before, which is as old as masks get before the next one comes.
A mask is moved as far as these measurements allow. Beyond, and before there are any, the last one that they allowed stands, and the
frame says that it is stale.
"""

from __future__ import annotations

import math
import queue
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from pipeline.bundles.bundle import Task
from pipeline.errors import OptionError, ServerAwayError
from pipeline.frames.frame import Frame, Image
from pipeline.masks.agreement import TRUSTED_FROM, Trust, counted_agreement
from pipeline.masks.backdrop import Backdrop
from pipeline.masks.memory import Memories
from pipeline.masks.motion import Track
from pipeline.stages.prefetch import Prefetch
from pipeline.stages.stage_timer import StageTimer
from pipeline.terminal import logger_of

if TYPE_CHECKING:
    from pipeline.engines.base import Computed, Engine
    from pipeline.sources.base import Source

log = logger_of(__name__)

# Motion is found at this width: a walker far away is a few pixels wide, of which one is a tenth of its area.
_MOTION_WIDTH = 640
# To a mask that arrives the way is found through so many pictures at most, of those that came meanwhile.
_MOST_STEPS = 8
# Masks that cover less of the picture in both are not compared: a walker of 13 by 13 pixels at 720p is.
_COUNTED_SHARE = 0.0002
# Where less of the subjects can be followed, nothing is moved.
_SURE_FROM = 0.15
# A picture whose gray differs by less than this, on average and anywhere in its tiles, is the same one.
_SAME_LEVELS, _SAME_TILE_LEVELS = 1.0, 3.0
# A step of the mean gray of this much is another scene, whose mask cannot be had by moving the last one.
_CUT_LEVELS = 25.0
_TILES_WH = (64, 36)
# A source that was silent for so long does not hold its turn at the engine.
_SILENT_S = 1.0
# A live picture has moved on from a mask that is older.
_OLD_NS = 2_000_000_000
# Beyond it the time to the next frame is none to a clock of the system.
_LEAST_HZ, MOST_HZ = 0.001, 1000


@dataclass(slots=True)
class Reuse:
    """What a governor did.

    Attributes:
        computed: frames that the engine computed.
        moved: frames that got a moved mask.
        unchanged: frames that got the last mask as it was, since the picture had not changed.
        stale: frames that got an older mask though the picture had changed, since no mask could be moved so far.
        agreements: IoU that the moved masks which were shown have with those that the engine would have computed, each between what
            was measured for the same mask when it was newer and when it was older; of the last 1000.
    """

    computed: int = 0
    moved: int = 0
    unchanged: int = 0
    stale: int = 0
    agreements: deque[float] = field(default_factory=lambda: deque(maxlen=1000))

    def line(self) -> str:
        """All of it, for the user."""
        given = self.moved + self.unchanged + self.stale
        share = f", {1 - self.stale / given:.0%} have one of their own picture" if self.stale else ""
        cost = ""
        if self.agreements:
            low = math.floor(100 * np.percentile(self.agreements, 5)) / 100  # rounded up, it would not be reached
            cost = f"; moved masks agree with computed ones: IoU {np.mean(self.agreements):.4f}, 95 % of them {low:.2f} or more"
        return (
            f"{self.computed} masks computed, moved for {self.moved} frames, kept for {self.unchanged}, "
            f"stale for {self.stale}{share}{cost}"
        )


@dataclass(slots=True)
class _Key:
    """A frame of a source that was computed.

    Attributes:
        grey: its picture, small.
        tiles: smaller.
        captured_ns: when.
        number: which of the source's frames.
        track: its mask, followed since.
        not_finite: of its scores.
        young: age and agreement of its mask when it was first moved to a frame that was computed.
        shown: ages at which it was shown.
    """

    grey: Image
    tiles: Image
    captured_ns: int
    number: int
    track: Track
    not_finite: int = 0
    young: tuple[int, float] | None = None
    shown: list[int] = field(default_factory=list)


class _Asked(NamedTuple):
    """What the engine works on.

    Attributes:
        frame: the frame.
        tiles: its picture, very small.
        number: which of the source's frames.
        path: its picture, small, and some of those that came since.
        moved: the last key and the one before, as far as they are there, with their masks, moved to it.
    """

    frame: Frame
    tiles: Image
    number: int
    path: list[Image]
    moved: tuple[tuple[_Key, Image], ...] = ()


@dataclass(slots=True)
class _Of:
    """What is known of one source."""

    trust: Trust
    backdrop: Backdrop = field(default_factory=Backdrop)
    key: _Key | None = None
    before: _Key | None = None  # the key before it, of the same scene
    tiles: Image | None = None  # of its last frame
    shown: Image | None = None  # the last mask that was trusted
    number: int = 0  # of its last frame
    asked_s: float = 0.0
    seen_s: float = 0.0
    told: bool = False


class Governor:
    """Gives every frame a mask, at a target rate; logs for each source the first time that its masks are stale.

    Args:
        rate_hz: frames per second to keep, over all sources; what comes faster waits, or is dropped where it is live.
        task: of the masks.
        live: names of the sources whose masks are stale after 2 s.
        trust: makes what decides how far the masks of a scene are moved.
    """

    def __init__(
        self, rate_hz: float, task: Task, *, live: Collection[str] = (), trust: Callable[[], Trust] = Trust
    ) -> None:
        self.rate_hz = rate_hz
        self.reuse = Reuse()
        self._task = task
        self._new_trust = trust
        self._live = frozenset(live)  # replaced and not changed
        self._sources: dict[str, _Of] = {}
        self._gone: deque[str] = deque()
        self._asked: _Asked | None = None
        self._engine_s = 0.0  # for the last mask
        self._computed: Callable[[Frame], None] = lambda _: None

    @property
    def rate_hz(self) -> float:
        """The rate that is kept; any thread may set another.

        Raises:
            OptionError: what is set is no rate.
        """
        return self._rate_hz

    @rate_hz.setter
    def rate_hz(self, rate_hz: float) -> None:
        if not _LEAST_HZ <= rate_hz <= MOST_HZ:
            raise OptionError(f"--fps: expected a rate from {_LEAST_HZ:g} to {MOST_HZ}, got {rate_hz:g}")
        self._rate_hz = float(rate_hz)

    def join(self, source: Source) -> None:
        """Take frames of one more source; on any thread."""
        if source.info.live:
            self._live |= {source.info.name}

    def leave(self, source: Source) -> None:
        """Forget a source before the next frame; the engine may still work on one of it."""
        self._live -= {source.info.name}
        self._gone.append(source.info.name)

    def lines(self) -> Iterator[str]:
        """What it did, for the user, and for each source whose masks cannot be moved as far as they have to be what would be enough."""
        yield self.reuse.line()
        for name, known in self._sources.items():
            if not known.trust.is_enough:
                yield f"{name}: {self._reach(name, known.trust)}"

    def masked(
        self,
        frames: Iterable[Frame],
        engine: Engine,
        timer: StageTimer,
        computed: Callable[[Frame], None] = lambda _: None,
    ) -> Iterator[Frame]:
        """Add its mask to each frame; all come, in order.

        Args:
            frames: of any number of sources.
            engine: used on a thread of its own, one frame at a time.
            timer: gets the times of ``engine`` and ``reuse``.
            computed: told of each frame that the engine has computed, with that mask, which the frame itself may not have got.
        """
        self._computed = computed
        # One frame at most: the next is asked for when the one before has come back.
        to_do: queue.Queue[Frame | None] = queue.Queue(1)
        memories = Memories(engine)

        def compute() -> Iterator[Computed | ServerAwayError]:
            while (frame := to_do.get()) is not None:
                with timer("engine"):
                    engine.renew()
                    engine.submit(frame.as_pixels(engine.pixels)[None], state=memories.of(frame))
                    try:
                        result: Computed | ServerAwayError = engine.collect_all()
                    except ServerAwayError as error:
                        result = error
                yield result

        due_s = 0.0
        with Prefetch(compute(), 1, name="governed", join_s=None) as done:
            try:
                for frame in frames:
                    self._mask(frame, done, to_do.put, timer)
                    period_s = 1 / self._rate_hz
                    due_s = max(due_s + period_s, time.monotonic() - period_s)
                    yield frame
                    # After it was passed on: the next one waits, not this one.
                    time.sleep(max(0.0, due_s - time.monotonic()))
            finally:
                to_do.put(None)

    def _mask(
        self, frame: Frame, done: Prefetch[Computed | ServerAwayError], ask: Callable[[Frame], None], timer: StageTimer
    ) -> None:
        now_s = time.monotonic()
        self._forget(done)
        known = self._sources.get(frame.source) or self._sources.setdefault(frame.source, _Of(self._new_trust()))
        known.seen_s = now_s
        known.number += 1
        if self._asked is not None and done.ready():
            self._take(done)
        grey, tiles = _small(frame.image)
        is_cut = known.tiles is not None and _is_cut(tiles, known.tiles)
        known.tiles = tiles
        key = known.key
        if key is None or key.track.mask.shape != frame.size_hw or is_cut:
            self._begin(frame, known, grey, tiles, done, ask)
            return
        frame.not_finite = key.not_finite  # a wrong mask is wrong where it is moved to
        if self._asked is not None and self._asked.frame.source == frame.source:
            _add_step(self._asked.path, grey)
        if _is_same(tiles, key.tiles, grey, key.grey):
            frame.mask = key.track.mask.copy()
            self.reuse.unchanged += 1
            return
        age_ns = frame.captured_ns - key.captured_ns
        is_old = frame.source in self._live and age_ns > _OLD_NS
        if is_old:
            self._tell(
                frame.source,
                f"the newest mask is {age_ns / 1e9:.1f} s old, and marked stale: compile a smaller network (--imgsz), or take a GPU",
            )
        with timer("reuse"):
            key.track.follow(grey)
            age = known.number - key.number
            frame.stale = is_old or not known.trust.allows(age) or key.track.sure < _SURE_FROM
            is_turn = self._asked is None and self._is_next(known, now_s)
            moved = key.track.moved() if is_turn or not frame.stale else None
            if is_turn:
                assert moved is not None
                self._ask(frame, known, grey, tiles, moved, ask)
        if frame.stale:
            frame.mask = (key.track.mask if known.shown is None else known.shown).copy()
            self.reuse.stale += 1
        else:
            assert moved is not None
            # Who gets the frame may do with its mask as they like.
            frame.mask, known.shown = moved.copy(), moved
            key.shown.append(age)
            self.reuse.moved += 1

    def _begin(
        self,
        frame: Frame,
        known: _Of,
        grey: Image,
        tiles: Image,
        done: Prefetch[Computed | ServerAwayError],
        ask: Callable[[Frame], None],
    ) -> None:
        """Wait for the mask of another scene's first frame."""
        if self._asked is not None:
            self._take(done)
        known.key = known.before = None
        known.backdrop = Backdrop()
        known.trust = self._new_trust()  # what moved slowly in one scene says nothing of the next
        ask(frame)
        self._asked, known.asked_s = _Asked(frame, tiles, known.number, [grey]), time.monotonic()
        key = self._take(done)
        if key is None:
            frame.mask, frame.stale = np.zeros(frame.size_hw, np.uint8), True
            self.reuse.stale += 1
        else:
            frame.mask, frame.not_finite = key.track.mask.copy(), key.not_finite

    def _ask(
        self, frame: Frame, known: _Of, grey: Image, tiles: Image, moved: Image, ask: Callable[[Frame], None]
    ) -> None:
        """Have a frame computed; its mask is compared with the last ones, moved to it."""
        ask(frame)
        known.asked_s = time.monotonic()
        assert known.key is not None
        compared = [(known.key, moved)]
        if known.before is not None:
            known.before.track.follow(grey)
            compared.append((known.before, known.before.track.moved()))
        self._asked = _Asked(frame, tiles, known.number, [grey], tuple(compared))

    def _forget(self, done: Prefetch[Computed | ServerAwayError]) -> None:
        """Keep nothing of the sources that have left."""
        while self._gone:
            name = self._gone.popleft()
            if self._asked is not None and self._asked.frame.source == name:
                self._take(done)
            self._sources.pop(name, None)

    def _take(self, done: Prefetch[Computed | ServerAwayError]) -> _Key | None:
        """Wait for the mask that the engine works on, and keep it; None, and nothing is changed, where no server computed it."""
        assert self._asked is not None
        asked, self._asked = self._asked, None
        computed = next(iter(done))
        if isinstance(computed, ServerAwayError):
            return None
        masks_nhw, _, not_finite = computed
        mask = np.array(masks_nhw[0])
        known = self._sources[asked.frame.source]
        self._engine_s = time.monotonic() - known.asked_s
        count = 0 if not_finite is None else int(not_finite[0])
        track = Track(asked.path[0], mask, self._task, known.backdrop)
        for grey in asked.path[1:]:
            track.follow(grey)
        key = _Key(asked.path[0], asked.tiles, asked.frame.captured_ns, asked.number, track, count)
        self._computed(replace(asked.frame, mask=mask, view=None, not_finite=count, stale=False))
        known.before, known.key, known.shown = known.key, key, None
        self.reuse.computed += 1
        self._measure(known, asked, mask)
        return key

    def _measure(self, known: _Of, asked: _Asked, mask: Image) -> None:
        """Compare the masks that were moved to a frame with the one that was computed for it."""
        if not asked.moved:
            return
        counted = [counted_agreement(moved, mask, self._task, _COUNTED_SHARE) for _, moved in asked.moved]
        key, before = asked.moved[0][0], asked.moved[-1][0]
        ages = [asked.number - each.number for each, _ in asked.moved]
        values = [1.0 if value is None else value for value in counted]  # rightly empty
        if counted[0] is not None:
            key.young = ages[0], values[0]
        older = (ages[1], values[1]) if len(ages) > 1 else None
        if older is not None and before.young is not None:
            at, agreed = zip(before.young, older, strict=True)
            self.reuse.agreements.extend(float(np.interp(shown, at, agreed)) for shown in before.shown)
        known.trust.add(ages[0], values[0], older)
        if older is not None and not known.trust.is_enough:
            self._tell(asked.frame.source, self._reach(asked.frame.source, known.trust))

    def _reach(self, source: str, trust: Trust) -> str:
        """How far the masks of a source can be moved, and what would be enough."""
        oldest = trust.oldest
        reach = min(trust.reach, oldest)
        computed_hz = 1 / max(self._engine_s, 1e-3)
        enough = (
            f"{computed_hz * trust.times_as_many:.1f} computed a second (a smaller --imgsz, or a GPU) would be enough"
        )
        if source not in self._live:  # a file waits for the engine, a camera does not
            enough = f"--fps {max(_LEAST_HZ, self._rate_hz / trust.times_as_many):.3g} or {enough}"
        return (
            f"moved masks agree with computed ones by IoU {trust.expected(oldest):.3f}, expected {TRUSTED_FROM:.2f}, when they are "
            f"{oldest:.0f} frames old, as with {computed_hz:.1f} computed a second; those of more than {reach:.1f} frames are marked "
            f"stale: {enough}"
        )

    def _tell(self, source: str, why: str) -> None:
        """Say once for a source that its masks are stale."""
        known = self._sources[source]
        if not known.told:
            known.told = True
            log.info(f"{source}: {why}")

    def _is_next(self, known: _Of, now_s: float) -> bool:
        """Whether no other source that is alive has waited longer for the engine."""
        alive = [other for other in self._sources.values() if now_s - other.seen_s < _SILENT_S]
        return known.asked_s <= min(other.asked_s for other in alive)


def _add_step(path: list[Image], grey: Image) -> None:
    """Lengthen the way, with steps twice as long where it has too many."""
    path.append(grey)
    if len(path) > _MOST_STEPS:
        del path[1::2]


def _small(image_hwc: Image) -> tuple[Image, Image]:
    """The picture in gray at the size that motion is found at, and its tiles."""
    height, width = image_hwc.shape[:2]
    # Motion needs a few pixels in each direction.
    size_wh = max(16, min(width, _MOTION_WIDTH)), max(16, round(height * min(1.0, _MOTION_WIDTH / width)))
    small = cv2.resize(image_hwc, size_wh, interpolation=cv2.INTER_AREA if width < 1000 else cv2.INTER_LINEAR)
    grey = np.asarray(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), np.uint8)
    return grey, np.asarray(cv2.resize(grey, _TILES_WH, interpolation=cv2.INTER_AREA), np.uint8)


def _is_cut(tiles: Image, before: Image) -> bool:
    return float(cv2.mean(cv2.absdiff(tiles, before))[0]) > _CUT_LEVELS


def _is_same(tiles: Image, tiles_before: Image, grey: Image, grey_before: Image) -> bool:
    if int(cv2.absdiff(tiles, tiles_before).max()) >= _SAME_TILE_LEVELS:
        return False
    return float(cv2.mean(cv2.absdiff(grey, grey_before))[0]) < _SAME_LEVELS
