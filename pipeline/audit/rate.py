"""How often a frame is audited, as ``--audit`` says it."""

from __future__ import annotations

import argparse
import re
from typing import Literal

from pipeline.quick_dataclass import dataclass

_UNITS_S = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_EXPECTED = "1/min, 2/h (units: s, min, h, d), 1/10 for every 10th frame, auto or off"


@dataclass(frozen=True, slots=True)
class Rate:
    """How often, for each source. One of the two is set.

    Attributes:
        frames: every so many frames that the engine computes.
        period_s: every so many seconds.
    """

    frames: int | None = None
    period_s: float | None = None


AuditRate = Rate | Literal["auto", "off"]
"""What can be asked for; "auto": ``AUTO`` where the run is live and there is something to compare with."""

AUTO = Rate(period_s=60.0)


def parse_rate(text: str) -> AuditRate:
    """An option's value as a rate, for argparse: "1/min", "2/h", "1/10", "auto", "off".

    Raises:
        ArgumentTypeError: it is none.
    """
    if text == "auto":
        return "auto"
    if text == "off":
        return "off"
    match = re.fullmatch(r"([1-9]\d{0,8})/(?:([1-9]\d{0,8})|([a-z]+))", text, re.ASCII)
    if match is not None:
        count, frames, unit = int(match[1]), match[2], match[3]
        if frames is not None and count == 1:
            return Rate(frames=int(frames))
        if unit in _UNITS_S:
            return Rate(period_s=_UNITS_S[unit] / count)
    raise argparse.ArgumentTypeError(f"expected {_EXPECTED}, got {text}")
