"""What a frame's mask says, as records: areas of classes, regions, zones, events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pipeline.shapes.region import Region

EventKind = Literal["enter", "leave", "above", "below"]


@dataclass(frozen=True, slots=True)
class ClassFound:
    """A class that is in the picture.

    Attributes:
        number: 1 is the subject of a network with one class; else the index, as in the mask.
        name: as the bundle calls it.
        area: the share of the frame that it covers, above 0 and up to 1.
        mean_probability: of its pixels, 0 to 1; None where the mask holds class numbers.
        regions: its connected parts, the largest first, without the smallest; none of a background.
    """

    number: int
    name: str
    area: float
    mean_probability: float | None
    regions: tuple[Region, ...]


@dataclass(frozen=True, slots=True)
class ClassInZone:
    """A class in a zone.

    Attributes:
        area: the share of the zone that it covers, 0 to 1.
        present: it has entered and not left.
        above: its area has risen above the zone's limit and not fallen below; None: the zone has none.
    """

    area: float
    present: bool
    above: bool | None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a zone.

    Attributes:
        id: no other event has it, of this run or another; those of a run are in order.
        kind: the class came into the zone, left it, or its area there crossed the zone's limit.
        zone: its name.
        class_name: of the class.
        source: the frame's, which shows no password.
        captured: when the frame was captured, UTC, ISO 8601.
        pts_s: the frame's presentation time in seconds.
        index: the frame's.
        area: the share of the zone that the class covers, 0 to 1.
        lasted_s: of "leave" and "below": how long it was there, or above; else None.
    """

    id: str
    kind: EventKind
    zone: str
    class_name: str
    source: str
    captured: str
    pts_s: float
    index: int
    area: float
    lasted_s: float | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """All that is found in a frame.

    Attributes:
        classes: those in the picture.
        zones: of each zone, by name, each class but a background, by name.
        events: what happened with this frame, in order.
    """

    classes: tuple[ClassFound, ...]
    zones: dict[str, dict[str, ClassInZone]] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
