"""What viewers who have the right can have done, beside changing settings: recordings turned off and on, zones drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.errors import OptionError
from pipeline.results.zone_book import MOST_ZONES, ZoneBook
from pipeline.results.zone_options import MOST_POINTS
from pipeline.sinks.options import RecordingSwitch

ORDERS = ("record", "zone", "zone-delete")
"""The types of messages that are orders."""


class Orders:
    """On the page's event loop.

    Args:
        zones: of the run; None: they cannot be changed.
        recording: turns recordings off and on; None: there are none.
    """

    def __init__(self, zones: ZoneBook | None, recording: RecordingSwitch | None) -> None:
        self._zones, self._recording = zones, recording

    def state(self) -> dict[str, Any]:
        """What viewers are told again and again."""
        switch = self._recording
        return {"recording": {"on": switch.on} if switch is not None and switch.recordings else None}

    def zones(self) -> str:
        """The zones as a message for viewers, which they get when it has changed; empty: there are none to change."""
        if self._zones is None:
            return ""
        return json.dumps(
            {
                "type": "zones",
                "zones": self._zones.entries(),
                "file": self._zones.file_name,
                "most": MOST_ZONES,
                "most_points": MOST_POINTS,
            }
        )

    def obey(self, message: Mapping[str, Any]) -> None:
        """Do what a message asks for.

        Args:
            message: of one of the types in `ORDERS`: ``{"type": "record", "on": true}``, ``{"type": "zone", "was": null, "name":
                "door", "points": [[0.1, 0.2], …], "above": null}`` or ``{"type": "zone-delete", "name": "door"}``.

        Raises:
            OptionError: it cannot be done, or a value is none.
        """
        kind = message["type"]
        if kind == "record":
            self._record(message.get("on"))
        elif self._zones is None:
            raise OptionError("zone: expected a run with zones that can be changed, got one without")
        elif kind == "zone":
            self._zones.put(*(message.get(key) for key in ("was", "name", "points", "above")))
        else:
            self._zones.delete(message.get("name"))

    def _record(self, on: object) -> None:
        if self._recording is None or not self._recording.recordings:
            raise OptionError(
                "record: expected a run with a recording of a live source, such as --output door.mp4, got none"
            )
        if not isinstance(on, bool):
            raise OptionError(f"record: expected on as true or false, got {on!r:.60}")
        self._recording.on = on
