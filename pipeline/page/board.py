"""What the page tells beside the pictures: the sources, their last minutes, the classes in view and the settings, as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence

from pipeline.page.history import History
from pipeline.page.options import not_watched
from pipeline.render.controls import Controls
from pipeline.render.hud import LegendEntry
from pipeline.render.modes import MODES
from pipeline.stages.telemetry import Snapshot, State, Telemetry

_SAMPLE_EVERY_S = 1.0


class Board:
    """Made by the pipeline's thread, read by the page's event loop.

    Args:
        telemetries: of each source by the name that its frames carry.
        controls: the settings.
        about: what runs here, by name, such as {"model": "u2netp"}.
        read_only: viewers cannot change settings.
        outputs: which outputs take no frames now, and why.
        drift: how far a source's frames are from what was verified; None where that is not watched.

    Attributes:
        text: the newest state as JSON, for all viewers; made by `refresh`.
        viewers: how many there are.
        legends: the classes in the newest view of each source; lists are replaced and not changed.
    """

    def __init__(
        self,
        telemetries: Mapping[str, Telemetry],
        controls: Controls,
        about: Mapping[str, str],
        read_only: bool,
        outputs: Callable[[], list[str]] = list,
        drift: Callable[[str], Mapping[str, float] | None] = not_watched,
    ) -> None:
        self.outputs = outputs
        self.drift = drift
        self.text = ""
        self.viewers = 0
        self.legends: dict[str, list[LegendEntry]] = {name: [] for name in telemetries}
        self.read_only = read_only
        self.controls = controls
        self.history = History(len(telemetries))
        self._telemetries = dict(telemetries)
        self._about = dict(about)
        self._due_s = 0.0
        self.refresh()

    def snapshots(self) -> list[Snapshot]:
        """One of each source, in order."""
        return [telemetry.snapshot() for telemetry in self._telemetries.values()]

    def hello(self) -> str:
        """What a viewer gets first: all that does not change, and the last minutes."""
        return json.dumps(
            {
                "type": "hello",
                "sources": list(self._telemetries),
                "modes": list(MODES),
                "read_only": self.read_only,
                "about": self._about,
                "count": self.history.count,
                "history": self.history.all(),
            }
        )

    def refresh(self) -> None:
        """Look at everything anew, and take a sample each second."""
        snapshots = self.snapshots()
        now_s = time.monotonic()
        if now_s >= self._due_s:
            # Counted on from when it was due, so that late calls do not add up; not after a long sleep of the machine.
            self._due_s = max(self._due_s + _SAMPLE_EVERY_S, now_s + _SAMPLE_EVERY_S / 2)
            self.history.take(snapshots, now_s)
        state = {
            "type": "state",
            "settings": self.controls.settings(),
            "viewers": self.viewers,
            "outputs": self.outputs(),
            "count": self.history.count,
            "sample": self.history.last(),
            "sources": [
                _facts(snapshot, self.legends[name]) | {"drift": self.drift(name)}
                for name, snapshot in zip(self._telemetries, snapshots, strict=True)
            ],
        }
        self.text = json.dumps(state)


def unready(snapshots: Sequence[Snapshot], within_s: float, outputs: Sequence[str] = ()) -> str:
    """Which sources gave no frame within so many seconds, and where they stand, or only frames with scores that are not finite.

    Args:
        snapshots: of the sources.
        within_s: seconds.
        outputs: those that take no frames now, and why.

    Returns:
        Empty if all sources gave masks that can be used, and all outputs take them.
    """
    problems = list(outputs)
    for snapshot in snapshots:
        if snapshot.state is State.FAILED or snapshot.frame_s is None or snapshot.frame_s > within_s:
            late = "no frame yet" if snapshot.frame_s is None else f"no frame for {snapshot.frame_s:.1f} s"
            why = f": {snapshot.problem}" if snapshot.problem else ""
            problems.append(f"{snapshot.name}: {late} ({snapshot.state.value}{why})")
        elif snapshot.not_finite_s is not None and snapshot.not_finite_s > within_s:
            problems.append(f"{snapshot.name}: scores that are NaN or infinite for {snapshot.not_finite_s:.1f} s")
    return "; ".join(problems)


def _facts(snapshot: Snapshot, legend: Sequence[LegendEntry]) -> dict[str, object]:
    return {
        "state": snapshot.state.value,
        "state_s": round(snapshot.state_s, 1),
        "problem": snapshot.problem,
        "reconnects": snapshot.reconnects,
        "frames_in": snapshot.frames_in,
        "frames_out": snapshot.frames_out,
        "dropped": dict(snapshot.dropped),
        "in_flight": snapshot.in_flight,
        "not_finite": snapshot.not_finite,
        "rate_in_hz": round(snapshot.rate_in_hz, 2),
        "rate_out_hz": round(snapshot.rate_out_hz, 2),
        "age_ms": round(snapshot.age_ms, 1),
        "age_p50_ms": round(snapshot.age_p50_ms, 1),
        "age_p99_ms": round(snapshot.age_p99_ms, 1),
        "frame_s": None if snapshot.frame_s is None else round(snapshot.frame_s, 2),
        "frames_stale": snapshot.frames_stale,
        "stale": snapshot.stale,
        "legend": [(entry.name, _hex(entry.color), round(entry.percent, 2)) for entry in legend],
    }


def _hex(color: tuple[int, int, int] | None) -> str | None:
    return None if color is None else "#{2:02x}{1:02x}{0:02x}".format(*color)
