"""What each frame's mask says, found once for all outputs that want it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.frames.frame import Frame, SourceInfo
from pipeline.render.overlay import Renderer
from pipeline.results.zone_options import Zone, ZoneOptions
from pipeline.sources.base import Source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.results.tracker import Tracker
    from pipeline.results.zones import Zones
    from pipeline.shapes.found import Found


class Finder:
    """Call it with a frame that has its mask: it finds what is there, once, and keeps it in ``frame.found``.

    Frames of a source come in order; each is given to it, or numbers and events miss what was in it.

    Args:
        renderer: its look's threshold and palette say what counts; they may change while it runs.
        classes: names of the network's classes.
        infos: the sources. Regions are followed, and events told, where frames follow each other: not in a folder of pictures.
        zones: what is watched.
    """

    def __init__(
        self,
        renderer: Renderer,
        classes: tuple[str, ...],
        infos: Collection[SourceInfo],
        zones: ZoneOptions = ZoneOptions(),  # noqa: B008 - frozen
    ) -> None:
        self._renderer = renderer
        self._classes = classes
        self._options = zones
        self._numbers: Iterator[str] | None = None
        self._followed: set[str] = set()
        self._trackers: dict[str, Tracker] = {}
        self._zones: dict[str, Zones] = {}
        for info in infos:
            self._follow(info)

    def _follow(self, info: SourceInfo) -> None:
        if info.live or info.fps is not None:
            self._followed.add(info.name)

    def join(self, source: Source) -> None:
        """Follow what is in the frames of one more source."""
        self._follow(source.info)

    def leave(self, source: Source) -> None:
        """Forget what was in its frames."""
        self._followed.discard(source.info.name)
        self._trackers.pop(source.info.name, None)
        self._zones.pop(source.info.name, None)

    @property
    def is_binary(self) -> bool:
        """Whether masks hold probabilities."""
        return self._renderer.task == "binary"

    @property
    def zones(self) -> tuple[Zone, ...]:
        """What is watched."""
        return self._options.zones

    def watch(self, zones: tuple[Zone, ...]) -> None:
        """Watch other zones from the next frame on; from any thread.

        Args:
            zones: their names differ.
        """
        self._options = replace(self._options, zones=zones)

    @property
    def threshold(self) -> float:
        """The probability from which a pixel is inside, where masks hold such."""
        return self._renderer.look.threshold

    @property
    def classes(self) -> list[str]:
        """Names of the classes that have regions and can be in zones, in the order of ``Region.label``."""
        first = 1 if not self.is_binary and self._renderer.look.palette.transparent_class_0 else 0
        return list(self._classes[first:])

    @property
    def all_classes(self) -> list[str]:
        """Names of the values of class maps, from 0 on."""
        return ["background", *self._classes] if self.is_binary else list(self._classes)

    def __call__(self, frame: Frame) -> Found:
        """What the frame's mask says."""
        if frame.found is not None:
            return frame.found
        if frame.mask is None:
            raise ValueError(f"{frame!r} has no mask yet")
        from pipeline.results.regions import Reading, classes_of  # only now: most outputs ask for nothing
        from pipeline.shapes.found import Found

        look = self._renderer.look
        reading = Reading(
            self._renderer.task, self._classes, look.threshold, has_background=look.palette.transparent_class_0
        )
        classes = classes_of(frame.mask, reading)
        follows = frame.source in self._followed
        if follows:
            ids = iter(
                self._tracker(frame.source).update(
                    [region for found in classes for region in found.regions], frame.pts_s
                )
            )
            classes = [replace(found, regions=tuple(next(ids) for _ in found.regions)) for found in classes]
        options = self._options  # once: it is replaced between two frames and not within one
        # Of a mask that is wrong nothing is known to have come or gone.
        may_change = follows and not frame.not_finite
        zones, events = self._zones_of(frame.source, options).update(frame, reading, options, may_change=may_change)
        frame.found = Found(tuple(classes), zones, tuple(events))
        return frame.found

    def _tracker(self, source: str) -> Tracker:
        from pipeline.results.tracker import Tracker

        if source not in self._trackers:
            self._trackers[source] = Tracker()
        return self._trackers[source]

    def _zones_of(self, source: str, options: ZoneOptions) -> Zones:
        from pipeline.results.zones import Zones, event_ids

        if self._numbers is None:
            self._numbers = event_ids()
        if source not in self._zones:
            self._zones[source] = Zones(options, self._numbers)
        return self._zones[source]
