"""A target rate on a slow engine: between its masks the last one is moved with the picture.

The engine works on one frame at a time on a thread of its own. Every other frame gets the mask that was computed last, warped by
the optical flow from that frame to this one, or as it is where nothing moved; a frame that does not differ is not computed anew.
What that costs is measured on the way: for the frame that the engine works on, masks are warped too, and compared with the one that
comes: the last computed one, and the one before, which is as old as masks get before the next one comes.
Where they do not agree, the mask that was computed last stands as it is, and the frame says that it is stale, until they do again.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.bundle import Task
from pipeline.errors import OptionError, ServerAwayError
from pipeline.frames.frame import Frame, Image
from pipeline.masks.agreement import TRUSTED_FROM, Trust, agreement
from pipeline.masks.memory import Memories
from pipeline.stages.prefetch import Prefetch
from pipeline.stages.stage_timer import StageTimer
from pipeline.terminal import logger_of

if TYPE_CHECKING:
    from pipeline.engines.base import Computed, Engine
    from pipeline.sources.base import Source

log = logger_of(__name__)

# Flow is found at this width: enough for edges of a mask that a network of 320 pixels made.
_FLOW_WIDTH = 256
# A picture whose gray differs by less than this, on average and anywhere in its tiles, is the same one.
_SAME_LEVELS, _SAME_TILE_LEVELS = 1.0, 3.0
# A step of the mean gray of this much is another scene, whose mask cannot be had by moving the last one.
_CUT_LEVELS = 25.0
_TILES_WH = (32, 18)
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
        moved: frames that got a warped mask.
        unchanged: frames that got the last mask as it was, since the picture had not changed.
        stale: frames that got it as it was though the picture had changed, since moving it would not have helped.
        agreements: IoU of warped masks, one as old as they begin and one as old as they get, with the one that was computed for the
            same frame; of the last 1000.
    """

    computed: int = 0
    moved: int = 0
    unchanged: int = 0
    stale: int = 0
    agreements: deque[float] = field(default_factory=lambda: deque(maxlen=1000))

    def line(self) -> str:
        """All of it, for the user."""
        cost = f"; moved masks agree with computed ones: IoU {np.mean(self.agreements):.4f}" if self.agreements else ""
        return (
            f"{self.computed} masks computed, moved for {self.moved} frames, kept for {self.unchanged}, "
            f"stale for {self.stale}{cost}"
        )


@dataclass(slots=True)
class _Key:
    """The last frame of a source that was computed."""

    grey: Image
    tiles: Image
    captured_ns: int
    mask: Image
    not_finite: int = 0


class _Asked(NamedTuple):
    """What the engine works on: a frame, its grays, and the last masks moved to it."""

    frame: Frame
    grey: Image
    tiles: Image
    moved: tuple[Image, ...] = ()


@dataclass(slots=True)
class _Of:
    """What is known of one source."""

    key: _Key | None = None
    before: _Key | None = None  # the key before it, of the same scene
    asked_s: float = 0.0
    seen_s: float = 0.0
    trust: Trust = field(default_factory=Trust)
    told: bool = False


class Governor:
    """Gives every frame a mask, at a target rate; logs for each source the first time that its masks are stale.

    Args:
        rate_hz: frames per second to keep, over all sources; what comes faster waits, or is dropped where it is live.
        task: of the masks.
        live: names of the sources whose masks are stale after 2 s.
    """

    def __init__(self, rate_hz: float, task: Task, *, live: Collection[str] = ()) -> None:
        self.rate_hz = rate_hz
        self.reuse = Reuse()
        self._task = task
        self._live = frozenset(live)  # replaced and not changed
        self._sources: dict[str, _Of] = {}
        self._gone: deque[str] = deque()
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._asked: _Asked | None = None
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
        known = self._sources.setdefault(frame.source, _Of())
        known.seen_s = now_s
        if self._asked is not None and done.ready():
            self._take(done)
        grey, tiles = _small(frame.image)
        key = known.key
        is_new = key is None or key.mask.shape != frame.size_hw or _is_cut(tiles, key.tiles)
        if is_new:
            if self._asked is not None:
                self._take(done)
            ask(frame)
            self._asked, known.asked_s = _Asked(frame, grey, tiles), now_s
            known.key = None  # of another scene
            key = self._take(done)
            if key is None:
                frame.mask, frame.stale = np.zeros(frame.size_hw, np.uint8), True
                self.reuse.stale += 1
            else:
                frame.mask, frame.not_finite = key.mask.copy(), key.not_finite
            return
        assert key is not None
        frame.not_finite = key.not_finite  # a wrong mask is wrong where it is moved to
        if _is_same(tiles, key.tiles, grey, key.grey):
            frame.mask = key.mask.copy()
            self.reuse.unchanged += 1
            return
        age_ns = frame.captured_ns - key.captured_ns
        is_old = frame.source in self._live and age_ns > _OLD_NS
        if is_old:
            self._tell(frame.source, f"the newest mask is {age_ns / 1e9:.1f} s old")
        frame.stale = is_old or not known.trust.holds
        is_turn = self._asked is None and self._is_next(known, now_s)
        if is_turn or not frame.stale:
            with timer("reuse"):
                frame.mask = moved = self._moved(key, grey)
            if is_turn:
                ask(frame)
                known.asked_s = now_s
                compared = [moved.copy()]  # who gets the frame may do with its mask as they like
                if known.before is not None and not _is_cut(tiles, known.before.tiles):
                    compared.append(self._moved(known.before, grey))
                self._asked = _Asked(frame, grey, tiles, tuple(compared))
        if frame.stale:
            frame.mask = key.mask.copy()
            self.reuse.stale += 1
        else:
            self.reuse.moved += 1

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
        count = 0 if not_finite is None else int(not_finite[0])
        key = _Key(asked.grey, asked.tiles, asked.frame.captured_ns, mask, count)
        self._computed(replace(asked.frame, mask=mask, view=None, not_finite=count, stale=False))
        known.before, known.key = known.key, key
        self.reuse.computed += 1
        if asked.moved:
            agreed = float(np.mean([agreement(moved, mask, self._task) for moved in asked.moved]))
            self.reuse.agreements.append(agreed)
            known.trust.add(agreed)
            if not known.trust.holds:
                self._tell(
                    asked.frame.source,
                    f"moved masks agree with computed ones by IoU {known.trust.recent:.2f}, expected {TRUSTED_FROM:.2f}",
                )
        return key

    def _tell(self, source: str, why: str) -> None:
        """Say once for a source that its masks are stale."""
        known = self._sources[source]
        if not known.told:
            known.told = True
            log.info(
                f"{source}: {why}: the newest computed mask stands and is marked stale: "
                "compile a smaller network (--imgsz), lower --fps, or take a GPU"
            )

    def _is_next(self, known: _Of, now_s: float) -> bool:
        """Whether no other source that is alive has waited longer for the engine."""
        alive = [other for other in self._sources.values() if now_s - other.seen_s < _SILENT_S]
        return known.asked_s <= min(other.asked_s for other in alive)

    def _moved(self, key: _Key, grey: Image) -> Image:
        """The computed mask, moved as the picture has moved since."""
        # From this frame back to the computed one: for each pixel, where it was.
        flow = self._flow.calc(grey, key.grey, np.zeros((*grey.shape, 2), np.float32))
        height, width = key.mask.shape
        small_height, small_width = grey.shape
        # The mask is warped at the flow's size times two at most: it has no finer edges than its network.
        size_wh = min(width, 2 * small_width), min(height, 2 * small_height)
        scale = np.array((size_wh[0] / small_width, size_wh[1] / small_height), np.float32)
        there = cv2.resize(flow, size_wh, interpolation=cv2.INTER_LINEAR) * scale + _positions(size_wh)
        nearest = self._task == "classes"
        small = cv2.resize(key.mask, size_wh, interpolation=cv2.INTER_NEAREST if nearest else cv2.INTER_AREA)
        way = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
        warped = cv2.remap(small, there[..., 0], there[..., 1], way, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(cv2.resize(warped, (width, height), interpolation=way), np.uint8)


_POSITIONS: dict[tuple[int, int], NDArray[np.float32]] = {}


def _positions(size_wh: tuple[int, int]) -> NDArray[np.float32]:
    """(h, w, 2): x and y of each pixel."""
    if size_wh not in _POSITIONS:
        _POSITIONS.clear()
        grid = np.meshgrid(np.arange(size_wh[0], dtype=np.float32), np.arange(size_wh[1], dtype=np.float32))
        _POSITIONS[size_wh] = np.stack(grid, axis=-1)
    return _POSITIONS[size_wh]


def _small(image_hwc: Image) -> tuple[Image, Image]:
    """The picture in gray at the size that flow is found at, and its tiles."""
    height, width = image_hwc.shape[:2]
    # Flow needs a few pixels in each direction.
    size_wh = max(16, min(width, _FLOW_WIDTH)), max(16, round(height * min(1.0, _FLOW_WIDTH / width)))
    small = cv2.resize(image_hwc, size_wh, interpolation=cv2.INTER_AREA if width < 1000 else cv2.INTER_LINEAR)
    grey = np.asarray(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), np.uint8)
    return grey, np.asarray(cv2.resize(grey, _TILES_WH, interpolation=cv2.INTER_AREA), np.uint8)


def _is_cut(tiles: Image, before: Image) -> bool:
    return float(cv2.mean(cv2.absdiff(tiles, before))[0]) > _CUT_LEVELS


def _is_same(tiles: Image, tiles_before: Image, grey: Image, grey_before: Image) -> bool:
    if int(cv2.absdiff(tiles, tiles_before).max()) >= _SAME_TILE_LEVELS:
        return False
    return float(cv2.mean(cv2.absdiff(grey, grey_before))[0]) < _SAME_LEVELS
