"""What the page is asked for, and what it tells of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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


def not_watched(source: str) -> None:
    """What is told of a source that nobody watches."""


@dataclass(frozen=True, slots=True)
class Watched:
    """The run that the page tells of.

    Attributes:
        telemetries: of each source, by the name that its frames carry (``Frame.source``).
        classes: names of the network's classes, as in the manifest; for the legend.
        about: what runs here, such as {"version": "0.1.0", "model": "u2netp"}; on the page and in the metrics.
        healthy: for ``/healthz``: says what is wrong with the data path, or nothing; called on the page's thread.
        outputs: which outputs take no frames now, and why; called on the page's thread.
        drift: of a source, "distance", "limit" and "unlike"; None where it is not watched. Called on any thread.
        timer: times per stage, for ``/metrics``; None: there are none.
    """

    telemetries: Mapping[str, Telemetry]
    classes: Sequence[str] = ()
    about: Mapping[str, str] = field(default_factory=dict)
    healthy: Callable[[], str] = _well
    timer: StageTimer | None = None
    outputs: Callable[[], list[str]] = list
    drift: Callable[[str], Mapping[str, float] | None] = not_watched
