"""Mistakes of exporters, optimizers and converters that masks do not show: what masks are made of does."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from compile.program.compose import with_views
from compile.program.nv12 import with_nv12
from compile.program.open_network import open_network
from compile.proof.raw_values import FRAMES, RAW_LIMITS, RawComparison, thinned, with_raw_outputs
from compile.proof.verify import Proof, Sampling, problem_with, program_masks, raw_agreement, take_samples
from pipeline.frames.frame import Frame

CLASSES = 6
SELDOM = (4, 5)
MIN_IOU = 0.8


@pytest.fixture(scope="module")
def opened(tiny_unet, tmp_path_factory):
    """``opened(task)``: a network of six classes of which two never win, or of one class whose probabilities are all near 0 or 1."""
    folder = tmp_path_factory.mktemp("weights")

    def make(task, contract="stream"):
        network = tiny_unet(CLASSES if task == "classes" else 1)
        with torch.no_grad():
            if task == "classes":
                network.outc.conv.bias[list(SELDOM)] -= 60
            else:
                network.outc.conv.weight.mul_(100), network.outc.conv.bias.mul_(100)
        torch.save(network.state_dict(), folder / f"{task}.pth")
        return open_network(folder / f"{task}.pth", contract, imgsz=(64, 64))

    return make


def samples_of(network, images, **sampling):
    frames = [Frame(np.ascontiguousarray(image), index, 0.0, "x", str(index)) for index, image in enumerate(images)]
    return take_samples(frames, network.reference, "x", Sampling(network.task, **sampling))


def behind(program, name, node, *tensors):
    """The program with one more node behind a value, for all who read it."""
    model = onnx.load_from_string(program)
    for reader in model.graph.node:
        for place, read in enumerate(reader.input):
            if read == name:
                reader.input[place] = "planted"
    made = next(place for place, maker in enumerate(model.graph.node) if name in maker.output)
    model.graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in tensors)
    model.graph.node.insert(made + 1, node)
    return model.SerializeToString()


def scores_name(program):
    return with_raw_outputs(program)[1]["scores"]


def exchanged(program):
    name, order = scores_name(program), np.array([0, 1, 2, 3, 5, 4])
    node = helper.make_node("Gather", [name, "order"], ["planted"], axis=1)
    return behind(program, name, node, ("order", order))


def arithmetic(kind, number):
    def plant(program):
        name = scores_name(program)
        node = helper.make_node(kind, [name, "number"], ["planted"])
        return behind(program, name, node, ("number", np.array(number, np.float32)))

    return plant


def second_softmax(program):
    name = scores_name(program)
    return behind(program, name, helper.make_node("Softmax", [name], ["planted"], axis=1))


def without_sigmoid(program):
    model = onnx.load_from_string(program)
    (sigmoid,) = [node for node in model.graph.node if node.op_type == "Sigmoid"]
    sigmoid.op_type = "Identity"
    return model.SerializeToString()


def judged(program, samples, task, precision="fp32", **how):
    """What the gate says of masks alone, and of all."""
    masks, runtime = program_masks(program, **how)
    verification = Proof(samples, task, "frames").of(masks, runtime)
    raw = raw_agreement(program, samples, RAW_LIMITS[precision], **how)
    return problem_with(verification, MIN_IOU), problem_with(replace(verification, raw=raw), MIN_IOU), raw


@pytest.mark.parametrize(
    ("task", "plant", "told"),
    [
        ("classes", exchanged, "expected the scores of class 4 as the reference gives them, got those of its class 5"),
        ("classes", arithmetic("Add", 2.0), "expected scores within 0.001 of the reference's"),
        ("classes", arithmetic("Mul", 1.02), "expected scores within 0.001 of the reference's"),
        ("classes", second_softmax, "expected scores within 0.001 of the reference's"),
        ("binary", arithmetic("Mul", 3.0), "expected scores within 0.001 of the reference's"),
        ("binary", arithmetic("Add", 0.3), "expected scores within 0.001 of the reference's"),
        ("binary", without_sigmoid, "expected values that become masks within 0.001 of the reference's"),
    ],
    ids=["exchanged", "offset", "scale", "softmax", "scale-binary", "offset-binary", "no-sigmoid"],
)
def test_a_mistake_that_masks_do_not_show(opened, pictures, task, plant, told):
    network = opened(task)
    samples = samples_of(network, pictures(6, 64, 64, seed=2))
    right = network.export("fp32", None, ()).SerializeToString()
    assert judged(right, samples, task)[:2] == (None, None)
    by_masks, by_all, _ = judged(plant(right), samples, task)
    assert by_masks is None
    assert told in by_all
    assert "or allow it with --min-iou 0" in by_all


def test_channels_in_another_order(opened, pictures, tmp_path):
    """On pictures with hardly a color the masks are the same."""
    grey = pictures(6, 70, 90, seed=2).mean(-1, keepdims=True) + np.array([0, 0, 1])
    network = opened("binary")
    samples = samples_of(network, grey.clip(0, 255).astype(np.uint8))
    (tmp_path / "other.yaml").write_text("channels: bgr\n")
    other = opened("binary", str(tmp_path / "other.yaml")).export("fp32", None, ()).SerializeToString()
    by_masks, by_all, raw = judged(other, samples, "binary")
    assert raw.scores > RAW_LIMITS["fp32"]
    assert by_masks is None
    assert "expected scores within" in by_all


@pytest.mark.parametrize("task", ["classes", "binary"])
def test_rounding_is_not_a_mistake(opened, pictures, task):
    network = opened(task)
    samples = samples_of(network, pictures(6, 70, 90, seed=2))
    for precision in ("fp32", "fp16"):
        _, problem, raw = judged(network.export(precision, None, ()).SerializeToString(), samples, task, precision)
        assert problem is None
        assert 0 < raw.worst < RAW_LIMITS[precision] / 4
        assert raw.frames == FRAMES


def test_an_exchange_is_seen_in_fp16_and_int8_too(opened, pictures):
    network = opened("classes")
    samples = samples_of(network, pictures(6, 70, 90, seed=2))
    wrong = exchanged(network.export("fp16", None, ()).SerializeToString())
    for precision in ("fp16", "int8"):
        by_masks, by_all, _ = judged(wrong, samples, "classes", precision)
        assert by_masks is None
        assert "got those of its class 5" in by_all


def test_programs_that_compose_and_take_nv12_are_looked_into(opened, pictures):
    network = opened("binary")
    plain = network.export("fp32", None, ()).SerializeToString()
    images = pictures(4, 70, 90, seed=2)
    assert judged(with_views(plain, None), samples_of(network, images), "binary")[1] is None
    network = opened("classes")
    converting = with_nv12(network.export("fp32", None, ()).SerializeToString(), None)
    samples = samples_of(network, images, pixels="nv12")
    *_, raw = judged(converting, samples, "classes", "fp16", pixels="nv12")
    assert raw.problem is None
    assert 0 < raw.scores < RAW_LIMITS["fp16"]


def test_what_is_compared_is_the_same_on_both_sides():
    values = np.arange(2 * 3 * 400 * 500, dtype=np.float32).reshape(2, 3, 400, 500)
    few = thinned(values)
    assert few.shape[:2] == (2, 3)
    assert few.shape[2] < 400 * 500
    np.testing.assert_array_equal(few, thinned(values.copy()))
    np.testing.assert_array_equal(few[0, 1] - few[0, 0], 400 * 500)
    small = values[:, :, :10, :10]
    np.testing.assert_array_equal(thinned(small), small.reshape(2, 3, 100))


def comparison(got, expected):
    made = RawComparison()
    made.add(np.asarray(got, np.float32), np.asarray(expected, np.float32))
    return made


def test_errors_are_shares_of_the_deviation():
    expected = np.random.default_rng(0).normal(0, 2, (1, 4, 5000)) + np.arange(4).reshape(1, 4, 1) * 100
    assert comparison(expected, expected).error() == 0
    assert comparison(expected + 1, expected).error() == pytest.approx(0.5, rel=0.05)
    assert comparison(expected[:, :3], expected).error() == float("inf")
    assert comparison(np.where(expected > 0, np.inf, expected), expected).error() == float("inf")
    assert comparison(np.zeros((1, 1, 9)), np.zeros((1, 1, 9))).error() == 0
    assert comparison(np.full((1, 1, 9), 2.0), np.full((1, 1, 9), 1.0)).error() == 1


def test_classes_that_are_alike_are_not_taken_for_each_other():
    random = np.random.default_rng(0)
    expected = random.normal(0, 1, (1, 5, 4000))
    expected[:, 3] = expected[:, 2] + random.normal(0, 1e-3, 4000)
    expected[:, 4] = 0
    noisy = expected + random.normal(0, 0.2, expected.shape)
    assert comparison(noisy, expected).exchanged(0.5) is None
    assert comparison(noisy[:, [1, 0, 2, 3, 4]], expected).exchanged(0.5) == (0, 1)
    assert comparison(expected[:, :1], expected[:, :1]).exchanged(0.5) is None
