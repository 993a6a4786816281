"""What Home Assistant hears: the keys that its documents list, and templates that Jinja renders."""

import json
import re

import jinja2
import pytest

from pipeline.events.home_assistant import announcements

# https://www.home-assistant.io/integrations/binary_sensor.mqtt and sensor.mqtt, what both list and what each does.
COMMON = {
    "availability_topic",
    "device",
    "expire_after",
    "name",
    "origin",
    "state_topic",
    "unique_id",
    "value_template",
    "entity_category",
    "device_class",
}
KEYS = {"binary_sensor": COMMON, "sensor": COMMON | {"unit_of_measurement", "state_class"}}
ODD = 'car "red" \\ ü'


@pytest.fixture
def messages():
    entities = [("door", "subject", True), ("bay-2", ODD, False)]
    found = list(announcements("homeassistant", "edgemask/front door", "front door", entities))
    return [(topic, json.loads(json.dumps(content))) for topic, content in found]


def rendered(content, state):
    """As Home Assistant renders a template: ``value_json`` is the message."""
    return jinja2.Environment().from_string(content["value_template"]).render(value_json=state)


def test_topics_and_keys_are_those_of_the_documents(messages):
    assert len(messages) == 1 + 3 + 2
    for topic, content in messages:
        place = re.fullmatch(r"homeassistant/(binary_sensor|sensor)/([a-zA-Z0-9_-]+)/([a-zA-Z0-9_-]+)/config", topic)
        assert place, topic
        assert content.keys() <= KEYS[place[1]], topic
        assert content["unique_id"] == place[3]
        assert content["device"]["identifiers"] == [place[2]]
        assert content["state_topic"] == "edgemask/front door/state"
        assert content["availability_topic"] == "edgemask/front door/status"
        assert content["origin"]["name"] == "edgemask"
    ids = [content["unique_id"] for _, content in messages]
    assert len(set(ids)) == len(ids)


def test_what_templates_make_of_a_state(messages):
    by_name = {content["name"]: content for _, content in messages}
    state = {
        "fps": 12.5,
        "zones": {
            "door": {"subject": {"area": 0.12345, "present": True, "above": False}},
            "bay-2": {ODD: {"area": 0.5, "present": True}},
        },
    }
    assert {name: rendered(content, state) for name, content in by_name.items()} == {
        "frame rate": "12.5",
        "subject in door": "ON",
        "subject in door area": "12.35",
        "subject in door above limit": "OFF",
        f"{ODD} in bay-2": "ON",
        f"{ODD} in bay-2 area": "50.0",
    }


@pytest.mark.parametrize("zones", [{}, {"door": {}, "bay-2": {}}])
def test_what_is_not_there_is_off(messages, zones):
    for _, content in messages:
        if content["name"] != "frame rate":
            assert rendered(content, {"fps": 1, "zones": zones}) in ("OFF", "0", "0.0")


@pytest.mark.needs("homeassistant")
@pytest.mark.filterwarnings("ignore")
def test_home_assistants_own_schema_takes_them(messages):
    from homeassistant.components.mqtt import binary_sensor, discovery, sensor

    schemas = {"binary_sensor": binary_sensor.DISCOVERY_SCHEMA, "sensor": sensor.DISCOVERY_SCHEMA}
    for topic, content in messages:
        place = discovery.TOPIC_MATCHER.match(topic.removeprefix("homeassistant/"))
        taken = schemas[place["component"]](content)
        assert content.keys() <= taken.keys()  # what it does not know it leaves out
