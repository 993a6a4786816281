# What comes out of networks that nobody here wrote, and what masks become of it, beside NumPy and ONNX Runtime.

import warnings
from functools import cache

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compile.build import build
from pipeline.errors import CompileError

SIZE = 64
PRECISE = 0.999


class Colors(nn.Module):
    """Scores of ``channels`` classes by the colors around a pixel, at a part of the size."""

    def __init__(self, channels, stride=1):
        super().__init__()
        generator = torch.Generator().manual_seed(channels)
        self.first, self.last = nn.Conv2d(3, 12, 5, stride, 2), nn.Conv2d(12, channels, 1)
        for layer in (self.first, self.last):
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator) / layer.weight[0].numel() ** 0.5
        self.eval()

    def forward(self, x):
        return self.last(self.first(x - 0.4).relu()) * 12.0


class Ending(nn.Module):
    """A network, and a function of its scores."""

    def __init__(self, network, function):
        super().__init__()
        self.network, self.function = network, function

    def forward(self, x):
        return self.function(self.network(x))


@cache
def balanced(channels, stride=1):
    """Scores around 0 on pictures such as these, so that every class has a part of them."""
    network = Colors(channels, stride)
    with torch.inference_mode():
        scores = network(torch.from_numpy(inputs(pictures_of(6, seed=5))))
        network.last.bias.data -= scores.mean((0, 2, 3)) / 12
    return network.requires_grad_(False)


def pictures_of(count, seed):
    """(N, 96, 128, 3) uint8: soft blobs of color."""
    noise = np.random.default_rng(seed).normal(size=(count, 6, 8, 3)).astype(np.float32)
    enlarged = np.stack([cv2.resize(one, (128, 96), interpolation=cv2.INTER_CUBIC) for one in noise])
    return (128 + 70 * enlarged).clip(0, 255).astype(np.uint8)


def bilinear(planes, size_hw):
    """(N, C, h, w) to another size, with NumPy: weights of the two nearest places on each axis."""
    for axis, side in ((2, size_hw[0]), (3, size_hw[1])):
        there = planes.shape[axis]
        place = (np.arange(side) + 0.5) * there / side - 0.5
        place = place.clip(0, there - 1)
        low = np.floor(place).astype(int).clip(0, max(there - 2, 0))
        share = (place - low).reshape((-1, 1) if axis == 2 else (1, -1))
        planes = planes.take(low, axis) * (1 - share) + planes.take((low + 1).clip(0, there - 1), axis) * share
    return planes


def nearest(planes, size_hw):
    rows, columns = (np.arange(side) * there // side for side, there in zip(size_hw, planes.shape[2:], strict=True))
    return planes[:, :, rows][..., columns]


def inputs(frames):
    """(N, H, W, 3) uint8 BGR to (N, 3, 64, 64), RGB from 0 to 1."""
    return (bilinear(frames[..., ::-1].transpose(0, 3, 1, 2).astype(np.float64), (SIZE, SIZE)) / 255).astype(np.float32)


def saved(network, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if path.suffix == ".pt2":
            batch = ({0: torch.export.Dim("N", max=64)},)
            program = torch.export.export(network.eval(), (torch.zeros(2, 3, SIZE, SIZE),), dynamic_shapes=batch)
            torch.export.save(program, path)
        else:
            example = (torch.zeros(1, 3, SIZE, SIZE),)
            torch.onnx.export(network.eval(), example, str(path), dynamo=False, opset_version=17)
    return path


def raw(network, frames, folder):
    """(N, C, h, w) scores of a network by ONNX Runtime."""
    session = onnxruntime.InferenceSession(str(saved(network, folder / "raw.onnx")), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: one[None]})[0] for one in inputs(frames)])


def sigmoid(z):
    return 1 / (1 + np.exp(-z.astype(np.float64)))


def softmax(z):
    power = np.exp(z.astype(np.float64) - z.max(1, keepdims=True))
    return power / power.sum(1, keepdims=True)


def as_bytes(probability, size_hw):
    return np.rint(bilinear(probability, size_hw) * 255).clip(0, 255).astype(np.uint8)[:, 0]


def index_of(scores):
    return scores.argmax(1, keepdims=True).astype(np.uint8)


def labels_of(probability):
    return np.where(probability.max(1, keepdims=True) >= 0.5, 1 + index_of(probability), 0).astype(np.uint8)


# What is expected of raw scores (N, C, h, w).
def probability_of(channel, activation):
    return lambda z, size: as_bytes(activation(z)[:, channel : channel + 1], size)


def classes_by_scores(z, size):
    return index_of(bilinear(z.astype(np.float64), size))[:, 0]


def classes_by_nearest(z, size):
    return nearest(index_of(z), size)[:, 0]


def labels_by_scores(z, size):
    return labels_of(bilinear(sigmoid(z), size))[:, 0]


def labels_by_nearest(z, size):
    return nearest(labels_of(sigmoid(z)), size)[:, 0]


def truncated(z, size):
    return as_bytes(np.floor(sigmoid(z) * 255) / 255, size)


def decided(z, size):
    return nearest((z > 0).astype(np.uint8) * 255, size)[:, 0]


def remapped(z, size):
    return nearest(np.array([2, 0, 1], np.uint8)[index_of(z)], size)[:, 0]


def shifted(z, size):
    return as_bytes(sigmoid(z - np.log(0.3 / 0.7)), size)


def remap(z):
    return torch.tensor([2, 0, 1])[z.argmax(1)]


one, both = probability_of(0, sigmoid), probability_of(1, softmax)
SUBJECT = ("subject",)
NAMED = "classes: [sky, road, car]"

# name: channels, stride, what the network does in the end, contract, what is expected, classes of the manifest
CASES = {
    "subject of logits": (2, 1, None, "subject: 1", both, SUBJECT),
    "subject of 3, named": (3, 2, None, f"subject: 2\n{NAMED}", probability_of(2, softmax), ("car",)),
    "subject of a softmax": (2, 1, lambda z: z.softmax(1), "subject: 1", both, SUBJECT),
    "subject of probabilities": (2, 1, lambda z: z.softmax(1), "subject: 1\nactivation: none", both, SUBJECT),
    "subject of clipped ones": (
        *(2, 1, lambda z: z.softmax(1).clamp(0, 1), "subject: 1\nactivation: none", both),
        SUBJECT,
    ),
    "subject of labels": (3, 1, None, "subject: 2\nmultilabel: true", probability_of(2, sigmoid), SUBJECT),
    "labels": (3, 1, None, "multilabel: true", labels_by_nearest, ("background", "class 1", "class 2", "class 3")),
    "labels of a sigmoid, small": (
        *(3, 4, lambda z: z.sigmoid(), f"multilabel: true\n{NAMED}", labels_by_scores),
        ("background", "sky", "road", "car"),
    ),
    "classes": (3, 1, None, NAMED, classes_by_nearest, ("sky", "road", "car")),
    "classes at a quarter": (3, 4, None, NAMED, classes_by_scores, ("sky", "road", "car")),
    "classes at a quarter, as said": (3, 4, None, f"{NAMED}\nupsample: classes", classes_by_nearest, None),
    "scores at full size, as said": (3, 1, None, f"{NAMED}\nupsample: scores", classes_by_scores, None),
    "argmax": (3, 4, lambda z: z.argmax(1), NAMED, classes_by_scores, ("sky", "road", "car")),
    "argmax, axis kept": (3, 1, lambda z: z.argmax(1, keepdim=True), "", classes_by_nearest, None),
    "argmax as bytes": (3, 4, lambda z: z.argmax(1).to(torch.uint8), "", classes_by_scores, None),
    "argmax as int32, subject": (2, 1, lambda z: z.argmax(1).int(), "subject: 1", both, SUBJECT),
    "argmax of a softmax, last axis": (
        *(3, 1, lambda z: z.permute(0, 2, 3, 1).softmax(-1).argmax(-1), NAMED, classes_by_nearest),
        None,
    ),
    "other numbers": (3, 2, remap, NAMED, remapped, ("sky", "road", "car")),
    "other numbers, subject": (
        *(3, 2, remap, "subject: 2", lambda z, size: (remapped(z, size) == 2).astype(np.uint8) * 255),
        SUBJECT,
    ),
    "probability above 0.5": (1, 4, lambda z: z.sigmoid() > 0.5, "", one, SUBJECT),
    "probability above 0.3": (1, 1, lambda z: (z.sigmoid() > 0.3).to(torch.uint8) * 255, "", shifted, SUBJECT),
    "logits above 0": (1, 1, lambda z: (z > 0).squeeze(1).float(), "", one, SUBJECT),
    "bool": (1, 2, lambda z: torch.logical_and(z > 0, z > -1), "", decided, SUBJECT),
    "one class, 3 axes": (1, 1, lambda z: z[:, 0], "", one, SUBJECT),
    "no batch": (3, 1, lambda z: z.squeeze(0), NAMED, classes_by_nearest, None),
    "no batch, channels last": (1, 2, lambda z: z.permute(0, 2, 3, 1).squeeze(0), "", one, SUBJECT),
    "the first of the batch": (2, 1, lambda z: z[0], "subject: 1", both, SUBJECT),
    "height and width": (1, 1, lambda z: z.squeeze(), "", one, SUBJECT),
    "probabilities as bytes": (1, 1, lambda z: (z.sigmoid() * 255).to(torch.uint8), "", truncated, SUBJECT),
    "probabilities to 255": (1, 2, lambda z: z.sigmoid() * 255, "activation: none", one, SUBJECT),
    "a sigmoid": (1, 1, lambda z: z.sigmoid(), "", one, SUBJECT),
    "a sigmoid, 3 axes": (1, 1, lambda z: z.sigmoid()[:, 0], "activation: sigmoid", one, SUBJECT),
    "a softmax": (3, 1, lambda z: z.softmax(1), NAMED, classes_by_nearest, None),
}
EXPORTED = (
    *("subject of logits", "subject of a softmax", "labels", "classes at a quarter", "argmax", "other numbers"),
    *("probability above 0.5", "one class, 3 axes", "a sigmoid"),
)
IN_HALF = ("subject of logits", "subject of a softmax", "labels", "argmax", "probability above 0.5", "no batch")


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A folder of pictures to verify on."""
    folder = tmp_path_factory.mktemp("judged")
    for index, picture in enumerate(pictures_of(3, seed=2)):
        cv2.imwrite(str(folder / f"{index}.png"), picture)
    return folder


@pytest.fixture
def built(judged, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEMASK_CACHE", str(tmp_path / "cache"))

    def run(network, contract, suffix=".onnx", **options):
        path = saved(network, tmp_path / f"net{suffix}")
        (tmp_path / "contract.yaml").write_text(f"imgsz: {SIZE}\nfilter: bilinear\n{contract}\n")
        named = {"contract": str(tmp_path / "contract.yaml"), "verify": str(judged), "quiet": True}
        return build(path, tmp_path / "bundle", **{**named, **options})

    return run


def masks_of(bundle, frames):
    session = onnxruntime.InferenceSession(str(bundle.program_path), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["masks"], {"frames": frame[None]})[0] for frame in frames])


def agreement(got, expected, task):
    if task == "classes":
        return np.mean(got == expected)
    one, other = got > 127, expected > 127
    return (one & other).sum() / (one | other).sum()


def check(bundle, name, folder, *, least=PRECISE, values=1):
    channels, stride, _, _, expected_of, names = CASES[name]
    frames = pictures_of(4, seed=3)
    expected = expected_of(raw(balanced(channels, stride), frames, folder), frames.shape[1:3])
    task = "binary" if expected.max() > 20 else "classes"
    assert bundle.manifest.task == task
    assert names is None or bundle.manifest.classes == names
    got = masks_of(bundle, frames)
    assert 0.03 < (expected > (127 if task == "binary" else 0)).mean() < 0.97
    assert agreement(got, expected, task) >= least
    if task == "binary":
        assert np.mean(np.abs(got.astype(int) - expected) <= values) >= PRECISE


@pytest.mark.parametrize("name", CASES)
def test_masks_of_onnx(built, tmp_path, name):
    channels, stride, function, contract, *_ = CASES[name]
    network = balanced(channels, stride)
    check(built(network if function is None else Ending(network, function), contract), name, tmp_path)


@pytest.mark.parametrize("name", EXPORTED)
def test_masks_of_exported_programs(built, tmp_path, name):
    channels, stride, function, contract, *_ = CASES[name]
    network = balanced(channels, stride)
    check(built(network if function is None else Ending(network, function), contract, ".pt2"), name, tmp_path)


@pytest.mark.parametrize("name", IN_HALF)
def test_masks_in_half(built, tmp_path, name):
    channels, stride, function, contract, *_ = CASES[name]
    network = balanced(channels, stride)
    bundle = built(network if function is None else Ending(network, function), contract, precision="fp16")
    assert bundle.manifest.precision == "fp16"
    check(bundle, name, tmp_path, least=0.995, values=3)
