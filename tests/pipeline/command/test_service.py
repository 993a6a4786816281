"""What systemd hears: datagrams on a real socket."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.command import service
from pipeline.command.service import Health, Service
from pipeline.stages.telemetry import State, Telemetry

ROOT = Path(__file__).parents[3]
WAIT_S = 60  # only a broken test waits so long


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """The socket that systemd listens on, its address as in NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        name = f"edgemask-test-{os.getpid()}-{request.node.name}"[:100]
        path = str(tmp_path / "notify")
        listening.bind(path if request.param == "path" else f"\0{name}")
        listening.settimeout(WAIT_S)
        yield listening, path if request.param == "path" else f"@{name}"


def all_of(listening):
    """Every datagram that has come."""
    listening.setblocking(False)
    told = []
    try:
        while True:
            told.append(listening.recv(4096).decode())
    except BlockingIOError:
        return told


def test_ready_alive_and_stopping_are_told(manager):
    listening, address = manager
    with Service(Health([]), {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000000"}) as told:
        told.ready("camera →\nout.mp4")
        told.pulse()
        told.pulse()  # within a third of the deadline once is enough
    assert all_of(listening) == ["READY=1\nSTATUS=camera → out.mp4", "WATCHDOG=1", "STOPPING=1"]


def test_a_name_that_is_no_utf_8_is_told_all_the_same(manager):
    listening, address = manager
    with Service(Health([]), {"NOTIFY_SOCKET": address}) as told:
        told.ready(f"caf{os.fsdecode(bytes([0xE9]))}.mp4 → null")
    assert all_of(listening)[0] == "READY=1\nSTATUS=caf?.mp4 → null"


def test_the_watchdog_is_fed_three_times_in_its_time(manager, monkeypatch):
    listening, address = manager
    clock = [100.0]
    monkeypatch.setattr(service.time, "monotonic", lambda: clock[0])
    with Service(Health([]), {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "6000000"}) as told:
        for _ in range(60):
            told.pulse()
            clock[0] += 0.1
        assert all_of(listening) == ["WATCHDOG=1"] * 3


def test_another_process_watchdog_is_not_ours():
    told = Service(Health([]), {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": str(os.getpid() + 1)})
    assert told._every_s == 10


@pytest.mark.parametrize("microseconds", ["", "soon"])
def test_a_watchdog_that_makes_no_sense_is_none(microseconds):
    assert Service(Health([]), {"WATCHDOG_USEC": microseconds})._every_s == 10


def test_without_systemd_nothing_is_sent_and_nothing_fails():
    with Service(Health([]), {}) as told:
        told.ready("x")
        told.pulse()


def test_a_manager_that_has_gone_is_no_error(tmp_path):
    with Service(Health([]), {"NOTIFY_SOCKET": str(tmp_path / "nobody")}) as told:
        told.ready("x")
        told.pulse()


def test_the_watchdog_starves_while_the_data_path_hangs(manager, monkeypatch):
    listening, address = manager
    clock = [100.0]
    monkeypatch.setattr(service.time, "monotonic", lambda: clock[0])
    telemetry = Telemetry("camera")
    with Service(Health([telemetry]), {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000000"}) as told:
        telemetry.came_in()

        def pulses(seconds):
            for _ in range(seconds):
                clock[0] += 1.0
                told.pulse()
            return all_of(listening)

        assert set(pulses(20)) == {"WATCHDOG=1"}
        hanging = pulses(5)
        assert len(hanging) == 5
        assert hanging[-1].startswith("STATUS=camera: frames are read and none was written for 2")
        telemetry.went_out(1.0)  # it goes on after all
        assert set(pulses(5)) == {"WATCHDOG=1", "WATCHDOG=1\nSTATUS="}


def test_an_output_that_has_stopped_is_told_for_as_long_and_the_watchdog_is_fed(manager, monkeypatch):
    listening, address = manager
    clock = [100.0]
    monkeypatch.setattr(service.time, "monotonic", lambda: clock[0])
    sinks = [SimpleNamespace(problem="")]
    with Service(Health([], sinks), {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000000"}) as told:

        def pulse():
            clock[0] += 2.0
            told.pulse()
            return all_of(listening)

        told.ready("cam → rec.mp4")
        assert all_of(listening) == ["READY=1\nSTATUS=cam → rec.mp4"]
        assert pulse() == ["WATCHDOG=1"]
        sinks[0].problem = "rec.mp4: recording stopped"
        assert pulse() == ["WATCHDOG=1\nSTATUS=rec.mp4: recording stopped"]
        assert pulse() == ["WATCHDOG=1"]
        sinks[0].problem = ""
        assert pulse() == ["WATCHDOG=1\nSTATUS=cam → rec.mp4"]


def test_a_source_that_claims_to_run_and_gives_nothing_is_a_problem(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(service.time, "monotonic", lambda: clock[0])
    telemetry = Telemetry("camera")
    health = Health([telemetry])
    telemetry.came_in()
    telemetry.went_out(1.0)
    assert health.problem() == ""
    clock[0] = 61.0
    assert health.problem() == "camera: runs, and gave no frame for 61 s"


@pytest.mark.parametrize("state", [State.CONNECTING, State.STALLED, State.RECONNECTING, State.ENDED])
def test_waiting_for_a_camera_is_no_problem(monkeypatch, state):
    clock = [0.0]
    monkeypatch.setattr(service.time, "monotonic", lambda: clock[0])
    telemetry = Telemetry("camera")
    telemetry.came_in()
    telemetry.went_out(1.0)
    telemetry.enter(state)
    health = Health([telemetry])
    for second in range(0, 4000, 100):
        clock[0] = float(second)
        assert health.problem() == ""
    # A camera that comes back has its time from there on.
    telemetry.enter(State.RUNNING)
    clock[0] += 30
    assert health.problem() == ""


def test_the_command_tells_systemd(red_bundle, tmp_path):
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(path))
        listening.settimeout(WAIT_S)
        command = [sys.executable, "-m", "pipeline", "--source", "test://?size=64x48&frames=100000000"]
        command += ["--output", "null", "--model", str(red_bundle.folder), "--quiet"]
        environment = {**os.environ, "NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "300000"}
        job = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)
        try:
            assert listening.recv(4096).startswith(b"READY=1\nSTATUS=")
            for _ in range(3):
                assert listening.recv(4096) == b"WATCHDOG=1"
            job.send_signal(signal.SIGTERM)
            deadline_s = time.monotonic() + WAIT_S
            while listening.recv(4096) != b"STOPPING=1":
                assert time.monotonic() < deadline_s
            assert job.wait(WAIT_S) == 143
        finally:
            job.kill()
            job.communicate()
