"""What the page is asked for, and what it tells of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any

from pipeline.quick_dataclass import dataclass

if TYPE_CHECKING:
    from pipeline.render.controls import MaskSettings
    from pipeline.results.finder import Finder
    from pipeline.results.zone_book import ZoneBook
    from pipeline.sinks.options import RecordingSwitch
    from pipeline.stages.stage_timer import StageTimer
    from pipeline.stages.telemetry import Telemetry

ADDRESS = "127.0.0.1:8080"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a stranger can make the server hold, and for how long.

    Attributes:
        viewers: of live pictures.
        connections: whose requests were let in.
        newcomers: connections that have brought no such request yet; one more pushes out the longest silent.
        newcomer_s: after this time such a connection is closed.
        send_s: for a viewer to take a message.
        request_s: for a request to arrive, and until an idle connection is closed.
    """

    viewers: int = 8
    connections: int = 64
    newcomers: int = 32
    newcomer_s: float = 5.0
    send_s: float = 5.0
    request_s: float = 10.0


@dataclass(frozen=True, slots=True)
class PageOptions:
    """Where the page is, and who may do what there.

    Attributes:
        address: "HOST:PORT" to listen on, or "PORT" of 127.0.0.1; port 0: a free one.
        token: what requests have to bring, 16 characters or more; None: nothing on loopback, else one is made.
        names: further names that the page may be called by (a Host header's).
        read_only: viewers see and cannot change anything.
        ready_within_s: for ``/readyz``: each source must have given a frame within this time, and one whose scores are finite.
        limits: on all who connect.
    """

    address: str = ADDRESS
    token: str | None = field(default=None, repr=False)
    names: tuple[str, ...] = ()
    read_only: bool = False
    ready_within_s: float = 10.0
    limits: Limits = Limits()


def _well() -> str:
    return ""


def _none() -> None:
    return None


def _unknown(source: str) -> None:
    return None


def _no_flight(_: str) -> str:
    return "flight: expected a run with --flight DIR, got one without"


@dataclass(frozen=True, slots=True)
class Watched:
    """The run that the page tells of.

    Attributes:
        telemetries: of each source, by the name that its frames carry (``Frame.source``).
        classes: names of the network's classes, as in the manifest; for the legend.
        about: what runs here, such as {"version": "0.1.0", "model": "u2netp"}; on the page and in the metrics. Its values may change.
        healthy: for ``/healthz``: says what is wrong with the data path, or nothing; called on the page's thread.
        outputs: which outputs take no frames now, and why; called on the page's thread.
        drift: of a source, "distance", "limit" and "unlike"; None where it is not watched. Called on any thread.
        flight: the flight recorder's files and its last event, as ``Board`` tells them; None: there is no recorder.
        take_flight: has a flight recording written, asked for on the "page" or by a program ("api"); gives why not, or nothing.
        timer: times per stage, for ``/metrics``; None: there are none.
        audit: how far audited masks agree, as ``pipeline.audit.verdict.Verdict.state`` says it, with what was skipped; None: there are
            no audits. Called on the page's thread.
        masks: what viewers can set of masks; None: nothing.
        zones: those that viewers can draw; None: none.
        find: says what is in the zones, beside the outputs that want to know it too; None: nobody is told.
        recording: by which viewers turn recordings off and on; None: they cannot.
        swaps: how often another model was to take over, by what came of it.
    """

    telemetries: Mapping[str, Telemetry]
    classes: Sequence[str] = ()
    about: Mapping[str, str] = field(default_factory=dict)
    healthy: Callable[[], str] = _well
    timer: StageTimer | None = None
    outputs: Callable[[], list[str]] = list
    drift: Callable[[str], Mapping[str, float] | None] = _unknown
    audit: Callable[[], Mapping[str, Any] | None] = _none
    flight: Callable[[], dict[str, Any] | None] = _none
    take_flight: Callable[[str], str] = _no_flight
    masks: MaskSettings | None = None
    zones: ZoneBook | None = None
    find: Finder | None = None
    recording: RecordingSwitch | None = None
    swaps: Callable[[], Mapping[str, int]] = dict
