"""Zones as people write them: polygons as shares of the frame, limits, and how long something must last."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import field
from pathlib import Path

from pipeline.errors import OptionError
from pipeline.quick_dataclass import dataclass

Point = tuple[float, float]

MOST_POINTS = 100
"""So many corners a zone may have."""

_FORM = "NAME=x,y x,y x,y"
_NAME = re.compile(r"[\w-]{1,40}")
_NUMBER = re.compile(r"\d{0,6}\.?\d{0,12}")
# Narrower than a thousandth of a thousandth of the frame is nothing.
_LEAST_AREA = 1e-6


@dataclass(frozen=True, slots=True)
class Zone:
    """A part of the frame.

    Attributes:
        name: what events call it.
        points: its corners (x, y) in order, as shares of the frame's width and height, 0 to 1, from the top left; 3 or more.
        above: a limit on the share of it that a class covers, above 0 and up to 1; None: there is none.
    """

    name: str
    points: tuple[Point, ...]
    above: float | None = None


WHOLE_FRAME = Zone("frame", ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)))


@dataclass(frozen=True, slots=True)
class ZoneOptions:
    """What is watched, and when it counts.

    Attributes:
        zones: their names differ.
        enter: a class is in a zone from this share of it on, and out again below half of that; above 0 and up to 1.
        dwell_s: how long it must be so before it counts, in seconds.
        path: of the file that keeps zones that are drawn on the page; None: there is none.
    """

    zones: tuple[Zone, ...] = field(default=())
    enter: float = 0.01
    dwell_s: float = 0.5
    path: Path | None = None


def parse_zones(texts: Iterable[str], limits: Iterable[str] = ()) -> tuple[Zone, ...]:
    """Read zones and their limits.

    Args:
        texts: "NAME=x,y x,y x,y …" each.
        limits: "NAME=SHARE" each.

    Raises:
        OptionError: a zone is no polygon within the frame that does not cross itself, or a limit is of no zone.
    """
    above: dict[str, float] = {}
    for text in limits:
        name, _, share = text.partition("=")
        value = _number(share)
        if value is None or not 0 < value <= 1:
            raise OptionError(
                f"--zone-above {text}: expected NAME=SHARE with a share above 0 and up to 1, such as door=0.2"
            )
        above[name] = value
    zones = [_zone(text) for text in texts]
    names = [zone.name for zone in zones]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"--zone {name}: expected names that differ, got two zones of this name")
    if unknown := above.keys() - set(names):
        there = ", ".join(names) or "none"
        raise OptionError(
            f"--zone-above {sorted(unknown)[0]}: expected the name of a --zone, got another: there are {there}"
        )
    return tuple(Zone(zone.name, zone.points, above.get(zone.name)) for zone in zones)


def _zone(text: str) -> Zone:
    name, equals, corners = text.partition("=")
    if not equals or not _NAME.fullmatch(name):
        raise OptionError(
            f'--zone {text[:80]}: expected "{_FORM}" with a name of letters, digits, "_" and "-", such as '
            '"door=0.1,0.2 0.5,0.2 0.5,0.9"'
        )
    points: list[Point] = []
    for corner in corners.split():
        x, y = (_number(part) for part in [*corner.split(","), ""][:2])
        if x is None or y is None or corner.count(",") != 1:
            raise OptionError(f"--zone {name}: expected corners as x,y with blanks between them, got {corner[:40]!r}")
        points.append((x, y))
    return checked_zone(name, points, "--zone")


def checked_zone(name: str, points: Sequence[Point], what: str) -> Zone:
    """A zone without a limit.

    Args:
        name: letters, digits, "_" and "-".
        points: its corners.
        what: how messages call it, such as "--zone".

    Raises:
        OptionError: it is no polygon within the frame that does not cross itself.
    """
    if not _NAME.fullmatch(name):
        raise OptionError(f'{what} {name[:80]}: expected a name of 1 to 40 letters, digits, "_" and "-"')
    if not 3 <= len(points) <= MOST_POINTS:
        raise OptionError(f"{what} {name}: expected 3 to {MOST_POINTS} corners, got {len(points)}")
    for x, y in points:
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise OptionError(f"{what} {name}: expected shares of the frame, 0 to 1, got {x:g},{y:g}")
    if _crosses_itself(points):
        raise OptionError(
            f"{what} {name}: expected a line that does not cross or touch itself, got one that does: put the corners in order"
        )
    if abs(_area(points)) < _LEAST_AREA:
        raise OptionError(f"{what} {name}: expected an area, got corners on a line")
    return Zone(name, tuple(points))


def _number(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text) and text not in ("", ".") else None


def _area(points: Sequence[Point]) -> float:
    following = [*points[1:], points[0]]
    return sum(x * v - u * y for (x, y), (u, v) in zip(points, following, strict=True)) / 2


def _crosses_itself(points: Sequence[Point]) -> bool:
    sides = list(zip(points, [*points[1:], points[0]], strict=True))
    for (i, one), (j, other) in itertools.combinations(enumerate(sides), 2):
        if j - i == 1 or (i == 0 and j == len(sides) - 1):
            # Neighbors share a corner; they may not lie upon each other.
            first, second = (one, other) if j - i == 1 else (other, one)
            if _turn(*first, second[1]) == 0 and _is_back(first, second):
                return True
        elif _meet(one, other):
            return True
    return False


def _is_back(first: tuple[Point, Point], second: tuple[Point, Point]) -> bool:
    (a, b), (_, c) = first, second
    return (b[0] - a[0]) * (c[0] - b[0]) + (b[1] - a[1]) * (c[1] - b[1]) <= 0


def _turn(a: Point, b: Point, c: Point) -> int:
    value = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
    return (value > 0) - (value < 0)


def _meet(one: tuple[Point, Point], other: tuple[Point, Point]) -> bool:
    (a, b), (c, d) = one, other
    turns = _turn(a, b, c), _turn(a, b, d), _turn(c, d, a), _turn(c, d, b)
    if turns[0] != turns[1] and turns[2] != turns[3]:
        return True
    return any(
        turn == 0 and min(p[0], q[0]) <= r[0] <= max(p[0], q[0]) and min(p[1], q[1]) <= r[1] <= max(p[1], q[1])
        for turn, p, q, r in zip(turns, (a, a, c, c), (b, b, d, d), (c, d, a, b), strict=True)
    )
