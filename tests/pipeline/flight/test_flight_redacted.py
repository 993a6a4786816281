"""No password is in a recording: whatever it is, and wherever a run was given it."""

import json
import zipfile
from contextlib import ExitStack
from dataclasses import asdict
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.command.options import parse_options
from pipeline.command.watchers import open_watchers
from pipeline.flight.redacted import known_secrets, redacted
from pipeline.stages.stage_timer import StageTimer
from tests.fakes.computed_frames import computed
from tests.pipeline.flight.conftest import Camera, Idle

# Not part of any word that a recording holds of itself.
PASSWORDS = st.text(st.characters(codec="ascii", exclude_categories=("C",)), min_size=4, max_size=20).map(
    lambda text: f"q7{text}x9"
)
IN_ADDRESS = PASSWORDS.map(lambda text: quote(text, safe=""))
WORDS = st.text("abcdefghijkmnopqrstuvwxyz0123456789", min_size=16, max_size=30).map(lambda text: f"q7{text}x9")


def recorded(tmp_path, red_bundle, arguments, monkeypatch=None):
    """All text of the recording that a run with these options writes."""
    options = parse_options([*arguments, "--flight", str(tmp_path / "flight"), "--audit", "off"])
    with ExitStack() as stack:
        (recorder,) = open_watchers(options, Idle(red_bundle), [Camera("door")], StageTimer(), stack).all
        recorder.computed(computed(0))
        said = f"cannot connect to {options.sources[0]} with {options.outputs.names}"
        recorder.event("audit", said, "door")
        recorder.pulse()
    (path,) = (tmp_path / "flight").glob("*.zip")
    with zipfile.ZipFile(path) as archive:
        text = archive.read("flight.json").decode()
    path.unlink()
    assert json.loads(text)["events"][0]["kind"] == "audit"
    return text


@pytest.fixture
def text_of(tmp_path, red_bundle):
    return lambda *arguments: recorded(tmp_path, red_bundle, arguments)


FAST = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FAST
@given(password=IN_ADDRESS, user=WORDS, key=WORDS)
def test_of_addresses(text_of, password, user, key):
    text = text_of(
        f"rtsp://{user}:{password}@camera/1?token={key}",
        "--output",
        f"rtsp://{user}:{password}@server/live",
        "--output",
        f"mqtts://{user}:{password}@broker/edge",
        "--output",
        f"https://hooks.example/{key}/secret",
    )
    assert not [secret for secret in (password, user, key) if secret in text]


@FAST
@given(password=PASSWORDS)
def test_of_addresses_that_are_not_encoded(text_of, password):
    text = text_of(f"rtsp://admin:{password}@camera/1", "--output", "null")
    assert password not in text
    assert json.dumps(password)[1:-1] not in text


@FAST
@given(password=WORDS)
def test_of_pipelines(text_of, password):
    text = text_of(f"gst:rtspsrc location=rtsp://c/1 user-id=u user-pw={password} ! decodebin", "--output", "null")
    assert password not in text


@FAST
@given(token=WORDS, password=IN_ADDRESS)
def test_of_yaml(text_of, tmp_path, token, password):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"source: ['rtsp://admin:{password}@camera/1']\noutput: ['null']\nserve: '0.0.0.0:0'\nserve-token: '{token}'\n"
    )
    text = text_of("--config", str(config))
    assert token not in text
    assert password not in text


@pytest.mark.parametrize("name", ["EDGEMASK_TOKEN", "EDGEMASK_MQTT_PASSWORD", "EDGEMASK_WEBHOOK_SECRET", "API_KEY"])
def test_of_the_environment(name, monkeypatch):
    monkeypatch.setenv(name, "correct-horse-battery")
    secrets = known_secrets(())
    assert redacted({"text": ["the server said correct-horse-battery"]}, secrets) == {"text": ["the server said ***"]}


def test_names_tell_too():
    assert redacted({"page": {"token": "abc", "names": ("a",)}, "key": None, "tokens": 3}, ()) == {
        "page": {"token": "***", "names": ["a"]},
        "key": None,
        "tokens": 3,
    }


def test_every_option_is_there(text_of):
    """What is not secret is told: the run can be understood."""
    text = json.loads(text_of("a.mp4", "--output", "out.mp4", "--smooth", "strong", "--model", "u2netp"))
    options = text["options"]
    assert set(options) == set(asdict(parse_options(["a.mp4"])))
    assert (options["masks"]["smooth"], options["model"]["name"], options["sources"]) == ("strong", "u2netp", ["a.mp4"])
