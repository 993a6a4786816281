"""What can be set of masks while a run goes on: smoothing, edges and rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.masks.steady import Steady
from pipeline.render.controls import Setting

if TYPE_CHECKING:
    from pipeline.masks.governor import Governor


class Tuning:
    """The settings ``smooth``, ``refine_edges`` and ``fps``, as the options of these names have them.

    Args:
        steady: smooths, and draws to edges.
        governor: keeps a rate; None: every frame is computed, and there is no rate to set.
    """

    def __init__(self, steady: Steady, governor: Governor | None) -> None:
        self._steady, self._governor = steady, governor

    def settings(self) -> dict[str, Setting]:
        """By name, as they are now; a rate that is not kept is None."""
        rate_hz = None if self._governor is None else self._governor.rate_hz
        return {"smooth": self._steady.smooth, "refine_edges": self._steady.edges, "fps": rate_hz}

    def fixed(self) -> dict[str, str]:
        """Those that cannot be changed in this run, and why."""
        reasons = {}
        if not self._steady.has_edges:
            reasons["refine_edges"] = "masks of several classes have no soft edges"
        if self._governor is None:
            reasons["fps"] = "every frame is computed; start with --fps to keep a rate"
        return reasons

    def change(self, settings: Mapping[str, Setting]) -> None:
        """Set all of them, from the next frame on.

        Raises:
            OptionError: a value is none; then nothing is changed.
        """
        rate_hz, before_hz = settings["fps"], None if self._governor is None else self._governor.rate_hz
        if self._governor is not None and rate_hz is not None:
            self._governor.rate_hz = float(rate_hz)
        try:
            self._steady.change(str(settings["smooth"]), edges=bool(settings["refine_edges"]))
        except ValueError:
            if self._governor is not None and before_hz is not None:
                self._governor.rate_hz = before_hz
            raise
