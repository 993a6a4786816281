"""What a monitoring system reads of the sources, in the text format of Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline.page.options import not_watched
from pipeline.stages.stage_timer import StageTimer
from pipeline.stages.telemetry import CORRUPT, NEWER, STOPPED, Snapshot, State

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_REASONS = (NEWER, CORRUPT, STOPPED)


class Metrics:
    """Reads everything anew at each scrape.

    Args:
        snapshots: gives one of each source.
        viewers: gives how many there are.
        timer: times per stage; None: there are none.
        build: labels of ``edgemask_build_info``.
        outputs: gives those that take no frames now.
        drift: of a source, how far its frames are from what was verified; None where that is not watched.
    """

    def __init__(
        self,
        snapshots: Callable[[], Sequence[Snapshot]],
        viewers: Callable[[], int],
        timer: StageTimer | None,
        build: Mapping[str, str],
        outputs: Callable[[], Sequence[str]] = list,
        drift: Callable[[str], Mapping[str, float] | None] = not_watched,
    ) -> None:
        # A registry of its own: other parts of the process may use the global one.
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Sources(snapshots))
        self._registry.register(_Drift(snapshots, drift))
        self._registry.register(_Program(viewers, timer, build, outputs))
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """All metrics at this moment."""
        return generate_latest(self._registry)


class _Sources(Collector):
    def __init__(self, snapshots: Callable[[], Sequence[Snapshot]]) -> None:
        self._snapshots = snapshots
        self._start_s = time.monotonic()

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        received = CounterMetricFamily("edgemask_frames_received", "Frames read from a source.", labels=["source"])
        written = CounterMetricFamily("edgemask_frames", "Frames written to the outputs.", labels=["source"])
        stale = CounterMetricFamily("edgemask_frames_stale", "Frames written with a stale mask.", labels=["source"])
        dropped = CounterMetricFamily(
            "edgemask_frames_dropped", "Frames read and not written, by reason.", labels=["source", "reason"]
        )
        not_finite = CounterMetricFamily(
            "edgemask_frames_not_finite",
            "Frames written with scores that are NaN or infinite, whose masks are wrong.",
            labels=["source"],
        )
        in_flight = GaugeMetricFamily("edgemask_frames_in_flight", "Frames on their way.", labels=["source"])
        age = Metric("edgemask_frame_age_seconds", "Capture to shown, over the last frames.", "summary")
        idle = GaugeMetricFamily(
            "edgemask_frame_idle_seconds", "Time since the last frame was written.", labels=["source"]
        )
        state = GaugeMetricFamily(
            "edgemask_source_state", "1 for the state that a source is in.", labels=["source", "state"]
        )
        reconnects = CounterMetricFamily(
            "edgemask_source_reconnects", "Connections to a source begun again.", labels=["source"]
        )
        for snapshot in self._snapshots():
            name = snapshot.name
            received.add_metric([name], snapshot.frames_in)
            written.add_metric([name], snapshot.frames_out)
            stale.add_metric([name], snapshot.frames_stale)
            for reason in dict.fromkeys((*_REASONS, *snapshot.dropped)):  # those that may come, too: rates begin at 0
                dropped.add_metric([name, reason], snapshot.dropped.get(reason, 0))
            not_finite.add_metric([name], snapshot.not_finite)
            in_flight.add_metric([name], snapshot.in_flight)
            if snapshot.frame_s is not None:
                age.add_sample(age.name, {"source": name, "quantile": "0.5"}, snapshot.age_p50_ms / 1e3)
                age.add_sample(age.name, {"source": name, "quantile": "0.99"}, snapshot.age_p99_ms / 1e3)
            # Before the first frame too, or an alarm on it would never be raised.
            idle.add_metric([name], time.monotonic() - self._start_s if snapshot.frame_s is None else snapshot.frame_s)
            for each in State:
                state.add_metric([name, each.value], float(each is snapshot.state))
            reconnects.add_metric([name], snapshot.reconnects)
        yield from (received, written, stale, dropped, not_finite, in_flight, age, idle, state, reconnects)


class _Drift(Collector):
    def __init__(
        self, snapshots: Callable[[], Sequence[Snapshot]], drift: Callable[[str], Mapping[str, float] | None]
    ) -> None:
        self._snapshots, self._drift = snapshots, drift

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        distance = GaugeMetricFamily(
            "edgemask_input_distance",
            "How far a source's frames are from those that the model was verified on.",
            labels=["source"],
        )
        limit = GaugeMetricFamily(
            "edgemask_input_distance_limit", "Beyond it they are unlike all of those.", labels=["source"]
        )
        for snapshot in self._snapshots():
            if (facts := self._drift(snapshot.name)) is not None:
                distance.add_metric([snapshot.name], facts["distance"])
                limit.add_metric([snapshot.name], facts["limit"])
        yield from (distance, limit)


class _Program(Collector):
    def __init__(
        self,
        viewers: Callable[[], int],
        timer: StageTimer | None,
        build: Mapping[str, str],
        outputs: Callable[[], Sequence[str]],
    ) -> None:
        self._viewers = viewers
        self._outputs = outputs
        self._timer = timer
        self._build = build

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("edgemask_viewers", "Viewers of the page.", value=self._viewers())
        yield GaugeMetricFamily(
            "edgemask_outputs_stopped",
            "Outputs that take no frames now, such as a full disk.",
            value=len(self._outputs()),
        )
        info = GaugeMetricFamily("edgemask_build_info", "What runs here.", labels=list(self._build))
        info.add_metric(list(self._build.values()), 1)
        yield info
        if self._timer is None:
            return
        stages = Metric("edgemask_stage_seconds", "Time per frame of each stage.", "summary")
        for stage in self._timer.result():
            labels = {"stage": stage.name}
            stages.add_sample(stages.name, {**labels, "quantile": "0.5"}, stage.p50_ms / 1e3)
            stages.add_sample(stages.name, {**labels, "quantile": "0.95"}, stage.p95_ms / 1e3)
            stages.add_sample(f"{stages.name}_sum", labels, stage.mean_ms * stage.count / 1e3)
            stages.add_sample(f"{stages.name}_count", labels, stage.count)
        yield stages
