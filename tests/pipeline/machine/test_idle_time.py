import os

import pytest

from pipeline.machine import idle_time
from pipeline.machine.idle_time import IdleTime

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """``machine(now_s, idle=…, used=…)``: what /proc says at this moment, in seconds by core, and of process 7."""
    (tmp_path / "proc" / "7").mkdir(parents=True)

    def at(now_s, idle, waits=(0, 0), used=(0, 0)):
        monkeypatch.setattr(idle_time.time, "monotonic", lambda: now_s)
        rows = [
            f"cpu{core} 5 5 5 {round(idle_s / TICK_S)} {round(wait_s / TICK_S)} 0 0 0 0 0"
            for core, (idle_s, wait_s) in enumerate(zip(idle, waits, strict=True))
        ]
        (tmp_path / "proc/stat").write_text("\n".join(["cpu  1 2 3 4 5 6 7 8", *rows, "intr 1 2 3", "ctxt 1"]))
        user, system = (round(seconds / TICK_S) for seconds in used)
        (tmp_path / "proc/7/stat").write_text(f"7 (a ) b) S {' '.join('0' * 10)} {user} {system} 0 0")
        return tmp_path

    return at


def test_idle_and_waiting_for_disks_is_nobodys(machine):
    of_machine = IdleTime({0, 1}, machine(100, (10, 20)))
    assert of_machine.idle_cores() is None
    machine(102, (11, 21.5), waits=(0.5, 0))
    assert of_machine.idle_cores() == pytest.approx(1.5)
    machine(103, (11, 21.5), waits=(0.5, 0))
    assert of_machine.idle_cores() == 0


def test_other_cores_do_not_count(machine):
    of_machine = IdleTime({1}, machine(100, (10, 20)))
    of_machine.idle_cores()
    machine(101, (11, 20))
    assert of_machine.idle_cores() == 0


def test_the_time_of_who_takes_only_what_is_left_is_idle(machine):
    of_machine = IdleTime({0, 1}, machine(100, (10, 20)))
    assert of_machine.idle_cores(7) is None
    machine(102, (10, 21), used=(0.5, 0.25))
    assert of_machine.idle_cores(7) == pytest.approx(0.875)
    assert of_machine.idle_cores(None) is None  # another process, another beginning


def test_a_cgroup_whose_share_is_used_up_has_no_idle_time(machine):
    root = machine(100, (10, 20))
    (root / "proc/self").mkdir()
    (root / "proc/self/cgroup").write_text("0::/system.slice/edgemask.service\n")
    folder = root / "sys/fs/cgroup/system.slice/edgemask.service"
    folder.mkdir(parents=True)
    (folder.parent / "cpu.stat").write_text("usage_usec 9\nnr_throttled 0\nthrottled_usec 0\n")
    (folder / "cpu.stat").write_text("usage_usec 9\nnr_throttled 3\nthrottled_usec 4000\n")
    of_machine = IdleTime({0, 1}, root)
    of_machine.idle_cores()
    machine(101, (11, 21))
    assert of_machine.idle_cores() == pytest.approx(2)
    (folder / "cpu.stat").write_text("usage_usec 9\nnr_throttled 4\nthrottled_usec 4100\n")
    machine(102, (12, 22))
    assert of_machine.idle_cores() == 0
    machine(103, (13, 23))
    assert of_machine.idle_cores() == pytest.approx(2)


def test_a_system_that_does_not_tell(tmp_path):
    assert IdleTime({0}, tmp_path).idle_cores() is None


def test_here():
    of_machine = IdleTime(os.sched_getaffinity(0))
    assert of_machine.idle_cores() is None
    assert of_machine.idle_cores() >= 0
