import json
import os

import pytest

from benchmarks.shared.environment import environment, write_result


def test_what_a_gpu_tells(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    state = "1980 MHz, 3201 MHz, 120.5 W, 41, 0x0000000000000004"
    program.write_text(f"#!/bin/sh\ncase $1 in *driver*) echo 'NVIDIA H200, 580.1';; *) echo '{state}';; esac\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = environment()
    assert found["gpu"] == "NVIDIA H200, 580.1"
    assert found["gpu_state"] == {
        "clocks.sm": "1980 MHz",
        "clocks.mem": "3201 MHz",
        "power.draw": "120.5 W",
        "temperature.gpu": "41",
        "clocks_throttle_reasons.active": "0x0000000000000004",
    }


def test_without_one_there_is_nothing_to_tell(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = environment()
    assert (found["gpu"], found["gpu_state"], found["power_mode"], found["commit"]) == (None, None, None, None)
    assert found["jetson_state"] is None
    assert found["cores"] >= 1
    assert found["load"] >= 0


@pytest.mark.parametrize(("home", "told"), [("/home/somebody", "build ~/bundle"), ("/", "build /home/somebody/bundle")])
def test_results_do_not_tell_whose_machine_it_was(tmp_path, monkeypatch, home, told):
    monkeypatch.setenv("HOME", home)
    write_result(tmp_path / "a.json", "speed", {"missing": "build /home/somebody/bundle"})
    assert json.loads((tmp_path / "a.json").read_text())["missing"] == told


def test_a_result_is_written_with_it(tmp_path):
    write_result(tmp_path / "new" / "a.json", "speed", {"ratios": {"x": 1}})
    entries = json.loads((tmp_path / "new" / "a.json").read_text())
    assert (entries["question"], entries["ratios"]) == ("speed", {"x": 1})
    assert entries["environment"]["versions"]["numpy"]
