"""Where the flight recorder writes, and how much."""

from __future__ import annotations

from pipeline.quick_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class FlightOptions:
    """What ``--flight`` asks for.

    Attributes:
        folder: where the files go; it is made if it is not there.
        size_bytes: what they may take in all; the oldest are removed first.
        before_s: how much is kept of what was before an event, in seconds.
    """

    folder: str
    size_bytes: int = 512_000_000
    before_s: float = 5.0
