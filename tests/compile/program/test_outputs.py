# What comes out of networks that nobody here wrote, and what masks become of it, beside NumPy and ONNX Runtime.

import re
import warnings
from functools import cache

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from compile.build import build
from compile.networks.contract import read_contract
from compile.program.layered_program import LayeredProgram
from compile.program.open_network import open_network
from compile.program.score_range import doubt_of_masks
from compile.proof.verify import Sample
from pipeline.errors import CompileError
from pipeline.frames.frame import Frame

SIZE = 64
PRECISE = 0.999


class Colors(nn.Module):
    """Scores of ``channels`` classes by the colors around a pixel, at a part of the size."""

    def __init__(self, channels, stride=1):
        super().__init__()
        generator = torch.Generator().manual_seed(channels)
        self.first, self.middle, self.last = (
            nn.Conv2d(3, 12, 5, stride, 2),
            nn.Conv2d(12, 12, 1),
            nn.Conv2d(12, channels, 1),
        )
        for layer in (self.first, self.middle, self.last):
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator) / layer.weight[0].numel() ** 0.5
        self.eval()

    def forward(self, x):
        return self.last(self.middle(self.first(x - 0.4).relu()).relu()) * 24.0


class Ending(nn.Module):
    """A network, and a function of its scores."""

    def __init__(self, network, function):
        super().__init__()
        self.network, self.function = network, function

    def forward(self, x):
        return self.function(self.network(x))


class WithDeterminant(nn.Module):
    """A network with a term that changes nothing, and that has no counterpart among layers."""

    def __init__(self, network, function):
        super().__init__()
        self.network, self.function = network, function

    def forward(self, x):
        scores = self.network(x) + 0.0 * torch.linalg.det(x[:, :, :2, :2]).mean()
        return scores if self.function is None else self.function(scores)


@cache
def balanced(channels, stride=1):
    """Scores around 0 on pictures such as these, so that every class has a part of them."""
    network = Colors(channels, stride)
    with torch.inference_mode():
        scores = network(torch.from_numpy(inputs(pictures_of(6, seed=5))))
        network.last.bias.data -= scores.mean((0, 2, 3)) / 24
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
    return as_bytes(np.floor(sigmoid(4 * z) * 255) / 255, size)


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
    "probabilities as bytes": (1, 1, lambda z: ((4 * z).sigmoid() * 255).to(torch.uint8), "", truncated, SUBJECT),
    "probabilities to 255": (1, 2, lambda z: z.sigmoid() * 255, "activation: none", one, SUBJECT),
    "a sigmoid": (1, 1, lambda z: z.sigmoid(), "", one, SUBJECT),
    "a sigmoid, 3 axes": (1, 1, lambda z: z.sigmoid()[:, 0], "activation: sigmoid", one, SUBJECT),
    "a softmax, one channel": (2, 1, lambda z: z.softmax(1)[:, 1:], "", both, SUBJECT),
    "a softmax": (3, 1, lambda z: z.softmax(1), NAMED, classes_by_nearest, None),
}
EXPORTED = (
    *("subject of logits", "subject of a softmax", "labels", "classes at a quarter", "argmax", "other numbers"),
    *("probability above 0.5", "one class, 3 axes", "a sigmoid", "a softmax, one channel"),
)
AS_IT_IS = (
    *("subject of a softmax", "labels of a sigmoid, small", "argmax as bytes", "other numbers", "bool", "no batch"),
    *("one class, 3 axes", "probability above 0.3", "probabilities as bytes", "a softmax, one channel"),
)
FP32_ALONE = ("other numbers", "other numbers, subject", "bool", "probabilities as bytes")
BUILT = {
    "fp32": ("subject of 3, named", "labels of a sigmoid, small", "argmax as bytes", "other numbers", "no batch"),
    "fp16": ("subject of a softmax", "argmax", "probability above 0.5"),
}


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


def network_of(name):
    channels, stride, function, *_ = CASES[name]
    network = balanced(channels, stride)
    return network if function is None else Ending(network, function)


def opened(network, contract, folder, suffix=".onnx"):
    (folder / "contract.yaml").write_text(f"imgsz: {SIZE}\nfilter: bilinear\n{contract}\n")
    return open_network(saved(network, folder / f"net{suffix}"), str(folder / "contract.yaml"))


def frames_and_masks(name, folder):
    """Frames, what is expected of them, and the task."""
    channels, stride, _, _, expected_of, _ = CASES[name]
    frames = pictures_of(4, seed=3)
    expected = expected_of(raw(balanced(channels, stride), frames, folder), frames.shape[1:3])
    task = "binary" if expected.max() > 20 else "classes"
    assert 0.03 < (expected > (127 if task == "binary" else 0)).mean() < 0.97
    return frames, expected, task


def check(got, expected, task, *, least=PRECISE, values=1):
    assert agreement(got, expected, task) >= least
    if task == "binary":
        assert np.mean(np.abs(got.astype(int) - expected) <= values) >= PRECISE


@pytest.mark.parametrize("name", CASES)
def test_masks_of_onnx(tmp_path, name):
    network = opened(network_of(name), CASES[name][3], tmp_path)
    frames, expected, task = frames_and_masks(name, tmp_path)
    assert network.task == task
    assert CASES[name][5] in (None, network.class_names)
    check(network.reference(frames).masks_nhw, expected, task)
    assert network.doubt() is None
    if isinstance(network, LayeredProgram):
        check(network.module("fp32", ()).eval()(torch.from_numpy(frames))[0].numpy(), expected, task)
    assert network.has_layers is (name not in FP32_ALONE)


@pytest.mark.parametrize("name", EXPORTED)
def test_masks_of_exported_programs(tmp_path, name):
    network = opened(network_of(name), CASES[name][3], tmp_path, ".pt2")
    frames, expected, task = frames_and_masks(name, tmp_path)
    assert (network.task, network.class_names) == (task, CASES[name][5] or network.class_names)
    check(network.reference(frames).masks_nhw, expected, task)
    check(network.module("fp32", ()).eval()(torch.from_numpy(frames))[0].numpy(), expected, task)


@pytest.mark.parametrize("name", AS_IT_IS)
def test_masks_of_what_has_no_layers(tmp_path, name):
    channels, stride, function, contract, _, names = CASES[name]
    network = opened(WithDeterminant(balanced(channels, stride), function), contract, tmp_path)
    assert not network.has_layers
    frames, expected, task = frames_and_masks(name, tmp_path)
    assert (network.task, network.class_names) == (task, names or network.class_names)
    check(network.reference(frames).masks_nhw, expected, task)
    assert network.doubt() is None
    program = network.export("fp32", None, ()).SerializeToString()
    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    got = np.concatenate([session.run(["masks"], {"frames": frame[None]})[0] for frame in frames])
    check(got, expected, task)


@pytest.mark.parametrize(("precision", "name"), [(kind, name) for kind, names in BUILT.items() for name in names])
def test_bundles(built, tmp_path, precision, name):
    bundle = built(network_of(name), CASES[name][3], precision=precision)
    frames, expected, task = frames_and_masks(name, tmp_path)
    manifest = bundle.manifest
    assert (manifest.precision, manifest.task) == (precision, task)
    assert CASES[name][5] in (None, manifest.classes)
    limits = {} if precision == "fp32" else {"least": 0.995, "values": 3}
    check(masks_of(bundle, frames), expected, task, **limits)


@pytest.mark.parametrize("name", ["subject of logits", "labels", "subject of clipped ones", "subject of labels"])
def test_int8_is_searched_on_what_masks_show(tmp_path, name):
    network = opened(network_of(name), CASES[name][3], tmp_path)
    found = network._searched()
    frames, expected, task = frames_and_masks(name, tmp_path)
    with torch.inference_mode():
        logits = found.logits(torch.from_numpy(inputs(frames)))
    size = frames.shape[1:3]
    if task == "binary":
        check(as_bytes(sigmoid(logits.numpy()), size), expected, task)
    else:
        check(nearest(index_of(logits.numpy()), size)[:, 0], expected, task)
    recipe = network.search_int8(
        [Frame(image, index, float(index), "blobs", str(index)) for index, image in enumerate(pictures_of(4, seed=1))],
        "mse",
        lambda _: None,
    )
    assert list(recipe.layers) == [name for name in recipe.work if "middle" in name] != []
    assert 0.9 < recipe.result.iou < 1
    masks = network.module("int8", ()).eval()(torch.from_numpy(frames))[0].numpy()
    assert agreement(masks, expected, task) > 0.9


def test_a_network_of_ours_with_a_subject(tmp_path, tiny_unet):
    torch.manual_seed(0)
    torch.save(tiny_unet(3).state_dict(), tmp_path / "unet.pth")
    contracts = {}
    for name, more in (("all", ""), ("one", "subject: 2\nclasses: [sky, road, car]")):
        contracts[name] = tmp_path / f"{name}.yaml"
        contracts[name].write_text(f"imgsz: {SIZE}\n{more}\n")
    whole, one = (open_network(tmp_path / "unet.pth", str(path)) for path in contracts.values())
    assert (whole.task, one.task, one.class_names) == ("classes", "binary", ("car",))
    frames = pictures_of(2, seed=3)
    masks = one.module("fp32", ()).eval()(torch.from_numpy(frames))[0].numpy()
    with torch.inference_mode():
        program = whole.module("fp32", ()).eval()
        scores = program.network.logits(program.before(torch.from_numpy(frames))).numpy()
    assert np.abs(masks.astype(int) - as_bytes(softmax(scores)[:, 2:], frames.shape[1:3])).max() <= 1
    with torch.inference_mode():
        logits = one._searched().logits(program.before(torch.from_numpy(frames))).numpy()
    np.testing.assert_allclose(sigmoid(logits), softmax(scores)[:, 2:], atol=1e-5)
    recipe = one.search_int8(
        [Frame(image, index, float(index), "blobs", str(index)) for index, image in enumerate(frames)],
        "mse",
        lambda _: None,
    )
    assert not any("network" in name for name in recipe.layers)


# --- what contradicts itself

REFUSED = {
    "clipped probabilities and a sigmoid": (
        *(1, lambda z: z.sigmoid().clamp(0, 1), ""),
        "expected logits for sigmoid, got values from .* set activation: none",
    ),
    "clipped probabilities and a softmax": (
        *(2, lambda z: z.softmax(1).clamp(0, 1), "subject: 1"),
        "expected logits for softmax, got values from .* set activation: none",
    ),
    "clipped probabilities of labels": (
        *(3, lambda z: z.sigmoid().clamp(0, 1), "multilabel: true"),
        "expected logits for sigmoid, got values from .* set activation: none",
    ),
    "to 255 and a sigmoid": (
        *(1, lambda z: (4 * z).sigmoid() * 255, ""),
        "expected logits for sigmoid, got values .* as probabilities × 255 are: set activation: none",
    ),
    "logits as probabilities": (1, None, "activation: none", "expected values from 0 to 1 for none, got values from -"),
    "indices without names": (
        *(3, remap, ""),
        r"expected scores, or class indices whose classes the contract names, got int64 from 0 to 2: set classes",
    ),
    "an index without a name": (3, remap, "classes: [sky, road]", "expected a name for each class index, got 2 names"),
    "a subject that is not there": (2, None, "subject: 2", "subject: expected a channel from 0 to 1, got 2"),
    "a subject of one": (1, None, "subject: 0", "subject: expected none for a network of one class, got 0"),
    "a softmax of labels": (3, lambda z: z.softmax(1), "multilabel: true", "got one that ends in softmax itself"),
    "a sigmoid as softmax": (
        *(2, lambda z: z.sigmoid(), "subject: 1\nactivation: softmax"),
        "got one that ends in sigmoid itself: set activation: none",
    ),
    "scores of indices": (
        3,
        remap,
        f"{NAMED}\nupsample: scores",
        "--upsample: expected classes for a network that gives",
    ),
    "an order that does not fit": (
        *(3, None, "output_layout: nhwc"),
        "output_layout: expected nchw for an output of 1×3×64×64, got nhwc",
    ),
    "a mean of bytes": (1, None, "mean: [123.7, 116.3, 103.5]", "mean: expected it for pixels from 0 to 1, .*0.4851"),
    "a std of bytes": (
        1,
        None,
        "std: [58.4, 57.1, 57.4]",
        "std: expected it for pixels from 0 to 1, .* or divide_by: 1",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_contradictions_are_refused(tmp_path, name):
    channels, function, contract, message = REFUSED[name]
    whole = balanced(channels)

    def run():
        network = opened(whole if function is None else Ending(whole, function), contract, tmp_path)
        network.reference(pictures_of(2, seed=3))
        network.doubt()

    with pytest.raises(CompileError, match=message) as caught:
        run()
    assert "\n" not in str(caught.value)


TOLD = {
    "labels as classes": (3, lambda z: z.sigmoid().clamp(0, 1), "", "do not add up to 1.*: set multilabel: true"),
    "a second softmax": (3, lambda z: z.softmax(1).clamp(0, 1), "activation: softmax", "activation: none says so"),
    "labels and a softmax": (
        *(2, lambda z: z.sigmoid().clamp(0, 1), "subject: 1"),
        "do not add up to 1.*: set multilabel: true and activation: none",
    ),
}


@pytest.mark.parametrize("name", TOLD)
def test_doubts_are_told(tmp_path, name):
    channels, function, contract, message = TOLD[name]
    network = opened(Ending(balanced(channels), function), contract, tmp_path)
    network.reference(pictures_of(2, seed=3))
    assert re.search(message, network.doubt())


def test_numbers_of_a_contract_that_look_as_of_another_unit(tmp_path, caplog):
    for divide_by, told in ((1, True), (255, False)):
        (tmp_path / "contract.yaml").write_text(f"imgsz: 64\nmean: [0.485, 0.456, 0.406]\ndivide_by: {divide_by}\n")
        caplog.clear()
        with caplog.at_level("INFO"):
            read_contract(tmp_path / "contract.yaml")
        assert ("set divide_by: 255 if the training did so" in caplog.text) is told


@pytest.mark.parametrize(
    ("masks", "task", "message"),
    [
        ([[200, 255], [128, 130]], "binary", "all of the picture is subject"),
        ([[0, 90], [10, 0]], "binary", "nothing is subject"),
        ([[130, 131], [120, 124]], "binary", "the mask is the same all over"),
        ([[2, 2], [1, 1]], "classes", "the mask is the same all over"),
        ([[0, 200], [0, 0]], "binary", None),
        ([[0, 1], [1, 1]], "classes", None),
    ],
)
def test_masks_that_show_nothing(masks, task, message):
    frame = np.zeros((1, 1, 2, 3), np.uint8)
    samples = [Sample(str(index), frame, np.array([[mask]], np.uint8)) for index, mask in enumerate(masks)]
    doubt = doubt_of_masks(samples, task)
    assert (doubt is None) if message is None else message in doubt
