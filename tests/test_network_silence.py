"""No command asks the network for what its configuration does not name: each runs in a network of its own that writes it down."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.compile.contract.family_networks import export
from tests.networks import tiny_unet  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[1]
CLIP, PICTURES = ROOT / "samples" / "clip.mp4", ROOT / "samples" / "pictures"
COMMANDS = {
    "pipeline": ("pipeline", "--source", CLIP, "--model", "{bundle}", "--output", "{out}/o.mp4", "--max-frames", 3),
    "page": ("pipeline", "--source", "test://", "--model", "{bundle}", "--serve", "127.0.0.1:0", "--max-frames", 3),
    "compile": (
        "compile",
        "--weights",
        "{weights}/unet.pth",
        "--imgsz",
        64,
        "--precision",
        "fp32",
        "--output",
        "{out}/b",
    ),
    "contract": ("compile.contract", "{weights}/net.onnx"),
    "inspect": ("compile.inspect", "{bundle}"),
    "calibration": ("calibration", "--source", PICTURES, "--output", "{out}/set", "--count", 4),
    "benchmarks": ("benchmarks", "{bundle}", "--source", "test://"),
    "doctor": ("pipeline.doctor",),
}


def _problem():
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        return "needs root, ip (iproute2) and unshare"
    made = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, check=False)
    return f"no network namespace can be made here ({made.stderr.decode().strip()})" if made.returncode else ""


pytestmark = pytest.mark.skipif(bool(_problem()), reason=_problem() or "none")


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tiny_unet):  # noqa: F811
    folder = tmp_path_factory.mktemp("weights")
    torch.save(tiny_unet(1).state_dict(), folder / "unet.pth")
    export(torch.nn.Sequential(tiny_unet(1), torch.nn.Sigmoid()), folder / "net.onnx")
    return folder


def watched(folder, *command):
    """What the watch says of a command that runs with a home and a cache of its own."""
    settings = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache"), "HOME": str(folder)}
    environment = {name: value for name, value in os.environ.items() if not name.endswith(("_TELEMETRY", "_TRACK"))}
    done = subprocess.run(
        ["unshare", "--net", "--mount", sys.executable, ROOT / "tests" / "network_watch.py", *map(str, command)],
        env={**environment, **settings},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_the_watch_sees_names_and_addresses(tmp_path):
    ask = "import socket; socket.create_connection(('reports.example', 443))"
    seen = watched(tmp_path, sys.executable, "-c", ask)
    assert (seen["names"], seen["addresses"]) == (["reports.example"], ["203.0.113.9:443"])
    direct = watched(tmp_path, sys.executable, "-c", "import socket; socket.create_connection(('198.51.100.7', 80))")
    assert (direct["names"], direct["addresses"]) == ([], ["198.51.100.7:80"])


def test_the_watch_sees_a_stream_that_is_named(tmp_path, red_bundle):
    """And nothing beside it: what a configuration names is asked for, so silence elsewhere is no deafness."""
    source = ("--source", "rtsp://camera.example/door", "--max-reconnects", 0)
    command = ("pipeline", *source, "--model", red_bundle.folder, "--output", "null")
    seen = watched(tmp_path, sys.executable, "-m", *command)
    assert seen["status"] == 2, seen
    assert (seen["names"], seen["addresses"]) == (["camera.example"], ["203.0.113.9:554"])


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_asks_nobody(name, tmp_path, red_bundle, weights):
    places = {"bundle": red_bundle.folder, "weights": weights, "out": tmp_path}
    command = [str(word).format(**places) for word in COMMANDS[name]]
    seen = watched(tmp_path, sys.executable, "-m", *command)
    assert seen["status"] == 0, seen
    assert (seen["names"], seen["addresses"]) == ([], [])
    # ONNX Runtime keeps reports, and a number for this machine, here until it sends them.
    assert not [path for path in tmp_path.rglob("*") if path.name in ("Microsoft", "onnxruntime.db")]


@pytest.mark.parametrize("module", ["pipeline", "compile", "calibration", "benchmarks"])
def test_importing_a_package_switches_reports_off(module):
    ask = f"import {module}, os; print(os.environ.get('ORT_DISABLE_TELEMETRY'), 'onnxruntime' in __import__('sys').modules)"
    environment = {name: value for name, value in os.environ.items() if not name.endswith(("_TELEMETRY", "_TRACK"))}
    done = subprocess.run(
        [sys.executable, "-c", ask], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "False"]
