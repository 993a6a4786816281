"""A real MQTT broker, which can be stopped, killed and started again."""

import contextlib
import json
import shutil
import socket
import subprocess
import threading
import time

import pytest

WAIT_S = 30  # only a broken test waits so long


def until(condition, what):
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end_s, what
        time.sleep(0.01)


class Broker:
    """Debian's mosquitto on a port of its own. It keeps sessions on the disk, so that a subscriber misses nothing while it is away."""

    def __init__(self, folder, lines):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._config = folder / "mosquitto.conf"
        store = folder / "store"
        store.mkdir(exist_ok=True)
        self._config.write_text(
            "\n".join(
                [
                    f"listener {self.port} 127.0.0.1",
                    *(lines or ["allow_anonymous true"]),
                    "user root",
                    "persistence true",
                    f"persistence_location {store}/",
                    "autosave_on_changes true",
                    "autosave_interval 1",
                    "max_queued_messages 0",
                ]
            )
        )
        self._process = None
        self.start()

    def start(self):
        self._process = subprocess.Popen(
            [shutil.which("mosquitto"), "-c", self._config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(self._listens, "mosquitto does not listen")

    def end(self, *, kill=False):
        if self._process is not None:
            (self._process.kill if kill else self._process.terminate)()
            self._process.wait()
            self._process = None

    def _listens(self):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        assert self._process.poll() is None, "mosquitto has ended"
        return False


class Subscriber:
    """``mosquitto_sub``: what it hears, as (topic, content, retained)."""

    def __init__(self, broker, topics, *words):
        self.heard = []
        command = [shutil.which("mosquitto_sub"), "-V", "5", "-h", "127.0.0.1", "-p", str(broker.port), "-q", "1"]
        command += ["-i", "watcher", "-c", "-x", "3600", "-F", "%j", *words]
        for topic in topics:
            command += ["-t", topic]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self):
        for line in self._process.stdout:
            said = json.loads(line)
            text = said["payload"]
            content = json.loads(text) if text.startswith("{") else text
            self.heard.append((said["topic"], content, bool(said["retain"])))

    def of(self, end):
        return [content for topic, content, _ in list(self.heard) if topic.endswith(end)]

    def end(self):
        self._process.terminate()
        self._process.wait()
        self._thread.join()
        self._process.stdout.close()


@pytest.fixture
def make_broker(tmp_path):
    """``make_broker("allow_anonymous true", …)``: a broker with these lines in its configuration."""
    brokers = []

    def make(*lines):
        brokers.append(Broker(tmp_path, lines))
        return brokers[-1]

    yield make
    for broker in brokers:
        broker.end()


@pytest.fixture
def subscribe():
    """``subscribe(broker, "#")``: who hears all."""
    subscribers = []

    def start(broker, *topics, words=()):
        subscribers.append(Subscriber(broker, topics or ("#",), *words))
        return subscribers[-1]

    yield start
    for subscriber in subscribers:
        subscriber.end()
