"""What is asked of the watch on the input."""

from __future__ import annotations

from typing import Literal

from pipeline.errors import OptionError
from pipeline.quick_dataclass import dataclass

When = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True)
class DriftOptions:
    """Which sources are watched, and where unlike frames go.

    Attributes:
        when: "auto": live sources, where the bundle knows what it was verified on; "on": all sources; "off": none.
        folder: for the frames that are farthest; None: they are not kept.

    Raises:
        OptionError: frames are to be kept and none are looked at.
    """

    when: When = "auto"
    folder: str | None = None

    def __post_init__(self) -> None:
        if self.folder is not None and self.when == "off":
            raise OptionError("--drift-frames: expected --drift on or auto beside it, got off")
