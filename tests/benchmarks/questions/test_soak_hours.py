"""soak --hours: a little of the command with all that comes and goes, and what is said when it ends by itself."""

import dataclasses
import mmap
import os
import signal
import threading
import time

import pytest

from benchmarks.__main__ import main
from benchmarks.questions import soak_hours
from benchmarks.shared import visitors
from benchmarks.shared.process_state import process_state, processor_s


@pytest.fixture
def _quarter_of_a_minute(monkeypatch):
    monkeypatch.setattr(soak_hours, "_LEAST_HOURS", 0.004)
    monkeypatch.setattr(soak_hours, "_RECORDING", ("--segment-time", "3", "--keep-files", "2", "--min-free", "1M"))
    dropping = dataclasses.replace(soak_hours.HABITS["dropping"], drop_s=3.0)
    monkeypatch.setattr(soak_hours, "HABITS", {**soak_hours.HABITS, "dropping": dropping})
    monkeypatch.setattr(visitors, "_STAY_S", (0.5, 1.0))
    monkeypatch.setattr(visitors, "_AWAY_S", (0.1, 0.5))


@pytest.mark.usefixtures("_quarter_of_a_minute")
def test_a_quarter_of_a_minute_of_the_command(asked):
    entries, printed = asked("soak", "--hours", 0.0042)
    assert [row["figure"] for row in entries["slopes"]] == list(soak_hours.FIGURES)
    assert all(row["low_per_hour"] <= row["per_hour"] <= row["high_per_hour"] for row in entries["slopes"])
    assert entries["status"] == 128 + signal.SIGTERM
    assert set(entries["frames"]) == set(soak_hours.HABITS)
    assert all(count > 2 for count in entries["frames"].values())
    assert entries["reconnects"]["dropping"] >= 1
    assert all(1 <= count <= 2 for count in entries["recordings"].values())
    assert entries["visits"]["settings"] > 0
    assert len(entries["table"]) > 16
    assert "| resident memory, MB |" in printed
    assert f"SIGTERM: status {128 + signal.SIGTERM}" in printed


def test_a_command_that_ends_is_told(capsys, monkeypatch):
    sample = soak_hours._Command.sample

    def kill(self):
        self._process.kill()
        self._process.wait()
        return sample(self)

    monkeypatch.setattr(soak_hours._Command, "sample", kill)
    assert main(["soak", "--hours", "0.02"]) == 2
    assert "soak: expected the command to run to the end, got status -9" in capsys.readouterr().err


@pytest.mark.parametrize("hours", ["0", "0.01", "nan", "inf"])
def test_a_time_too_short_for_slopes_is_refused(capsys, hours):
    assert main(["soak", "--hours", hours]) == 2
    assert f"--hours: expected 1/60 or more, got {hours}" in capsys.readouterr().err


def test_what_linux_knows_of_a_process():
    before, begun_s = process_state(os.getpid()), processor_s(os.getpid())
    # Not from the heap, where memory that was given back may be taken again.
    kept, stop = mmap.mmap(-1, 50_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), threading.Event()
    for place in range(0, len(kept), 4096):
        kept[place] = 1
    thread = threading.Thread(target=stop.wait)
    thread.start()
    with open(os.devnull, "rb"):
        after = process_state(os.getpid())
    stop.set()
    thread.join()
    for figure in ("resident_mb", "anonymous_mb"):
        assert 45 < after[figure] - before[figure] < 70
    assert after["threads"] == before["threads"] + 1
    assert after["open_files"] == before["open_files"] + 1
    assert after["anonymous_mb"] <= after["resident_mb"]
    end_s = time.process_time() + 0.1
    while time.process_time() < end_s:
        pass
    assert processor_s(os.getpid()) > begun_s
