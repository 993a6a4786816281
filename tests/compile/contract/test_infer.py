"""What is found of networks in the style of well-known families, what is refused, and what is told not to be known."""

import json
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from compile.contract.families import VOC
from compile.contract.found import HONORED
from compile.contract.infer import infer_contract
from compile.networks.contract import Contract, read_contract
from pipeline.errors import CompileError
from tests.compile.contract.family_networks import (
    SIDE,
    ChannelsLast,
    IsNet,
    ModNet,
    Plain,
    Scaled,
    SegFormer,
    Smp,
    TorchVision,
    WithArgmax,
    export,
)

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
UNSCALED = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.onnx"


def found_of(path, **options):
    found, _ = infer_contract(path, **options)
    # What is written is what is used.
    written = path.with_name("contract.yaml")
    written.write_text(found.yaml(), encoding="utf-8")
    again = read_contract(written)
    assert again.imgsz == found.contract.imgsz
    assert (again.mean, again.std) == (
        pytest.approx(found.contract.mean, rel=1e-4),
        pytest.approx(found.contract.std, rel=1e-4),
    )
    for key in ("channels", "divide_by", "layout", "activation", "classes", "output"):
        assert getattr(again, key) == getattr(found.contract, key), key
    return found


def numbers(found):
    return found.contract.mean, found.contract.std


def doubts(found):
    return " | ".join(found.not_known)


# --- families


def test_segmentation_models_pytorch(path):
    found = found_of(export(Smp(), path))
    assert found.family == "segmentation_models_pytorch"
    assert numbers(found) == IMAGENET
    assert (found.contract.channels, found.contract.activation, found.contract.imgsz) == (
        "rgb",
        "sigmoid",
        (SIDE, SIDE),
    )
    assert "divide_by, mean and std: as segmentation_models_pytorch has it (its encoders' default" in doubts(found)
    assert "fixed in the file" in found.facts["imgsz"].origin


def test_torchvision(path):
    found = found_of(export(TorchVision(), path, outputs=("out", "aux")))
    assert found.family == "torchvision's segmentation networks"
    assert numbers(found) == IMAGENET
    assert found.contract.classes == VOC
    assert (found.contract.output, found.contract.activation) == ("out", "softmax")
    assert "aux" in found.facts["output"].origin


def test_transformers_files_beside_it(path):
    names = {"0": "background", "1": "road", "2": "car", "3": "yes"}
    (path.parent / "config.json").write_text(json.dumps({"model_type": "segformer", "id2label": names}))
    preprocessor = {
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "rescale_factor": 1 / 127.5,
        "size": {"height": 64, "width": 96},
    }
    (path.parent / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    found = found_of(export(SegFormer(), path, (0, 3, 0, 0)))
    contract = found.contract
    assert contract.classes == tuple(names.values())
    assert numbers(found) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (contract.imgsz, contract.divide_by, contract.channels) == ((64, 96), 127.5, "rgb")
    assert found.not_known == ()
    assert "preprocessor_config.json" in found.yaml()


def test_segformer_alone(path):
    found = found_of(export(SegFormer(), path, (0, 3, SIDE, SIDE)))
    assert (found.family, numbers(found)) == ("SegFormer", IMAGENET)
    assert found.contract.classes is None


def test_modnet(path):
    found = found_of(export(ModNet(), path, (0, 3, 0, 0), ("matte",)))
    assert (found.family, numbers(found)) == ("MODNet", HALF)
    assert (found.contract.activation, found.contract.imgsz) == ("none", (512, 512))
    assert found.not_known == ()
    assert "a multiple of its stride, 2" in found.facts["imgsz"].origin


def test_is_net(path):
    found = found_of(export(IsNet(), path, outputs=("out", "side")))
    assert (found.family, numbers(found)) == ("IS-Net", ((0.5,) * 3, (1.0,) * 3))
    assert (found.contract.activation, found.contract.output) == ("none", "out")


def test_mediapipe_selfie(tmp_path):
    network = ChannelsLast(Plain(end=torch.sigmoid))
    found = found_of(export(network, tmp_path / "selfie.onnx", (1, 144, 256, 3)))
    assert (found.contract.layout, found.contract.imgsz, numbers(found)) == ("nhwc", (144, 256), UNSCALED)
    assert (found.contract.activation, found.family) == ("none", "MediaPipe selfie segmentation")
    assert found.not_known == ()
    by_shape = found_of(export(network, tmp_path / "person.onnx", (1, 144, 256, 3)))
    assert "told by its shape alone" in doubts(by_shape)


def test_paddle_text_detector(path):
    found = found_of(export(Plain(end=torch.sigmoid), path, graph="PaddlePaddle Graph 0", producer=""))
    assert found.family == "PaddleOCR's text detector"
    assert (found.contract.channels, numbers(found)) == ("bgr", IMAGENET)  # its mean of red is taken from blue
    assert "RapidOCR" in doubts(found)


def test_paddle_seg_gives_classes(path):
    found = found_of(export(WithArgmax(Plain(5)), path, producer="PaddlePaddle"))
    assert (found.family, numbers(found)) == ("PaddleSeg", HALF)
    # Whole numbers, or the scores that they were made of.
    assert found.contract.activation == ("none" if "whole" in found.facts["activation"].origin else "softmax")


def test_ultralytics_metadata(path):
    metadata = {"names": "{0: 'road', 1: 'no', 2: 'sky'}", "task": "semantic", "imgsz": "[64, 96]", "stride": "32"}
    found = found_of(export(Plain(3), path, (0, 3, 0, 0), metadata=metadata))
    assert found.contract.classes == ("road", "no", "sky")
    assert (found.contract.imgsz, found.contract.divide_by, numbers(found)) == ((64, 96), 255.0, UNSCALED)
    assert found.facts["fit"].value == "letterbox"
    assert ("\nfit: letterbox" in found.yaml()) == ("fit" in HONORED)
    if "fit" not in HONORED:
        assert any("fit: letterbox" in note for note in found.notes)


# --- the graph


@pytest.mark.parametrize(
    ("mean", "std", "flip", "divide_by", "channels"),
    [
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), False, 255.0, "rgb"),
        ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), False, 1.0, "rgb"),
        ((103.939, 116.779, 123.68), (1.0, 1.0, 1.0), False, 1.0, "bgr"),
        ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), True, 1.0, "bgr"),
        ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0), False, 1.0, None),
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), False, 255.0, None),
    ],
)
def test_scaling_inside_the_graph(path, mean, std, flip, divide_by, channels):
    found = found_of(export(Scaled(Plain(), mean, std, flip), path))
    assert (found.contract.divide_by, numbers(found)) == (divide_by, UNSCALED)
    assert "the graph itself subtracts" in found.facts["mean"].origin
    assert found.facts["divide_by"].is_in_graph
    assert found.contract.channels == (channels or "rgb")
    assert found.facts["channels"].is_known == (channels is not None)


def test_bytes_and_channels_last(path):
    network = ChannelsLast(Scaled(Plain(end=torch.sigmoid), (0.0,) * 3, (255.0,) * 3), out_last=False)
    found = found_of(export(network, path, (1, SIDE, 48, 3), dtype=torch.uint8))
    contract = found.contract
    assert (contract.layout, contract.imgsz, contract.divide_by, contract.activation) == (
        "nhwc",
        (SIDE, 48),
        1.0,
        "none",
    )
    assert numbers(found) == UNSCALED


def test_gray(path):
    found = found_of(export(Plain(channels=1), path, (1, 1, SIDE, SIDE)))
    assert (found.contract.channels, found.contract.mean) == ("grey", (0.0,))
    assert "1 channel" in found.facts["channels"].origin


def test_probabilities_without_an_activation_at_the_end(path):
    found = found_of(export(Plain(end=lambda x: (x * 5).clamp(0, 1)), path))
    assert found.contract.activation == "none"
    assert "values from 0" in found.facts["activation"].origin


def test_a_narrow_range_in_0_to_1_is_told(path):
    found = found_of(export(Plain(end=lambda x: x.tanh() * 0.01 + 0.3), path))
    assert "assumed probabilities" in doubts(found)


def test_values_that_are_neither_are_told(path):
    found = found_of(export(Plain(end=lambda x: torch.sigmoid(5 * x) * 200), path))
    assert found.contract.activation == "sigmoid"
    assert "neither logits nor probabilities" in doubts(found)


@pytest.mark.parametrize(
    ("end", "activation"), [(nn.Softmax(1), "none"), (None, "softmax"), (nn.LogSoftmax(1), "softmax")]
)
def test_two_channels_are_one_subject(path, end, activation):
    found = found_of(export(Plain(2, end=end), path))
    assert found.contract.activation == activation
    assert found.facts["subject"].value == 1
    assert "of two channels the second is assumed to be the subject" in doubts(found)


def test_a_sigmoid_for_each_channel(path):
    found = found_of(export(Plain(3, end=torch.sigmoid), path))
    assert found.facts["multilabel"].value is True
    assert found.contract.activation == "none"
    told = "multilabel" in HONORED or any("multilabel" in note for note in found.notes)
    assert told


def test_nothing_is_known(path):
    found = found_of(export(Plain(), path, (0, 3, 0, 0)))
    assert found.contract == Contract("inferred", (512, 512))
    said = doubts(found)
    for part in (
        "imgsz: open in the file",
        "channels: assumed rgb",
        "divide_by: assumed 255",
        "mean and std: assumed 0 and 1",
    ):
        assert part in said
    assert "# not known: mean and std: assumed 0 and 1\n" in found.yaml()
    assert "\n" not in found.line()
    assert "mean and std: assumed 0 and 1" in found.line()
    assert found_of(path, imgsz=(64, 96)).contract.imgsz == (64, 96)


class OneSize(nn.Module):
    """A graph whose sides are open, and that holds for one size alone."""

    def __init__(self):
        super().__init__()
        self.inside = Plain()
        self.register_buffer("table", torch.zeros(1, 3, 224, 224))

    def forward(self, x):
        return self.inside(x + self.table)


def test_a_size_that_the_network_takes(path):
    export(OneSize(), path, (0, 3, 0, 0), traced_at=224)
    found = found_of(path)
    assert found.contract.imgsz == (224, 224)
    assert "does not take 512" in found.facts["imgsz"].origin


def test_exported_program(tmp_path):
    batch = {0: torch.export.Dim("N", max=64)}
    program = torch.export.export(Smp().eval(), (torch.zeros(2, 3, 32, 48),), dynamic_shapes=(batch,))
    torch.export.save(program, tmp_path / "net.pt2")
    found = found_of(tmp_path / "net.pt2")
    assert (found.family, found.contract.imgsz, numbers(found)) == ("segmentation_models_pytorch", (32, 48), IMAGENET)
    assert found.contract.output is None


def test_a_network_that_cannot_be_brought_into_layers(path):
    network = Plain(end=lambda x: torch.sigmoid(x + torch.det(x[:, 0, :2, :2]).view(-1, 1, 1, 1)))
    found = found_of(export(network, path))
    assert found.contract.activation == "none"
    assert "sigmoid" in found.facts["activation"].origin


# --- refused


class Detecting(nn.Module):
    def __init__(self, sides=2):
        super().__init__()
        self.inside, self.sides = Plain(6), sides

    def forward(self, x):
        y = self.inside(x)
        return y.flatten(2) if self.sides == 3 else y.mean((2, 3))


@pytest.mark.parametrize(
    ("network", "changes", "message"),
    [
        (Detecting(3), {}, r"expected a class or a probability for each pixel.*got 1×6×1024, as detectors"),
        (Detecting(2), {}, r"got 1×6, as detectors, classifiers"),
        (
            Plain(),
            {"metadata": {"names": "{0: 'a'}", "task": "segment"}},
            r"Ultralytics for task segment.*prototype masks",
        ),
        (Plain(), {"outputs": ("pred_boxes",)}, r"gives boxes \(pred_boxes\)"),
    ],
)
def test_other_tasks_are_refused(path, network, changes, message):
    with pytest.raises(CompileError, match=message) as caught:
        infer_contract(export(network, path, **changes))
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "net.pth").write_bytes(b"x")
    with pytest.raises(CompileError, match=r"expected a network as \.onnx or \.pt2, got \.pth"):
        infer_contract(tmp_path / "net.pth")
    (tmp_path / "net.pt2").write_bytes(b"PK")
    with zipfile.ZipFile(tmp_path / "packed.pt2", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("net/models/model.json", "[" * 9999)
    for name in ("net.pt2", "packed.pt2"):
        with pytest.raises(CompileError, match=r"expected what torch\.export\.save writes"):
            infer_contract(tmp_path / name)


@pytest.mark.parametrize("content", ["{", "[1]", '{"image_mean": "x", "size": [1], "rescale_factor": 0}'])
def test_odd_files_beside_it(path, content):
    (path.parent / "preprocessor_config.json").write_text(content)
    export(Plain(), path)
    if content == "{":
        with pytest.raises(CompileError, match=r"preprocessor_config\.json: expected JSON"):
            infer_contract(path)
    else:
        assert np.allclose(found_of(path).contract.mean, 0)


def test_a_config_of_another_program_is_not_asked(path):
    (path.parent / "config.json").write_text(json.dumps({"classes": ["a"]}))
    assert found_of(export(Plain(), path)).contract.classes is None
