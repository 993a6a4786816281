"""What the tests share: markers that skip with a reason or fail on demand, and bundles small enough to make on the spot."""

import importlib.util
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pipeline.bundles.bundle import PROGRAM_NAME, Bundle, Manifest
from pipeline.terminal import LOGGER

ROOT = Path(__file__).parents[1]

# As the command does: OpenCV reads it when the first test imports it.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")

# Under nohup it comes ignored, which the command respects: the tests of a closed terminal mean a terminal.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


# Files that take longest, as they were timed. Several workers are done at the same time if they begin with these.
LONGEST = (
    "test_kills",
    "test_int8_trained",
    "test_triton",
    "test_demo",
    "test_properties",
    "test_outputs",
    "test_quantized",
    "test_onnx_graph",
    "test_published",
    "test_onnx_export",
    "test_tensorrt_build",
    "test_accuracy",
    "test_precisions",
    "test_not_finite",
    "test_torch_tensorrt_build",
    "test_slow_engine",
    "test_cpu_int8",
    "test_nv12",
    "test_cli",
    "test_gpu_by_itself",
    "test_network_silence",
    "test_killed",
    "test_oddities",
    "test_nothing_is_lost",
    "test_replay",
    "test_beside",
)


def pytest_collection_modifyitems(items):
    place = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))  # stable: the others keep their order
    for item in items:
        for mark in item.iter_markers("needs"):
            _skip_without(item, mark.args[0], importlib.util.find_spec(mark.args[0]) is not None)
        for mark in item.iter_markers("needs_program"):
            _skip_without(item, mark.args[0], shutil.which(mark.args[0]) is not None)
        for _ in item.iter_markers("gpu"):
            _skip_without(item, "gpu", shutil.which("nvidia-smi") is not None)


def _skip_without(item, name, found):
    if not found and not os.environ.get(f"FAIL_WITHOUT_{name.upper().replace('-', '_')}"):
        item.add_marker(pytest.mark.skip(reason=f"{name} is not on this machine"))


@pytest.fixture(autouse=True)
def _signals_restored():
    """A command run inside the test process must not keep its signal handlers."""
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.fixture
def said():
    """What the project logs in this test, line by line, from any thread; a list that grows."""
    lines = []

    class Lines(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    handler, logger = Lines(), logging.getLogger(LOGGER)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture(autouse=True)
def _no_width(monkeypatch):
    """What is printed has the width that it has without a terminal; workers of pytest-xdist are told one."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def _no_gpu(request, monkeypatch):
    """A GPU of the machine that runs the tests is for those that are marked gpu: the others' bundles must not get plans for it."""
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread():
    """Tiny networks on two threads are several times slower than on one when the machine is busy."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ecssd():
    """The ECSSD pictures beside the project: folders images/ and masks/."""
    folder = ROOT.parent / "shared" / "data" / "ecssd"
    if not folder.is_dir():
        pytest.skip("the ECSSD pictures are not beside the project")
    return folder


@pytest.fixture(scope="session")
def published_u2netp():
    """The published u2netp.onnx, fetched once into the user's cache; only for tests marked network."""
    from compile.networks.zoo import fetch
    from pipeline.bundles.bundle import cache_folder

    return fetch("u2netp", cache_folder() / "weights", progress=False)


@pytest.fixture(scope="session")
def u2netp_bundle():
    """The U²-NetP of the package: FP32, contract "stream"."""
    from pipeline.builds.model_name import PUBLISHED

    return Bundle.read(PUBLISHED / "u2netp")


@pytest.fixture(scope="session")
def red_bundle(tmp_path_factory):
    """A binary bundle whose mask is the frame's red channel: what must come out is plain to see."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "red")


@pytest.fixture(scope="session")
def class_bundle(tmp_path_factory):
    """A bundle of 3 classes whose class index is the frame's red channel."""
    return write_bundle(
        tmp_path_factory.mktemp("bundles") / "classes", task="classes", classes=("background", "road", "car")
    )


@pytest.fixture(scope="session")
def counting_bundle(tmp_path_factory):
    """A bundle like ``red_bundle`` whose program counts: as many scores are not finite as pixels have 255 as their red."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "counting", red_program(counts=True))


def write_bundle(folder, program=None, **manifest):
    """Write a bundle with a program that gives a frame's red channel as its mask."""
    entries = {
        "model": "red",
        "task": "binary",
        "classes": ("subject",),
        "network_size_hw": (1, 1),
        "precision": "fp32",
        "contract": {"name": "stream"},
        "weights": {},
        "tools": {},
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Bundle.write(folder, Manifest(**{**entries, **manifest}), {PROGRAM_NAME: program or red_program()})


def red_program(*, counts=False):
    """A frame program as ONNX bytes: masks = frames[..., 2]; not_finite, if it counts, is how many of them are 255."""
    nodes = [  # TensorRT takes uint8 only at the border of a network
        helper.make_node("Cast", ["frames"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["numbers", "red"], ["reds"], axis=3),
        helper.make_node("Cast", ["reds"], ["masks"], to=TensorProto.UINT8),
    ]
    outputs = [helper.make_tensor_value_info("masks", TensorProto.UINT8, ["N", "H", "W"])]
    if counts:
        nodes += [
            helper.make_node("Greater", ["reds", "most"], ["whole"]),
            helper.make_node("Cast", ["whole"], ["ones"], to=TensorProto.INT32),
            helper.make_node("ReduceSum", ["ones", "sides"], ["not_finite"], keepdims=0),
        ]
        outputs.append(helper.make_tensor_value_info("not_finite", TensorProto.INT32, ["N"]))
    graph = helper.make_graph(
        nodes,
        "red",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["N", "H", "W", 3])],
        outputs,
        initializer=[
            helper.make_tensor("red", TensorProto.INT64, [], [2]),
            helper.make_tensor("most", TensorProto.FLOAT, [], [254]),
            helper.make_tensor("sides", TensorProto.INT64, [2], [1, 2]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def run_module(module, *arguments, check=False, cwd=ROOT, env=None, timeout=300):
    """Run ``python -m module arguments`` as a user would, without a display; gives status, standard output and error."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        environment.pop(name, None)
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


@pytest.fixture(scope="session")
def cli():
    """``cli("pipeline", "--source", …)``: runs the command in a process of its own."""
    return run_module


@pytest.fixture
def picture_hwc():
    """(90, 160, 3) uint8 BGR with a red square at rows 30:60, columns 50:110 on dark blue."""
    image = np.full((90, 160, 3), (70, 30, 10), np.uint8)
    image[30:60, 50:110] = (20, 20, 240)
    return image
