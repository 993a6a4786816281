"""Bundles of two programs, and gates whose process is not starved on a busy machine."""

import os
import time

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import pipeline.audit.shadow_gate as shadow_gate
from pipeline.audit.rate import Rate
from pipeline.audit.shadow_gate import ShadowGate
from pipeline.bundles.bundle import PROGRAM_NAME, REFERENCE_NAME, Bundle
from pipeline.frames.frame import Frame
from tests.conftest import red_program, write_bundle

EVERY = Rate(frames=1)
PATIENCE_S = 120  # only a broken test waits so long

# Before Python begins: the process of the audits keeps the priority of the tests.
_HURRIED = """
import os
os.setpriority = os.sched_setscheduler = lambda *_: None
"""


def wait_for(condition):
    """Until something is so."""
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, "it did not become so"
        time.sleep(0.01)


@pytest.fixture
def hurried(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("hurried")
    (folder / "sitecustomize.py").write_text(_HURRIED)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))))


@pytest.fixture
def idle(monkeypatch):
    """The machine has time, whatever else runs on it."""
    monkeypatch.setattr(shadow_gate, "_LEAST_IDLE_CORES", -1.0)


@pytest.fixture
def open_gate(hurried, idle):
    """``open_gate(bundle, rate)``: a gate that is closed at the end of the test."""
    gates = []

    def open_it(bundle, rate=EVERY, sources=("door",)):
        gates.append(ShadowGate(bundle, rate, sources))
        return gates[-1]

    yield open_it
    for gate in gates:
        gate.close()


@pytest.fixture
def audit(open_gate):
    """``audit(gate, frame)``: hand a frame over, and wait for what comes of it."""

    def have(gate, frame):
        before = gate.newest(frame.source)
        gate.computed(frame)
        wait_for(lambda: gate.newest(frame.source) is not before)
        wait_for(lambda: not gate.is_busy)
        return gate.newest(frame.source)

    return have


def picture(seed, size_hw=(90, 160)):
    """(H, W, 3) uint8 BGR, smooth."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return cv2.resize(coarse, size_hw[::-1], interpolation=cv2.INTER_CUBIC)


def frame_of(image, mask, index=0, source="door", **facts):
    return Frame(image, index, index / 25, source, f"{index:06d}", mask=mask, **facts)


def red_frame(seed, size_hw=(90, 160), index=None, source="door", **facts):
    """With its red channel as its mask, and few pixels that are neither in nor out."""
    image = np.where(picture(seed, size_hw) < 128, np.uint8(10), np.uint8(240))
    return frame_of(image, image[..., 2].copy(), seed if index is None else index, source, **facts)


def steep_program(weight=10.0, bias=-1000.0):
    """masks = 10 × red − 1000, from 0 to 255, as a convolution."""
    nodes = [
        helper.make_node("Cast", ["frames"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["x"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["nchw", "weight", "bias"], ["scores"]),
        helper.make_node("Clip", ["scores", "zero", "most"], ["levels"]),
        helper.make_node("Squeeze", ["levels", "channel"], ["level"]),
        helper.make_node("Cast", ["level"], ["masks"], to=TensorProto.UINT8),
    ]
    kernel = np.zeros((1, 3, 1, 1), np.float32)
    kernel[0, 2] = weight
    values = {
        "weight": kernel,
        "bias": np.array([bias], np.float32),
        "zero": np.float32(0),
        "most": np.float32(255),
        "channel": np.array([1], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "steep",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["N", "H", "W", 3])],
        [helper.make_tensor_value_info("masks", TensorProto.UINT8, ["N", "H", "W"])],
        initializer=[numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def spoiled(program, layer="weight", factor=1.3):
    """The program with the weights of one layer scaled."""
    model = onnx.load_from_string(program)
    [weights] = [one for one in model.graph.initializer if one.name == layer]
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * np.float32(factor), layer))
    return model.SerializeToString()


def two_programs(folder, program, reference, **manifest):
    """A bundle in FP16, if nothing else is said, with its program in FP32 beside."""
    bundle = write_bundle(folder, program, **{"precision": "fp16", **manifest})
    return Bundle.write(folder, bundle.manifest, {PROGRAM_NAME: program, REFERENCE_NAME: reference})


@pytest.fixture
def red_twice(tmp_path):
    """A bundle whose two programs give the red channel."""
    return two_programs(tmp_path / "red twice", red_program(), red_program())
