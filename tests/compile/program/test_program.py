# What the frame program does is written here a second time, in numpy with matrices and loops, and compared; where OpenCV or
# PyTorch have the same operation, with theirs too.

import copy
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from compile.networks.contract import Contract, built_in_contract
from compile.program.program import FrameProgram, FrameToInput, ScoresToMask
from pipeline.errors import CompileError

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
PLAIN_SIZES = [(48, 64), (71, 95), (20, 30), (48, 64 * 3 // 2 - 1), (1, 1), (7, 90)]
LARGE_SIZES = [(72, 96), (97, 140), (144, 192), (200, 60), (360, 640), (30, 1000), (131, 64)]


# --- the second way


def bilinear_matrix(size, target):
    """(target, size): row i holds the weights with which pixel i of the target is made, centres aligned."""
    matrix = np.zeros((target, size))
    for i in range(target):
        position = min(max((i + 0.5) * size / target - 0.5, 0), size - 1)
        low = int(position)
        high = min(low + 1, size - 1)
        matrix[i, low] += 1 - (position - low)
        matrix[i, high] += position - low
    return matrix


def area_matrix(size, target):
    """As ``bilinear_matrix``, but to the nearest multiple of the target first, and the mean of each block then."""
    blocks = max(1, int(size / target + 0.5))
    fine = bilinear_matrix(size, target * blocks)
    return fine.reshape(target, blocks, size).mean(1)


def resize(image_hwc, size_hw, matrix):
    rows, columns = matrix(image_hwc.shape[0], size_hw[0]), matrix(image_hwc.shape[1], size_hw[1])
    return np.tensordot(rows, image_hwc.astype(np.float64), 1).transpose(0, 2, 1).dot(columns.T).transpose(0, 2, 1)


def prepare(image_hwc, contract, matrix=area_matrix):
    x = resize(image_hwc, contract.imgsz, matrix)
    blue, green, red = x[..., 0], x[..., 1], x[..., 2]
    channels = {
        "rgb": (red, green, blue),
        "bgr": (blue, green, red),
        "grey": (0.299 * red + 0.587 * green + 0.114 * blue,),
    }[contract.channels]
    divisor = (
        max(1.0, max(channel.max() for channel in channels)) if contract.divide_by == "max" else contract.divide_by
    )
    return np.stack(
        [
            (channel / divisor - mean) / std
            for channel, mean, std in zip(channels, contract.mean, contract.std, strict=True)
        ]
    )


def to_mask(scores_chw, size_hw, contract, smooth=False):
    scores = scores_chw.astype(np.float64)
    if len(scores) == 1:
        x = 1 / (1 + np.exp(-scores)) if contract.activation == "sigmoid" else scores
        if contract.stretch:
            x = (x - x.min()) / (x.max() - x.min())
        x = resize(x.transpose(1, 2, 0), size_hw, bilinear_matrix)[..., 0]
        return np.clip(np.rint(x * 255), 0, 255)
    if smooth:
        return resize(scores.transpose(1, 2, 0), size_hw, bilinear_matrix).argmax(2)
    index = scores.argmax(0)
    rows = [i * index.shape[0] // size_hw[0] for i in range(size_hw[0])]
    columns = [j * index.shape[1] // size_hw[1] for j in range(size_hw[1])]
    return index[rows][:, columns]


def run(module, *arrays):
    with torch.inference_mode():
        given = module.eval()(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))
    return (given[0] if isinstance(given, tuple) else given).numpy()  # masks alone


class Finite(TorchDispatchMode):
    """Every result in between is finite; a NaN that is cast to uint8 at the end is 0 on one machine and 255 on another."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            assert torch.isfinite(result).all(), f"{func} gives NaN or infinity"
        return result


class Linear(nn.Module):
    """A network that is a 1×1 convolution: what goes in can be told from what comes out."""

    def __init__(self, weights):
        super().__init__()
        self.weights = torch.tensor(weights, dtype=torch.float32)

    def logits(self, x):
        return torch.einsum("kc,nchw->nkhw", self.weights, x)


# --- frames to input


@pytest.mark.parametrize("size_hw", PLAIN_SIZES)
def test_below_one_and_a_half_times_the_size_it_is_the_plain_bilinear_resize(pictures, size_hw):
    contract = Contract("x", (48, 64), channels="bgr", divide_by=1.0)
    frames = pictures(2, *size_hw)
    got = run(FrameToInput(contract), frames)
    nchw = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    theirs = F.interpolate(nchw, (48, 64), mode="bilinear", align_corners=False).numpy()
    np.testing.assert_allclose(got, theirs, atol=1e-4)
    for image, x in zip(frames, got, strict=True):
        np.testing.assert_allclose(x, resize(image, (48, 64), bilinear_matrix).transpose(2, 0, 1), atol=1e-2)
        opencv = cv2.resize(image.astype(np.float32), (64, 48), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(x, opencv.transpose(2, 0, 1), atol=1e-2)
        opencv = cv2.resize(image, (64, 48), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(x, opencv.transpose(2, 0, 1), atol=1.01)


@pytest.mark.parametrize("size_hw", LARGE_SIZES)
def test_larger_frames_are_averaged(size_hw):
    contract = Contract("x", (48, 64), channels="bgr", divide_by=1.0)
    frames = np.random.default_rng(1).integers(0, 256, (2, *size_hw, 3), dtype=np.uint8)
    for image, x in zip(frames, run(FrameToInput(contract), frames), strict=True):
        np.testing.assert_allclose(x, resize(image, (48, 64), area_matrix).transpose(2, 0, 1), atol=1e-2)


@pytest.mark.parametrize("blocks", [2, 3, 5])
def test_whole_multiples_are_opencv_area(blocks):
    contract = Contract("x", (32, 48), channels="bgr", divide_by=1.0)
    frames = np.random.default_rng(2).integers(0, 256, (1, 32 * blocks, 48 * blocks, 3), dtype=np.uint8)
    opencv = cv2.resize(frames[0].astype(np.float32), (48, 32), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(run(FrameToInput(contract), frames)[0], opencv.transpose(2, 0, 1), atol=1e-3)


def test_fine_patterns_do_not_turn_into_coarse_ones():
    # A sampling resize by 8 sees only one colour of a chessboard of single pixels, and which one changes with every step.
    board = np.indices((256, 384)).sum(0) % 2 * 255
    frames = np.repeat(board.astype(np.uint8)[None, :, :, None], 3, axis=3)
    for shift in (0, 1):
        x = run(FrameToInput(Contract("x", (32, 48), divide_by=1.0)), np.roll(frames, shift, axis=2))
        np.testing.assert_allclose(x, 127.5, atol=1e-3)


@pytest.mark.parametrize("channels", ["rgb", "bgr", "grey"])
@pytest.mark.parametrize("divide_by", [255.0, 1.0, "max"])
@pytest.mark.parametrize("size_hw", [(40, 50), (150, 170)])
def test_channels_scale_mean_and_deviation(pictures, channels, divide_by, size_hw):
    numbers = {"mean": (0.4,), "std": (0.3,)} if channels == "grey" else IMAGENET
    contract = Contract("x", (32, 48), channels=channels, divide_by=divide_by, **numbers)
    frames = pictures(3, *size_hw) // np.uint8(2)
    got = run(FrameToInput(contract), frames)
    assert got.shape == (3, len(contract.mean), 32, 48)
    assert got.dtype == np.float32
    for image, x in zip(frames, got, strict=True):
        np.testing.assert_allclose(x, prepare(image, contract), atol=1e-3 if divide_by != 1.0 else 0.1)


def test_order_of_channels():
    frames = np.full((1, 8, 8, 3), (10, 20, 30), np.uint8)
    values = {
        channels: run(FrameToInput(Contract("x", (8, 8), channels=channels, divide_by=1.0)), frames)[
            0, :, 0, 0
        ].tolist()
        for channels in ("rgb", "bgr")
    }
    assert values == {"rgb": [30, 20, 10], "bgr": [10, 20, 30]}


def test_grey_is_that_of_opencv(pictures):
    frames = pictures(1, 32, 48)
    contract = Contract("x", (32, 48), channels="grey", divide_by=1.0, mean=(0.0,), std=(1.0,))
    grey = cv2.cvtColor(frames[0], cv2.COLOR_BGR2GRAY)
    np.testing.assert_allclose(run(FrameToInput(contract), frames)[0, 0], grey, atol=0.51)


def test_every_frame_has_its_own_maximum():
    frames = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (0, 1, 50, 255)])
    frames[2, :4] = 25
    x = run(FrameToInput(Contract("x", (8, 8), divide_by="max")), frames)
    assert [image.max() for image in x] == [0, 1, 1, 1]
    assert x[2].min() == 0.5


def test_a_black_frame_is_finite():
    with Finite():
        x = run(FrameToInput(Contract("x", (8, 8), divide_by="max", **IMAGENET)), np.zeros((1, 20, 20, 3), np.uint8))
    expected = [-mean / std for mean, std in zip(*IMAGENET.values(), strict=True)]
    np.testing.assert_allclose(x[0, :, 3, 3], expected, rtol=1e-6)


def test_channels_last(pictures):
    frames = pictures(2, 40, 50)
    first = run(FrameToInput(Contract("x", (32, 48), **IMAGENET)), frames)
    last = run(FrameToInput(Contract("x", (32, 48), layout="nhwc", **IMAGENET)), frames)
    np.testing.assert_array_equal(last, first.transpose(0, 2, 3, 1))


# --- scores to mask


@pytest.mark.parametrize("stretch", [False, True])
@pytest.mark.parametrize("activation", ["sigmoid", "none"])
@pytest.mark.parametrize("size_hw", [(32, 48), (75, 101), (9, 17)])
def test_one_class_is_probability_times_255(activation, stretch, size_hw):
    contract = Contract("x", (32, 48), activation=activation, stretch=stretch)
    scores = np.random.default_rng(3).normal(size=(2, 1, 32, 48)).astype(np.float32)
    if activation == "none":
        scores = 0.2 + 0.5 * np.abs(np.tanh(scores))
    masks = run(ScoresToMask(contract), scores, np.zeros((2, *size_hw, 3), np.uint8))
    assert (masks.shape, masks.dtype) == ((2, *size_hw), np.uint8)
    for mask, score in zip(masks, scores, strict=True):
        assert np.abs(mask - to_mask(score, size_hw, contract)).max() <= 1


def test_ends_and_middle_of_probability():
    scores = np.array([-200, -1000, 0, 200, 1000], np.float32).reshape(1, 1, 1, 5)
    mask = run(ScoresToMask(Contract("x", (1, 5))), scores, np.zeros((1, 1, 5, 3), np.uint8))
    assert mask[0, 0].tolist() == [0, 0, 128, 255, 255]


def test_values_outside_0_to_1_do_not_wrap_around():
    scores = np.array([-0.5, 0.0, 1.0, 1.5, 300.0], np.float32).reshape(1, 1, 1, 5)
    contract = Contract("x", (1, 5), activation="none")
    mask = run(ScoresToMask(contract), scores, np.zeros((1, 1, 5, 3), np.uint8))
    assert mask[0, 0].tolist() == [0, 0, 255, 255, 255]


def test_stretching_goes_by_each_mask():
    scores = np.linspace(-1, 1, 2 * 32 * 48, dtype=np.float32).reshape(2, 1, 32, 48)
    masks = run(ScoresToMask(Contract("x", (32, 48), stretch=True)), scores, np.zeros((2, 32, 48, 3), np.uint8))
    assert [(mask.min(), mask.max()) for mask in masks] == [(0, 255), (0, 255)]


@pytest.mark.parametrize("value", [-50.0, 0.0, 3.0, 50.0])
def test_a_flat_map_stays_dark_when_stretched(value):
    scores = np.full((1, 1, 32, 48), value, np.float32)
    with Finite():
        mask = run(ScoresToMask(Contract("x", (32, 48), stretch=True)), scores, np.zeros((1, 75, 101, 3), np.uint8))
    assert not mask.any()


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax", "none"])
@pytest.mark.parametrize("size_hw", [(32, 48), (75, 101), (9, 17)])
def test_more_classes_are_an_index(smooth, activation, size_hw):
    contract = Contract("x", (32, 48), activation=activation, upsample="scores" if smooth else None)
    scores = np.random.default_rng(4).normal(size=(2, 5, 32, 48)).astype(np.float32)
    masks = run(ScoresToMask(contract), scores, np.zeros((2, *size_hw, 3), np.uint8))
    assert (masks.shape, masks.dtype) == ((2, *size_hw), np.uint8)
    for mask, score in zip(masks, scores, strict=True):
        assert np.mean(mask == to_mask(score, size_hw, contract, smooth)) > 0.999


def test_smooth_draws_a_slanting_border_without_steps():
    rows, columns = np.indices((16, 16))
    scores = np.stack([np.zeros((16, 16)), (columns - rows / 2 - 4)]).astype(np.float32)[None]
    frames = np.zeros((1, 160, 160, 3), np.uint8)
    widths = {
        upsample: run(ScoresToMask(Contract("x", (16, 16), upsample=upsample)), scores, frames)[0].sum(1)
        for upsample in ("classes", "scores")
    }
    steps = {upsample: np.abs(np.diff(width.astype(int))).max() for upsample, width in widths.items()}
    assert steps["scores"] <= 1
    assert steps["classes"] == 10


def test_256_classes_fit_eight_bits():
    scores = np.zeros((1, 256, 1, 2), np.float32)
    scores[0, 255, 0, 0] = scores[0, 7, 0, 1] = 1
    mask = run(ScoresToMask(Contract("x", (1, 2))), scores, np.zeros((1, 1, 2, 3), np.uint8))
    assert mask[0, 0].tolist() == [255, 7]


def test_scores_channels_last():
    scores = np.random.default_rng(5).normal(size=(1, 4, 8, 8)).astype(np.float32)
    frames = np.zeros((1, 20, 20, 3), np.uint8)
    first = run(ScoresToMask(Contract("x", (8, 8))), scores, frames)
    last = run(ScoresToMask(Contract("x", (8, 8), layout="nhwc")), scores.transpose(0, 2, 3, 1), frames)
    np.testing.assert_array_equal(first, last)


@pytest.mark.parametrize("classes", [1, 4])
def test_scores_in_half_are_enlarged_in_float(classes):
    scores = np.random.default_rng(7).normal(size=(1, classes, 16, 16)).astype(np.float16)
    frames = np.zeros((1, 100, 90, 3), np.uint8)
    module = ScoresToMask(Contract("x", (16, 16), upsample="scores"))
    np.testing.assert_array_equal(run(module, scores, frames), run(module, scores.astype(np.float32), frames))


# --- the whole program


@pytest.mark.parametrize("size_hw", [(40, 50), (150, 170), (32, 48)])
@pytest.mark.parametrize(("classes", "smooth"), [(1, False), (4, False), (4, True)])
@pytest.mark.parametrize("channels", ["rgb", "grey"])
def test_frame_to_mask(pictures, size_hw, classes, smooth, channels):
    numbers = {"mean": (0.4,), "std": (0.3,)} if channels == "grey" else IMAGENET
    contract = Contract("x", (32, 48), channels=channels, upsample="scores" if smooth else "classes", **numbers)
    weights = np.random.default_rng(6).normal(size=(classes, len(contract.mean)))
    frames = pictures(2, *size_hw)
    masks = run(FrameProgram(Linear(weights), contract), frames)
    assert masks.shape == frames.shape[:3]
    for image, mask in zip(frames, masks, strict=True):
        scores = np.einsum("kc,chw->khw", weights, prepare(image, contract))
        expected = to_mask(scores, size_hw, contract, smooth)
        if classes == 1:
            assert np.abs(mask - expected).max() <= 1
        else:
            assert np.mean(mask == expected) > 0.999


@pytest.mark.parametrize("name", ["stream", "official"])
def test_u2net_as_its_authors_run_it(tiny_u2net, pictures, name):
    contract = replace(built_in_contract("u2net-official", name, 3), imgsz=(64, 64))
    network, (image,) = tiny_u2net(), pictures(1, 90, 80) // np.uint8(2)
    mask = run(FrameProgram(network, contract), image[None])[0]
    # The authors' script, step by step.
    x = resize(image[:, :, ::-1], (64, 64), bilinear_matrix)
    x = x / (x.max() if name == "official" else 255)
    x = (x - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    with torch.no_grad():
        d = network(torch.from_numpy(x.transpose(2, 0, 1)[None]).float()).double().numpy()[0, 0]
    if name == "official":
        d = np.floor((d - d.min()) / (d.max() - d.min()) * 255) / 255  # cut to 8 bits before it is enlarged
    expected = resize(d[..., None], (90, 80), bilinear_matrix)[..., 0] * 255
    assert np.ptp(expected) > 100
    assert np.abs(mask - expected).max() <= 1


@pytest.mark.parametrize("name", ["stream", "official"])
def test_a_black_frame_through_a_network(tiny_u2net, name):
    contract = replace(built_in_contract("u2net-official", name, 3), imgsz=(64, 64))
    network = tiny_u2net()
    with torch.no_grad():
        network.out_conv.weight.zero_()  # a flat map
        network.out_conv.bias.fill_(-20)
    with Finite():
        assert not run(FrameProgram(network, contract), np.zeros((1, 50, 50, 3), np.uint8)).any()


# --- half


def _norms(network):
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def test_half_network_sees_halves_and_the_rest_float(tiny_unet):
    program = FrameProgram(tiny_unet(), Contract("x", (32, 48), **IMAGENET), half=True)
    seen = []
    program.network.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    inputs = run(program.before, np.zeros((1, 50, 50, 3), np.uint8))
    mask = run(program, np.zeros((1, 50, 50, 3), np.uint8))
    assert (inputs.dtype, mask.dtype) == (np.float32, np.uint8)
    assert seen == [(torch.float16, torch.float16)]
    assert {weight.dtype for weight in program.network.parameters()} == {torch.float16}


def test_half_keeps_normalisations_whose_variances_do_not_fit(tiny_unet, pictures):
    network = tiny_unet()
    contract = Contract("x", (32, 48), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    conv, norm = network.inc.double_conv[0], network.inc.double_conv[1]
    small_conv, small_norm = network.inc.double_conv[3], network.inc.double_conv[4]
    with torch.no_grad():
        for layer, following, factor in ((conv, norm, 1e3), (small_conv, small_norm, 1e-4)):
            layer.weight.mul_(factor)
            following.running_mean.mul_(factor)
            following.running_var.mul_(factor**2)
        small_norm.eps = 1e-13
    assert norm.running_var.max() > 65504
    assert small_norm.running_var.max() < 6e-8
    frames = pictures(2, 60, 70)
    expected = run(FrameProgram(copy.deepcopy(network), contract), frames)
    program = FrameProgram(network, contract, half=True)
    assert _norms(program.network) == []
    assert np.ptp(expected) > 100
    assert np.abs(run(program, frames).astype(int) - expected).max() <= 8


def test_weights_beyond_half_are_refused_by_name(tiny_unet):
    network = tiny_unet()
    with torch.no_grad():
        network.outc.conv.weight[0, 0] = 70_000
    with pytest.raises(CompileError, match=r"--precision: expected fp32, .* got fp16 and 7e\+04 in outc\.conv\.weight"):
        FrameProgram(network, Contract("x", (32, 48)), half=True)
