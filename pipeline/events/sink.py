"""An output that gets events and a heartbeat, whoever carries them."""

from __future__ import annotations

import ssl
import time
from abc import abstractmethod
from datetime import datetime, timezone
from typing import Any

from pipeline.errors import SinkError, SourceError
from pipeline.events.deadline import TlsSocket
from pipeline.events.delivery import Courier, Delivery
from pipeline.frames.frame import Frame
from pipeline.redaction import redact
from pipeline.results.finder import Finder
from pipeline.results.zone_options import WHOLE_FRAME, ZoneOptions
from pipeline.shapes.found import ClassInZone
from pipeline.sinks.base import Sink
from pipeline.sinks.json_lines import event_entry, zone_entry
from pipeline.sources.address import Address
from pipeline.sources.dial import tls_context


class EventsSink(Sink):
    """Hands each frame's events to a `Delivery`, and every few seconds what the state is; a frame never waits for either.

    The heartbeat is made where frames are written: it stops when the data path does.

    Attributes:
        beat_every_s: the time between heartbeats.
        beats_with_events: there is one with each event too, so that the state that is kept is never older than the last event.
    """

    beat_every_s = 10.0
    beats_with_events = False

    leaves_views = True

    def _open(self) -> None:
        try:
            address = Address.parse(self._spec)
        except SourceError as error:
            raise SinkError(f"--output {error}") from error
        self._find = self._options.finder or Finder(
            self._renderer, self._options.classes, [self._info], ZoneOptions((WHOLE_FRAME,))
        )
        self._frames = 0
        self._frame_s: float | None = None
        self._zones: dict[str, dict[str, ClassInZone]] = {}
        self._beat_s = time.monotonic()
        self._beat_frames = 0
        self._beat_due_s = 0.0
        self._delivery = Delivery(f"{address.scheme}://{address.host}:{address.port}", self._courier(address))

    @abstractmethod
    def _courier(self, address: Address) -> Courier:
        """Who carries messages there; connects to nothing yet.

        Raises:
            SinkError: the address, or a secret, is not as it has to be.
        """

    def _tls(self, address: Address, password: str) -> ssl.SSLContext | None:
        """What verifies the receiver; None where the address is not encrypted.

        Raises:
            SinkError: a password would go to whom nobody verifies, or there are no such certificates.
        """
        if not address.is_encrypted:
            return None
        verify = self._options.live.tls_verify
        if verify == "no" and password:
            raise SinkError(
                f"--output {address.scheme}://{address.host}: expected a receiver that is verified, because there is a password: "
                "give its authority or its own certificate with --tls-verify CA.pem"
            )
        try:
            context = tls_context(verify)
        except SourceError as error:
            raise SinkError(str(error)) from error
        context.sslsocket_class = TlsSocket
        return context

    @property
    def delivery(self) -> Delivery:
        """What has become of the events."""
        return self._delivery

    @property
    def problem(self) -> str:
        """Why events do not arrive now."""
        trying = f"{self._delivery.name}: {self._delivery.problem}" if self._delivery.problem else ""
        return self.failed or trying

    def write(self, frame: Frame) -> None:
        """Hand over what happened with this frame.

        Raises:
            SinkError: what delivers has ended by an error of its own.
        """
        if self._delivery.error is not None:
            raise SinkError(
                f"{self._delivery.name}: its delivery has ended ({self._delivery.error!r})"
            ) from self._delivery.error
        found = self._find(frame)
        self._frames += 1
        self._frame_s = time.monotonic()
        self._zones = found.zones
        for event in found.events:
            self._delivery.put(event_entry(event))
        self._beat(now=bool(found.events) and self.beats_with_events)

    def idle(self) -> None:
        """Hand over a heartbeat if it is time."""
        self._beat()

    def close(self) -> None:
        """Deliver what is left, for a few seconds at most."""
        if self._frames:
            self._beat(now=True)
        self._delivery.close()

    def _beat(self, *, now: bool = False) -> None:
        now_s = time.monotonic()
        if now_s < self._beat_due_s and not now:
            return
        self._beat_due_s = now_s + self.beat_every_s
        self._delivery.beat(self._state(now_s))

    def _state(self, now_s: float) -> dict[str, Any]:
        past_s = now_s - self._beat_s
        rate_hz = (self._frames - self._beat_frames) / past_s if past_s > 0 else 0.0
        if past_s >= self.beat_every_s / 2:  # of a shorter time the rate says little
            self._beat_s, self._beat_frames = now_s, self._frames
        return {
            "source": redact(self._info.name),
            "time": f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%S.%f}Z",
            "frames": self._frames,
            "fps": round(rate_hz, 2),
            "frame_age_s": None if self._frame_s is None else round(now_s - self._frame_s, 3),
            "zones": {name: zone_entry(classes) for name, classes in self._zones.items()},
            "events": {
                "delivered": self._delivery.delivered,
                "waiting": self._delivery.waiting,
                "refused": self._delivery.refused,
                "lost": self._delivery.lost,
            },
        }
