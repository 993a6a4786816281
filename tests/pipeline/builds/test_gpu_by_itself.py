"""``python -m pipeline`` on a machine with a GPU (a fake one, see ``engines/fake_machine``): every start a process of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.bundles.bundle import Bundle

ROOT = Path(__file__).parents[3]
FAKE = Path(__file__).parents[1] / "engines" / "fake_machine"
SOURCE = "test://?size=64x48&frames=2"
# What a run says in any case: its source, its model, and its summary.
USUAL = (
    "source: ",
    "model: ",
    "program: it does not count ",
    "2 frames in ",
    "  decode ",
    "  engine ",
    "  render ",
    "   write ",
)
# What a build says.
BUILD = ("building a TensorRT plan for ", "on TensorRT ")
ON_GPU, ON_CPU = "on TensorRT 10.3.0.30, Fake GPU (8.9)", "on ONNX Runtime "
pytestmark = pytest.mark.needs("tensorrt_rtx_bindings")


class Machine:
    """A machine with a fake GPU; ``fake`` is what it keeps for itself, ``cache`` the cache folder."""

    def __init__(self, folder, bundle):
        self.fake, self.cache, self.bundle, self.out = (folder / name for name in ("fake", "cache", "bundle", "out"))
        shutil.copytree(bundle.folder, self.bundle)
        self.fake.mkdir()

    def start(self, *arguments, state="", source=SOURCE, output=None, **environment):
        """The command as a process, in a session of its own."""
        variables = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(FAKE), str(ROOT))),
            "EDGEMASK_CACHE": str(self.cache),
            "EDGEMASK_FAKE": str(self.fake),
            "EDGEMASK_FAKE_STATE": state,
            "EDGEMASK_TENSORRT_RTX_LIBS": str(self.fake),
            **environment,
        }
        variables.pop("CUDA_VISIBLE_DEVICES", None)
        given = ("--source", source, "--model", self.bundle, "--output", output or self.out, "--render", "mask")
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", *map(str, (*given, *arguments))],
            cwd=ROOT,
            env=variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments, **options):
        """The lines that the command says, which must end well."""
        process = self.start(*arguments, **options)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        return errors.splitlines()

    def builds(self):
        """How many plans were begun."""
        path = self.fake / "builds"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def masks(self):
        """The masks that were written."""
        return [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted(self.out.iterdir())]


def unusual(lines):
    """What is said beside what is said in any case, without what a build says of itself."""
    lines = [line for line in lines if not line.startswith((*USUAL, *BUILD))]
    return [line for line in lines if " MB in " not in line]


def model_line(lines):
    (line,) = (line for line in lines if line.startswith("model: "))
    return line


@pytest.fixture
def machine(tmp_path, red_bundle):
    return Machine(tmp_path, red_bundle)


@pytest.fixture(scope="module")
def expected(red_bundle, tmp_path_factory):
    """The masks of the CPU."""
    machine = Machine(tmp_path_factory.mktemp("cpu"), red_bundle)
    assert unusual(machine.run("--backend", "onnxruntime")) == []
    assert machine.builds() == 0
    masks = machine.masks()
    assert len(masks) == 2
    assert len(np.unique(masks)) > 20
    return masks


def test_the_first_start_builds_a_plan_and_the_second_one_runs_it(machine):
    for _ in range(2):
        lines = machine.run("--max-frames", "2", source=ROOT / "samples" / "clip.mp4", output="null")
        assert ON_GPU in model_line(lines)
        assert unusual(lines) == []
        assert machine.builds() == 1
    (entry,) = Bundle.read(machine.bundle).manifest.engines
    assert (entry.runtime, entry.sms) == ("tensorrt", (89,))


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("no TensorRT", ("TensorRT is not here", "pip install 'edgemask[tensorrt]'")),
        ("no PyCUDA", ("pycuda", "pip install 'edgemask[pycuda]'")),
        ("old", ("expected 10.3 or newer", "got 8.6.1.6", "sudo apt install nvidia-jetpack")),
        ("no driver", ("no CUDA-capable device", "python -m pipeline.doctor")),
        ("no memory", ("out of device memory", "python -m compile --bundle", "--workspace 1")),
        ("build fails", ("OutOfMemory", "python -m compile --bundle", "--workspace 1")),
        ("build is killed", ("SIGKILL", "python -m compile --bundle", "--workspace 1")),
    ],
)
def test_a_gpu_that_cannot_be_used_is_one_line_and_the_masks_are_those_of_the_cpu(machine, expected, state, says):
    lines = machine.run(state=state)
    assert ON_CPU in model_line(lines)
    (line,) = unusual(lines)
    assert line.startswith("on the CPU: ")
    assert all(part in line for part in says)
    np.testing.assert_array_equal(machine.masks(), expected)
    assert Bundle.read(machine.bundle).manifest.engines == ()


@pytest.mark.parametrize("options", [("--rebuild", "never"), ("--backend", "onnxruntime")])
def test_nothing_is_built_or_said_where_the_cpu_is_asked_for(machine, options):
    lines = machine.run(*options)
    assert ON_CPU in model_line(lines)
    assert unusual(lines) == []
    assert machine.builds() == 0


@pytest.mark.parametrize("spoilt", ["for another GPU", "of an older version", "damaged"])
def test_a_plan_that_does_not_do_is_built_anew_and_told_in_one_line(machine, expected, spoilt):
    machine.run()
    path = machine.bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    (entry,) = manifest["engines"]
    if spoilt == "damaged":
        (machine.bundle / entry["file"]).write_bytes(bytes(entry["size_bytes"]))
    else:
        entry |= {"sms": [75]} if spoilt == "for another GPU" else {"version": "10.2.0.19"}
        path.write_text(json.dumps(manifest))
    lines = machine.run()
    assert ON_GPU in model_line(lines)
    told = [line for line in unusual(lines) if "left out" not in line]
    assert len(told) == 1
    assert told[0].endswith(": done now")
    assert machine.builds() == 2
    np.testing.assert_array_equal(machine.masks(), expected)
    assert ON_GPU in model_line(machine.run())
    assert machine.builds() == 2


def test_a_bundle_that_cannot_be_written_has_its_plan_in_the_cache(machine, expected):
    before = sorted(machine.bundle.rglob("*"))
    machine.bundle.chmod(0o555)
    for _ in range(2):
        lines = machine.run()
        assert ON_GPU in model_line(lines)
        assert unusual(lines) == []
    assert machine.builds() == 1
    assert sorted(machine.bundle.rglob("*")) == before
    np.testing.assert_array_equal(machine.masks(), expected)
    (kept,) = (machine.cache / "plans").iterdir()
    assert len(Bundle.read(kept).manifest.engines) == 1


def test_where_no_plan_can_be_kept_the_cpu_works(machine):
    machine.bundle.chmod(0o555)
    machine.cache.touch()
    lines = machine.run()
    assert ON_CPU in model_line(lines)
    (line,) = unusual(lines)
    assert "EDGEMASK_CACHE=DIR" in line
    assert machine.builds() == 0


def test_two_that_start_at_once_build_one_plan(machine):
    machine.bundle.chmod(0o555)
    first = machine.start(state="slow", output="null")
    for line in first.stderr:
        if line.startswith("building"):
            break
    second = machine.start(state="slow", output="null")
    said = []
    for line in second.stderr:
        said.append(line.rstrip())
        if "another process" in line:
            break
    (machine.fake / "go on").touch()
    said += second.communicate(timeout=120)[1].splitlines()
    first.communicate(timeout=120)
    assert (first.returncode, second.returncode) == (0, 0)
    assert ON_GPU in model_line(said)
    assert len(unusual(said)) == 1
    assert machine.builds() == 1


def test_the_next_one_waits_for_a_build_whose_starter_was_killed(machine):
    first = machine.start(state="slow", output="null")
    for line in first.stderr:
        if line.startswith("building"):
            break
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    second = machine.start(state="slow", output="null")
    for line in second.stderr:
        if "another process" in line:
            break
    (machine.fake / "go on").touch()
    assert ON_GPU in model_line(second.communicate(timeout=120)[1].splitlines())
    first.stderr.close()
    assert machine.builds() == 1


def test_killed_at_any_moment_of_the_first_build_the_next_start_is_right(tmp_path, red_bundle, expected):
    whole = Machine(tmp_path / "whole", red_bundle)
    whole.bundle.chmod(0o555)
    whole.run(EDGEMASK_FAKE_KILL="0")
    changes = (whole.fake / "changes").stat().st_size
    assert changes > 10

    def killed(moment):
        machine = Machine(tmp_path / str(moment), red_bundle)
        machine.bundle.chmod(0o555)
        process = machine.start(EDGEMASK_FAKE_KILL=str(moment))
        process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, moment
        lines = machine.run()
        assert ON_GPU in model_line(lines), moment
        np.testing.assert_array_equal(machine.masks(), expected)
        assert len([name for name in os.listdir(machine.cache / "plans") if not name.startswith(".")]) == 1

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(killed, np.linspace(1, changes, 10).round().astype(int).tolist()))
