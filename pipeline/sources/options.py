"""What can be told to sources."""

from __future__ import annotations

import math
from typing import Literal

from pipeline.errors import OptionError
from pipeline.quick_dataclass import dataclass

Decode = Literal["auto", "cuda"]
"""What decodes: "cuda": NVDEC, and frames stay on the GPU. "auto": a Jetson's decoder where there is one, else FFmpeg on the CPU."""


@dataclass(frozen=True, slots=True)
class LiveOptions:
    """How long a live source waits, and for what.

    Attributes:
        stall_s: it is STALLED when no frame came for so long.
        reconnect_s: and is connected anew when nothing came for so long after that.
        connect_s: how long a new connection may be silent.
        refused_s: for so long what a peer says before the first frame is not final: a camera that begins answers 401 or a page, or
            has no device yet. 0: it is taken at its word.
        max_reconnects: give up after so many attempts in a row; None: never.
        backoff_s: upper limit of the first wait between attempts; it doubles with each, and the wait is drawn below it.
        backoff_max_s: where the doubling ends.
        steady_s: frames for so long, and the count of attempts starts again.
        on_corrupt: "drop" damaged frames or "pass" them on.
        tls_verify: of https and rtsps: "yes" verifies certificates by the system's authorities, a path (PEM) by those of that file or
            as one of them; "no" does not, and then no password is said.
        follow_redirects: go where a peer sends us, on other hosts too.
    """

    stall_s: float = 3.0
    reconnect_s: float = 5.0
    connect_s: float = 10.0
    refused_s: float = 0.0
    max_reconnects: int | None = None
    backoff_s: float = 0.5
    backoff_max_s: float = 30.0
    steady_s: float = 10.0
    on_corrupt: str = "drop"
    tls_verify: str = "yes"
    follow_redirects: bool = False

    def __post_init__(self) -> None:
        for name in ("stall_s", "reconnect_s", "connect_s", "backoff_s", "backoff_max_s", "steady_s"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise OptionError(f"{name}: expected seconds above 0, got {value}")
        if self.max_reconnects is not None and self.max_reconnects < 0:
            raise OptionError(f"max_reconnects: expected a number from 0, got {self.max_reconnects}")
        if self.on_corrupt not in ("drop", "pass"):
            raise OptionError(f"on_corrupt: expected drop or pass, got {self.on_corrupt}")

    @property
    def read_s(self) -> float:
        """How long a library may wait for data, so that a reader that was left behind ends soon after."""
        return self.stall_s + self.reconnect_s
