"""How much of each zone a class covers, and when that is an event."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.frames.frame import Frame, Image
from pipeline.render.look import subject_level
from pipeline.results.regions import Reading
from pipeline.results.zone_options import Zone, ZoneOptions
from pipeline.shapes.found import ClassInZone, Event, EventKind

_OUT_AT = 0.5
"""A class has left where it covers less than this part of the share at which it enters."""

_BELOW_AT = 0.9
"""A class is below a limit where it covers less than this part of it."""

_SAME_S = 1e-6  # times of frames are sums of fractions


@dataclass(slots=True)
class Switch:
    """On or off, by a value that must stay beyond a limit for some time: one that trembles around it changes nothing.

    Attributes:
        on_at: on from this value on.
        off_below: off below this one, which is not above ``on_at``.
        dwell_s: for how long.
        is_on: what it is now.
        since_s: since when, in seconds; of one that was never on None.
    """

    on_at: float
    off_below: float
    dwell_s: float
    is_on: bool = False
    since_s: float | None = None
    _asked_s: float | None = None

    def update(self, value: float, now_s: float) -> float | None:
        """Take the next value.

        Returns:
            None while all stays as it is, else how many seconds it was as before; 0 where that is not known.
        """
        wants_change = value < self.off_below if self.is_on else value >= self.on_at
        if not wants_change:
            self._asked_s = None
            return None
        if self._asked_s is None or now_s < self._asked_s:  # time goes back where a source begins anew
            self._asked_s = now_s
        if now_s - self._asked_s < self.dwell_s - _SAME_S:
            return None
        lasted_s = 0.0 if self.since_s is None else max(0.0, self._asked_s - self.since_s)
        self.is_on, self.since_s, self._asked_s = not self.is_on, self._asked_s, None
        return lasted_s


class Zones:
    """Watches the zones of one source.

    Args:
        options: which, and when something counts.
        numbers: hands out the ends of events' ids.
    """

    def __init__(self, options: ZoneOptions, numbers: Iterator[str]) -> None:
        self._options = options
        self._numbers = numbers
        self._size_hw: tuple[int, int] | None = None
        self._inside: list[tuple[Image, int]] = []
        self._present: dict[tuple[str, int], Switch] = {}
        self._above: dict[tuple[str, int], Switch] = {}

    def update(
        self, frame: Frame, reading: Reading, options: ZoneOptions, *, may_change: bool
    ) -> tuple[dict[str, dict[str, ClassInZone]], list[Event]]:
        """The areas in the next frame, and what happened.

        Args:
            frame: with its mask.
            reading: how the mask is read.
            options: which zones, from this frame on; what was in one that is there no more has left it.
            may_change: the frame can be an event; else there are areas alone.
        """
        assert frame.mask is not None
        mask = np.ascontiguousarray(frame.mask)
        events: list[Event] = []
        if options is not self._options:
            events += self._exchange(options, frame, reading)
        if self._size_hw != mask.shape:
            self._size_hw = mask.shape[0], mask.shape[1]
            self._inside = [_drawn(zone, self._size_hw) for zone in self._options.zones]
        found: dict[str, dict[str, ClassInZone]] = {}
        for zone, (inside, pixels) in zip(self._options.zones, self._inside, strict=True):
            found[zone.name] = {}
            for number, count in _counts(mask, inside, reading).items():
                area = count / pixels
                if may_change:
                    events += self._changes(zone, number, area, frame, reading)
                present, above = self._present.get((zone.name, number)), self._above.get((zone.name, number))
                found[zone.name][reading.name(number)] = ClassInZone(
                    area, bool(present and present.is_on), above.is_on if above else None
                )
        return found, events

    def _changes(self, zone: Zone, number: int, area: float, frame: Frame, reading: Reading) -> Iterator[Event]:
        options, key = self._options, (zone.name, number)
        switches: list[tuple[Switch, EventKind, EventKind]] = []
        if key not in self._present:
            self._present[key] = Switch(options.enter, options.enter * _OUT_AT, options.dwell_s)
        switches.append((self._present[key], "enter", "leave"))
        if zone.above is not None:
            if key not in self._above:
                self._above[key] = Switch(zone.above, zone.above * _BELOW_AT, options.dwell_s)
            switches.append((self._above[key], "above", "below"))
        for switch, on, off in switches:
            lasted_s = switch.update(area, frame.pts_s)
            if lasted_s is None:
                continue
            kind = on if switch.is_on else off
            yield self._event(kind, (zone.name, number), frame, reading, area, None if switch.is_on else lasted_s)

    def _exchange(self, options: ZoneOptions, frame: Frame, reading: Reading) -> Iterator[Event]:
        """Go on with other zones: who was told that something came must be told that it is gone, and a new limit is another one."""
        before = {zone.name: zone.above for zone in self._options.zones}
        now = {zone.name: zone.above for zone in options.zones}
        self._options, self._size_hw = options, None
        same_limit = {name for name in now if now[name] == before.get(name)}
        kept: tuple[tuple[dict[tuple[str, int], Switch], Collection[str], EventKind], ...] = (
            (self._above, same_limit, "below"),
            (self._present, now, "leave"),
        )
        for switches, names, off in kept:
            for key in [key for key in switches if key[0] not in names]:
                switch = switches.pop(key)
                if switch.is_on:
                    lasted_s = max(0.0, frame.pts_s - (switch.since_s or 0.0))
                    yield self._event(off, key, frame, reading, 0.0, lasted_s)

    def _event(
        self,
        kind: EventKind,
        key: tuple[str, int],
        frame: Frame,
        reading: Reading,
        area: float,
        lasted_s: float | None,
    ) -> Event:
        return Event(
            next(self._numbers),
            kind,
            key[0],
            reading.name(key[1]),
            frame.source,
            frame.captured_utc,
            frame.pts_s,
            frame.index,
            area,
            lasted_s,
        )


def event_ids() -> Iterator[str]:
    """Ids that no other run gives, in order."""
    run = secrets.token_hex(4)
    return (f"{run}-{number:08d}" for number in itertools.count(1))


def _drawn(zone: Zone, size_hw: tuple[int, int]) -> tuple[Image, int]:
    """(H, W) uint8, 255 where a pixel's middle is in the zone, and how many that are; ``cv2.fillPoly`` adds those at its edge."""
    height, width = size_hw
    middles_x = (np.arange(width) + 0.5) / width
    middles_y = (np.arange(height) + 0.5) / height
    inside: NDArray[np.bool_] = np.zeros(size_hw, np.bool_)
    for (x, y), (u, v) in zip(zone.points, (*zone.points[1:], zone.points[0]), strict=True):
        # What lies to the right of an odd number of sides is inside.
        rows = np.flatnonzero((middles_y >= min(y, v)) & (middles_y < max(y, v)))
        if rows.size:
            side_x = x + (middles_y[rows] - y) * ((u - x) / (v - y))
            inside[rows] ^= middles_x >= side_x[:, None]
    return inside.astype(np.uint8) * 255, max(1, int(np.count_nonzero(inside)))


def _counts(mask: Image, inside: Image, reading: Reading) -> dict[int, int]:
    """How many pixels of each class but a background are in a zone: of all that have a name, and of others that are there."""
    histogram = cv2.calcHist([mask], [0], inside, [256], [0, 256]).ravel()
    if reading.task == "binary":
        return {1: int(histogram[subject_level(reading.threshold) :].sum())}
    numbers = range(reading.first, 256)
    return {number: int(histogram[number]) for number in numbers if number < len(reading.names) or histogram[number]}
