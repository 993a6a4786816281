"""The zones of a run, which people may change while it goes on, and the file that keeps them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.bundles.whole_file import write_whole
from pipeline.errors import OptionError
from pipeline.results.zone_options import MOST_POINTS, Point, Zone, checked_zone, parse_zones

MOST_ZONES = 32
"""So many zones can be drawn."""

_DIGITS = 4  # a ten-thousandth of a frame is less than a pixel of most
_HEAD = """\
# Zones as they were drawn on the page. Shares of the frame from the top left; the same form as in a file for --config.
"""


class ZoneBook:
    """Changes zones one by one; used by one thread.

    Args:
        zones: those at the beginning.
        path: of the file that keeps them from run to run; None: there is none.
        apply: gives the run its zones, at once.

    Attributes:
        zones: as they are now.
        file_name: of the file, without its folder; empty: there is none.
    """

    def __init__(self, zones: Sequence[Zone], path: Path | None, apply: Callable[[tuple[Zone, ...]], None]) -> None:
        self.zones = tuple(zones)
        self.file_name = "" if path is None else path.name
        self._path = path
        self._apply = apply

    def entries(self) -> list[dict[str, Any]]:
        """The zones as JSON has them: name, points as [x, y], limit or None."""
        return [{"name": zone.name, "points": zone.points, "above": zone.above} for zone in self.zones]

    def put(self, was: object, name: object, points: object, above: object) -> None:
        """Add a zone, or put it into the place of another; what comes from outside may be of any type.

        Args:
            was: the name of the zone that it replaces; None: it is a new one.
            name: its name.
            points: its corners, [x, y] each, as shares of the frame.
            above: its limit; None: it has none.

        Raises:
            OptionError: it is no zone, or cannot be kept; then nothing is changed.
        """
        zone = _zone(name, points, above)
        others = [one.name for one in self.zones if one.name != was]
        if zone.name in others:
            raise OptionError(f"zone {zone.name}: expected a name of its own, got that of another zone")
        if was is None:
            if len(self.zones) >= MOST_ZONES:
                raise OptionError(
                    f"zone {zone.name}: expected at most {MOST_ZONES} zones, got one more: delete another"
                )
            self._set((*self.zones, zone))
        else:
            at = self._position(was)
            self._set((*self.zones[:at], zone, *self.zones[at + 1 :]))

    def delete(self, name: object) -> None:
        """Take a zone away.

        Raises:
            OptionError: there is none of this name, or that it is gone cannot be kept; then nothing is changed.
        """
        at = self._position(name)
        self._set((*self.zones[:at], *self.zones[at + 1 :]))

    def _position(self, name: object) -> int:
        for at, zone in enumerate(self.zones):
            if zone.name == name:
                return at
        raise OptionError(f"zone {name!s:.40}: expected a zone that is there, got one that was renamed or deleted")

    def _set(self, zones: tuple[Zone, ...]) -> None:
        if self._path is not None:
            write_zones(self._path, zones)
        self.zones = zones
        self._apply(zones)


def read_zones(path: Path) -> tuple[Zone, ...]:
    """The zones in a file; one that is not there yet has none.

    Raises:
        OptionError: it is another file, or cannot be made where it is named.
    """
    from pipeline.yaml_file import read_yaml  # few runs read YAML, and all would wait for its package

    if not os.path.lexists(path):
        if not path.parent.is_dir():
            raise OptionError(f"--zones-file {path}: expected a folder that is there, got {path.parent}")
        return ()
    entries = read_yaml(path, "--zones-file", as_text=True)
    if entries is None:
        return ()
    if not isinstance(entries, dict) or not entries.keys() <= {"zone", "zone-above"}:
        raise OptionError(f"--zones-file {path}: expected zone and zone-above alone, got something else")
    lists = [entries.get(key) or [] for key in ("zone", "zone-above")]
    texts, limits = ([value] if isinstance(value, str) else value for value in lists)
    if not all(isinstance(value, list) and all(isinstance(text, str) for text in value) for value in (texts, limits)):
        raise OptionError(f"--zones-file {path}: expected lists of texts such as door=0.1,0.2 0.5,0.2 0.5,0.9")
    try:
        return parse_zones(texts, limits)
    except OptionError as error:
        raise OptionError(f"--zones-file {path}: {error}") from error


def write_zones(path: Path, zones: Sequence[Zone]) -> None:
    """Keep zones in a file that is whole at any moment.

    Raises:
        OptionError: it cannot be written, or would be too large to be read again.
    """
    import yaml

    from pipeline.yaml_file import LIMIT_BYTES

    entries = {
        "zone": [f"{zone.name}={' '.join(f'{_short(x)},{_short(y)}' for x, y in zone.points)}" for zone in zones],
        "zone-above": [f"{zone.name}={_short(zone.above)}" for zone in zones if zone.above is not None],
    }
    text = _HEAD + yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=10_000)
    content = text.encode()
    if len(content) > LIMIT_BYTES:
        raise OptionError(f"zones: expected a file of at most {LIMIT_BYTES} bytes, got {len(content)}: delete a zone")
    try:
        write_whole(path, content, to_disk=True)  # few, by hand, and small: the page's thread waits for the disk
    except OSError as error:
        raise OptionError(f"zones: {path.name} cannot be written ({error.strerror}): nothing was changed") from error


def _short(value: float) -> str:
    """A share as `parse_zones` reads it: no exponent."""
    return f"{value:.12f}".rstrip("0").rstrip(".")


def _zone(name: object, points: object, above: object) -> Zone:
    if not isinstance(name, str):
        raise OptionError(f"zone: expected a name, got {name!r:.60}")
    if not isinstance(points, list) or len(points) > MOST_POINTS:
        raise OptionError(f"zone {name:.40}: expected a list of at most {MOST_POINTS} corners")
    corners: list[Point] = []
    for point in points:
        if not (isinstance(point, list) and len(point) == 2 and all(map(_is_number, point))):
            raise OptionError(f"zone {name:.40}: expected corners as [x, y], got {point!r:.60}")
        corners.append((round(float(point[0]), _DIGITS), round(float(point[1]), _DIGITS)))
    zone = checked_zone(name, corners, "zone")
    if above is None:
        return zone
    if not _is_number(above) or not 0 < round(float(above), _DIGITS) <= 1:  # type: ignore[arg-type]  # it was looked at
        raise OptionError(f"zone {name}: expected a limit above 0 and up to 1, got {above!r:.60}")
    return replace(zone, above=round(float(above), _DIGITS))  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    # JSON as Python reads it has whole numbers of any length, NaN and infinities; and True is a whole number.
    return type(value) in (int, float) and -1e6 < value < 1e6 and math.isfinite(value)  # type: ignore[operator, arg-type]
