"""The photographs of the package: real pictures of many kinds, to prove a network on where the user gives none.

Sources and licenses stand in ``calibration/sets/photographs/README.md``. A network is proven on those for "verification"; a search for
precisions looks at those for "search" alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal

from pipeline.frames.frame import Frame, SourceInfo
from pipeline.sources.base import Source
from pipeline.sources.picture_file import read_picture

FOLDER = Path(__file__).with_name("photographs")

Use = Literal["search", "verification"]


class PhotographSource(Source):
    """The photographs for one use, in the order of their names, as (H, W, 3) uint8 BGR frames."""

    def __init__(self, use: Use = "verification") -> None:
        self._paths = [FOLDER / name for name, for_use in _uses().items() if for_use == use]
        self.info = SourceInfo(
            name="photographs",
            description=f"{len(self._paths)} photographs of the package",
            frame_count=len(self._paths),
            paths=tuple(str(path) for path in self._paths),
        )

    def __iter__(self) -> Iterator[Frame]:
        for index, path in enumerate(self._paths):
            yield Frame(read_picture(path), index, float(index), self.info.name, path.stem)


@cache
def _uses() -> dict[str, str]:
    entries = json.loads((FOLDER / "sources.json").read_text(encoding="utf-8"))
    return {entry["file"]: entry["use"] for entry in sorted(entries, key=lambda entry: str(entry["file"]))}
