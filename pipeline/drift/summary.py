"""What a bundle knows of the frames that it was calibrated or verified on, and how far another frame is from them.

    {"format": 1, "frames": 32, "origin": "photographs of the package", "limit": 4.1,
     "figures": {"brightness": [0.45, 0.09, 0.11], …}}

Of each figure the median, and the deviation below and above it. A frame's distance is that of its farthest figure, in these deviations.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.bundle import DRIFT_NAME, Bundle
from pipeline.drift.figures import FIGURES, SPREADS, WORDS
from pipeline.errors import BundleError

FORMAT = 1
FEWEST_FRAMES = 8
"""Of fewer frames nothing can be said of what is usual."""

# As the 10th percentile of a normal distribution is from its middle.
_TENTH = 1.2816
# The least that counts as a deviation, as a share of that of photographs of all kinds: frames of one scene in one light are nearly
# alike, and the next day's would be unlike them.
_LEAST = 1 / 3
# The limit is beyond 95 % of the frames, each measured by all others, with a margin: in a quarter more lie 96 to 99 % of frames that
# were not looked at (docs/drift.md).
_WITHIN, _MARGIN = 0.95, 1.25
# Of frames of one scene that would be next to nothing: then it is what photographs of all kinds have.
_LEAST_LIMIT = 4.0


@dataclass(frozen=True, slots=True)
class Distance:
    """How far a frame is.

    Attributes:
        value: in deviations of its farthest figure, 0 or more.
        words: what that figure says of the frame: "darker".
    """

    value: float
    words: str


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of some frames.

    Attributes:
        frames: how many.
        origin: what they are: "photographs of the package".
        middle: (12,) their median.
        below: (12,) deviation below it.
        above: (12,) deviation above it.
        limit: a distance beyond it is unlike them.
    """

    frames: int
    origin: str
    middle: NDArray[np.float64]
    below: NDArray[np.float64]
    above: NDArray[np.float64]
    limit: float

    @classmethod
    def of(cls, figures_nf: NDArray[np.float64], origin: str) -> Summary:
        """Sum up frames by their figures, (N, 12), N at least ``FEWEST_FRAMES``."""
        spreads = [_spread(np.delete(figures_nf, index, 0)) for index in range(len(figures_nf))]
        left_out = [_distances(one, *spread).max() for one, spread in zip(figures_nf, spreads, strict=True)]
        limit = max(_LEAST_LIMIT, _MARGIN * float(np.quantile(left_out, _WITHIN)))
        return cls(len(figures_nf), origin, *_spread(figures_nf), limit)

    def distance(self, figures: NDArray[np.float64]) -> Distance:
        """How far a frame with these figures, (12,), is."""
        distances = _distances(figures, self.middle, self.below, self.above)
        farthest = int(distances.argmax())
        is_above = bool(figures[farthest] >= self.middle[farthest])
        return Distance(float(distances[farthest]), WORDS[FIGURES[farthest]][is_above])

    def to_json(self) -> str:
        """In the form of the bundle's file."""
        rows = zip(FIGURES, self.middle, self.below, self.above, strict=True)
        figures = {name: [round(float(value), 5) for value in row] for name, *row in rows}
        entries = {"format": FORMAT, "frames": self.frames, "origin": self.origin, "limit": round(self.limit, 4)}
        return json.dumps(entries | {"figures": figures}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def in_bundle(cls, bundle: Bundle) -> Summary | None:
        """That of a bundle; None if it has none.

        Raises:
            BundleError: it is of another form, or cannot be read.
        """
        if DRIFT_NAME not in bundle.manifest.files:
            return None
        path = bundle.folder / DRIFT_NAME
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise BundleError(f"{path}: cannot be read ({error.strerror}): compile the bundle again") from error
        return cls.from_json(text, str(path))

    @classmethod
    def from_json(cls, text: str, where: str) -> Summary:
        """Read the bundle's file.

        Raises:
            BundleError: it is of another form.
        """
        try:
            entries = json.loads(text)
            if entries["format"] != FORMAT or list(entries["figures"]) != list(FIGURES):
                raise ValueError(f"format {entries['format']}")
            rows = np.array([entries["figures"][name] for name in FIGURES], np.float64)
            limit, frames, origin = float(entries["limit"]), int(entries["frames"]), str(entries["origin"])
            if rows.shape != (len(FIGURES), 3) or not np.isfinite(rows).all() or not (rows[:, 1:] > 0).all():
                raise ValueError("figures that are no numbers")
            if not 0 < limit < math.inf:
                raise ValueError(f"a limit of {limit}")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise BundleError(
                f"{where}: expected a summary of frames of format {FORMAT}, got another ({error}): compile the bundle again"
            ) from error
        return cls(frames, origin, rows[:, 0], rows[:, 1], rows[:, 2], limit)


def _spread(figures_nf: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The median of each figure, and the deviations below and above it."""
    low, middle, high = np.quantile(figures_nf, (0.1, 0.5, 0.9), axis=0)
    least = _LEAST * SPREADS
    return middle, np.maximum((middle - low) / _TENTH, least), np.maximum((high - middle) / _TENTH, least)


def _distances(
    figures: NDArray[np.float64], middle: NDArray[np.float64], below: NDArray[np.float64], above: NDArray[np.float64]
) -> NDArray[np.float64]:
    return np.abs(figures - middle) / np.where(figures < middle, below, above)
