"""What systemd is told: ready, alive, stopping; and when the data path counts as alive."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.sinks.base import Sink
from pipeline.sources.base import Source
from pipeline.stages.telemetry import Snapshot, State, Telemetry

if TYPE_CHECKING:
    import socket

# A frame that was read and is not written for so long hangs in the engine or in an output.
STUCK_S = 20.0
# A source that claims to run gives a frame or changes its state before this; its own deadlines are shorter.
SILENT_S = 60.0


class Health:
    """Says whether frames move, or wait for a reason that they may have.

    Args:
        telemetries: of the sources.
        sinks: the outputs, those that are opened later too.
    """

    def __init__(self, telemetries: Sequence[Telemetry], sinks: Sequence[Sink] = ()) -> None:
        self._telemetries, self._sinks = list(telemetries), sinks  # the first is replaced and not changed
        self._start_s = time.monotonic()
        self._seen: dict[str, tuple[int, float]] = {}

    def join(self, source: Source) -> None:
        """Look after one more source."""
        self._telemetries = [*self._telemetries, source.telemetry]

    def leave(self, source: Source) -> None:
        """Look after it no more."""
        self._telemetries = [one for one in self._telemetries if one is not source.telemetry]
        self._seen.pop(source.info.name, None)

    def problem(self) -> str:
        """What is wrong with the data path; empty if nothing is. Any thread may ask."""
        now_s = time.monotonic()
        for telemetry in self._telemetries:
            snapshot = telemetry.snapshot()
            since_s = now_s - self._moved_s(snapshot, now_s)
            if snapshot.in_flight > 0 and since_s > STUCK_S:
                return f"{snapshot.name}: frames are read and none was written for {since_s:.0f} s"
            if snapshot.state is State.RUNNING and snapshot.frames_in > 0 and since_s > SILENT_S:
                return f"{snapshot.name}: runs, and gave no frame for {since_s:.0f} s"
        return ""

    def outputs(self) -> list[str]:
        """Which outputs take no frames now, and why. Any thread may ask."""
        return [sink.problem for sink in list(self._sinks) if sink.problem]

    def _moved_s(self, snapshot: Snapshot, now_s: float) -> float:
        """When a frame was last written or dropped, as far as was seen."""
        done = snapshot.frames_out + sum(snapshot.dropped.values())
        before = self._seen.get(snapshot.name)
        if before is None or before[0] != done or (snapshot.in_flight == 0 and snapshot.state is not State.RUNNING):
            self._seen[snapshot.name] = done, now_s
        return self._seen[snapshot.name][1]


class Service:
    """Tells systemd of a unit with ``Type=notify``; without one (no NOTIFY_SOCKET) it does nothing.

    The watchdog is fed by whoever calls ``pulse``, which is the loop that writes frames: a timer of its own would go on when that
    loop hangs.

    Args:
        health: the watchdog is not fed while it knows of a problem.
        environment: of the process.
    """

    def __init__(self, health: Health, environment: Mapping[str, str] = os.environ) -> None:
        self._health = health
        self._socket: socket.socket | None = None
        self._due_s = 0.0
        self._status = self._told = ""
        self._every_s = _watchdog_s(environment) / 3
        address = environment.get("NOTIFY_SOCKET", "")
        if address:
            import socket  # a run that no manager started needs none

            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)  # a busy manager must not hold up the picture
            self._address = "\0" + address[1:] if address.startswith("@") else address

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.tell("STOPPING=1")
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ready(self, status: str, problem: str = "") -> None:
        """The pipeline runs, or a reload has ended; ``status`` is one line for ``systemctl status``, after what was not taken."""
        self._status = self._told = " ".join(f"{problem}; {status}".split() if problem else status.split())
        self.tell(f"READY=1\nSTATUS={self._status}")

    def reloading(self) -> None:
        """The configuration is read anew; ``ready`` says when that is done."""
        self.tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def pulse(self) -> None:
        """The loop has come round; cheap enough for every frame."""
        now_s = time.monotonic()
        if self._socket is None or now_s < self._due_s:
            return
        self._due_s = now_s + self._every_s
        problem = self._health.problem()
        if problem:
            self.tell(f"STATUS={problem}")
            self._told = problem
            return
        # An output that has stopped is told; a restart would not mend it.
        status = "; ".join(self._health.outputs()) or self._status
        self.tell("WATCHDOG=1" if status == self._told else f"WATCHDOG=1\nSTATUS={status}")
        self._told = status

    def tell(self, text: str) -> None:
        """Send one datagram; one that cannot be sent is lost, for the next one says it again."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto(text.encode(errors="replace"), self._address)


def _watchdog_s(environment: Mapping[str, str]) -> float:
    """Within what time systemd wants to hear, in seconds; 30 where there is no watchdog, to keep the status fresh."""
    try:
        if int(environment.get("WATCHDOG_PID", os.getpid())) == os.getpid():
            return max(0.1, int(environment["WATCHDOG_USEC"]) / 1e6)
    except (KeyError, ValueError):
        pass
    return 30.0
