"""What Home Assistant's MQTT discovery wants to hear, so that zones appear there by themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from pipeline.version import version

PREFIX = "homeassistant"
"""The topic below which Home Assistant looks, unless its user has changed that."""

_EXPIRES_S = 60


def announcements(
    prefix: str, base: str, source: str, entities: Iterable[tuple[str, str, bool]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Topics and contents of the messages that make a device of a source.

    Args:
        prefix: of the topics.
        base: the topics ``BASE/state`` and ``BASE/status`` say what there is to say.
        source: what the device is called.
        entities: (zone, class, whether the zone has a limit): each becomes an occupancy sensor, a share of the zone, and where there
            is a limit a sensor of that.
    """
    node = _id(f"edgemask_{base}")
    common = {
        "state_topic": f"{base}/state",
        "availability_topic": f"{base}/status",
        "expire_after": _EXPIRES_S,  # no heartbeat for so long: it is not known any more
        "device": {
            "identifiers": [node],
            "name": f"edgemask {source}",
            "manufacturer": "edgemask",
            "sw_version": version(),
        },
        "origin": {"name": "edgemask", "sw_version": version()},
    }

    def message(component: str, name: str, template: str, **more: Any) -> tuple[str, dict[str, Any]]:
        unique = _id(f"{node}_{name}")
        own = {"name": name, "unique_id": unique, "value_template": template}
        return f"{prefix}/{component}/{node}/{unique}/config", {**own, **more, **common}

    yield message(
        "sensor", "frame rate", "{{ value_json.fps }}", unit_of_measurement="FPS", state_class="measurement",
        entity_category="diagnostic",
    )  # fmt: skip
    for zone, name, has_limit in entities:
        entry = f"((value_json.zones[{_text(zone)}] | default({{}}))[{_text(name)}] | default({{}}))"
        yield message(
            "binary_sensor",
            f"{name} in {zone}",
            f"{{{{ 'ON' if {entry}.present | default(false) else 'OFF' }}}}",
            device_class="occupancy",
        )
        yield message(
            "sensor",
            f"{name} in {zone} area",
            f"{{{{ ({entry}.area | default(0) * 100) | round(2) }}}}",
            unit_of_measurement="%",
            state_class="measurement",
        )
        if has_limit:
            yield message(
                "binary_sensor",
                f"{name} in {zone} above limit",
                f"{{{{ 'ON' if {entry}.above | default(false) else 'OFF' }}}}",
            )


def _id(text: str) -> str:
    """Letters, digits, "_" and "-", as topics and ids may have."""
    return re.sub(r"[^a-zA-Z0-9_-]+", "_", text).strip("_")


def _text(name: str) -> str:
    """A name as a text in a template."""
    return json.dumps(name, ensure_ascii=False)
