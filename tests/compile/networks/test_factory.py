# Networks by the name of a function: the module is written into the current folder, as a user's own is.

import sys
import textwrap

import numpy as np
import pytest
import torch

from compile.build import build, build_bundle
from compile.networks.factory import made_network
from compile.options import BuildOptions
from compile.program.open_network import open_made_network
from pipeline.errors import CheckpointError, CompileError, OptionError

SOURCE = """
    import dataclasses
    import torch
    from torch import nn
    from torch.nn.functional import interpolate

    class Segmenter(nn.Module):
        def __init__(self, classes=3, kind="dict"):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
            self.drop = nn.Dropout(0.5)
            self.logits, self.aux = nn.Conv2d(8, classes, 1), nn.Conv2d(8, classes, 1)
            self.kind = kind

        def forward(self, x):
            y = self.drop(self.stem(x))
            out = interpolate(self.logits(y), x.shape[-2:], mode="bilinear")
            aux = self.aux(y)
            return GIVES[self.kind](out, aux, y)

    @dataclasses.dataclass
    class Output:
        loss: object
        logits: object
        hidden: object

    GIVES = {
        "tensor": lambda out, aux, y: out,
        "dict": lambda out, aux, y: {"pooled": y.mean((2, 3)), "out": out, "aux": aux},
        "list": lambda out, aux, y: [out, aux],
        "nested": lambda out, aux, y: (y.mean((2, 3)), {"scores": [out, aux]}),
        "dataclass": lambda out, aux, y: Output(None, out, (aux,)),
        "nothing": lambda out, aux, y: None,
    }

    def make(kind="dict"):
        torch.manual_seed(3)
        network = Segmenter(kind=kind)
        with torch.no_grad():
            network.logits.weight.mul_(9)
            network.stem[1].running_var.uniform_(0.5, 2)
        return network

    tensor, dict_, list_ = (lambda kind=kind: make(kind) for kind in ("tensor", "dict", "list"))
    nested, dataclass, nothing = (lambda kind=kind: make(kind) for kind in ("nested", "dataclass", "nothing"))
    instance = make()

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = Segmenter()

        def forward(self, x):
            return self.model(x)

    def broken():
        raise RuntimeError("no such\\nlayer")

    def leaves():
        raise SystemExit("usage: train.py")

    class Chooses(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    number = lambda: 3
"""
SIZE_HW = (32, 48)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder, with the module ``my_networks`` and a contract."""
    (tmp_path / "my_networks.py").write_text(textwrap.dedent(SOURCE))
    (tmp_path / "contract.yaml").write_text("imgsz: [32, 48]\nactivation: softmax\n")
    (tmp_path / "aux.yaml").write_text("imgsz: [32, 48]\nactivation: softmax\noutput: aux\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)
    yield tmp_path
    sys.modules.pop("my_networks", None)


def gives(network, x):
    """What ``SOURCE``'s network gives for its scores, whatever they are in."""
    with torch.no_grad():
        y = network.stem(x)
        scores = torch.nn.functional.interpolate(network.logits(y), x.shape[-2:], mode="bilinear")
        return scores, network.aux(y)


@pytest.mark.parametrize("kind", ["tensor", "dict_", "list_", "nested", "dataclass", "instance"])
def test_scores_are_found_in_whatever_a_network_gives(kind, place):
    opened = open_made_network(f"my_networks:{kind}", None, "contract.yaml")
    x = torch.rand(3, 3, *SIZE_HW)
    expected, _ = gives(made_network(f"my_networks:{kind}"), x)
    with torch.inference_mode():
        torch.testing.assert_close(opened._trained(x), expected, rtol=1e-4, atol=1e-4)
    assert opened.architecture == "Segmenter"
    assert opened.class_count == 3


@pytest.mark.parametrize(
    ("kind", "output"), [("dict_", "aux"), ("list_", "1"), ("nested", "1.scores.1"), ("dataclass", "hidden.0")]
)
def test_another_output_is_taken_by_its_name(kind, output, place):
    (place / "c.yaml").write_text(f"imgsz: [32, 48]\nactivation: softmax\noutput: '{output}'\n")
    opened = open_made_network(f"my_networks:{kind}", None, "c.yaml")
    x = torch.rand(1, 3, *SIZE_HW)
    _, expected = gives(made_network(f"my_networks:{kind}"), x)
    with torch.inference_mode():
        torch.testing.assert_close(opened._trained(x), expected, rtol=1e-4, atol=1e-4)


def test_layers_have_their_own_names_but_where_a_graph_has_them(place):
    opened = open_made_network("my_networks:make", None, "contract.yaml")
    assert [name for name, module in opened._trained.named_modules() if not [*module.children()]] == [
        "stem.0",
        "logits_",
    ]


def test_a_bundle_of_a_function_and_a_checkpoint(place):
    network = made_network("my_networks:make")
    with torch.no_grad():
        network.aux.weight.mul_(2)
        network.logits.bias += torch.tensor([0.0, 0.5, 1.0])
    state = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 1}, "last.ckpt")
    options = {"contract": "contract.yaml", "verify_count": 2, "min_iou": 0.9, "precision": "fp16"}
    made = build_bundle(BuildOptions(network="my_networks:Segmenter", weights="last.ckpt", output="a", **options))
    assert made.manifest.weights["file"] == "last.ckpt"
    assert made.manifest.weights["architecture"] == "Segmenter"
    assert made.manifest.model == "last"
    alone = build("my_networks:make", "b", **options)
    assert alone.manifest.weights["file"] == "my_networks:make"
    assert len(alone.manifest.weights["sha256"]) == 64
    assert alone.manifest.model == "Segmenter"
    assert made.manifest.files != alone.manifest.files


@pytest.mark.parametrize("wrapped", [True, False])
def test_prefixes_of_either_side_are_taken_off(wrapped, place):
    network = made_network("my_networks:make")
    torch.save(network.state_dict(), "n.pth")
    name = "my_networks:Wrapped" if wrapped else "my_networks:Segmenter"
    loaded = made_network(name, place / "n.pth")
    x = torch.rand(2, 3, *SIZE_HW)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x)["out"], network(x)["out"])
    assert not loaded.training
    assert not any(weight.requires_grad for weight in loaded.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"aux.bias": None}, r"1 missing \(aux\.bias\): make the network as it was trained"),
        ({"head.weight": torch.zeros(1)}, r"1 left over \(head\.weight\)"),
        ({"aux.bias": torch.zeros(7)}, r"1 of other shapes \(aux\.bias: expected \(3,\), got \(7,\)\)"),
        ({"aux.bias": torch.full((3,), torch.nan)}, r"NaN or infinity in aux\.bias"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, message, place):
    state = made_network("my_networks:make").state_dict() | change
    torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, "n.pth")
    with pytest.raises(CheckpointError, match=message):
        made_network("my_networks:make", place / "n.pth")


def test_another_networks_weights_and_files_are_refused(place):
    torch.save({"conv.weight": torch.zeros(1)}, "n.pth")
    with pytest.raises(
        CheckpointError, match=r"expected the weights of my_networks:make \(stem\.0\.weight, .*got conv"
    ):
        made_network("my_networks:make", place / "n.pth")
    with pytest.raises(CheckpointError, match=r"expected --weights with a checkpoint .*n\.onnx: leave one"):
        made_network("my_networks:make", place / "n.onnx")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_networks:broken", r"broken: expected a function that gives a network, got RuntimeError: no such$"),
        ("my_networks:leaves", r"leaves: .* got SystemExit: usage: train\.py$"),
        ("my_networks:absent", r"absent in the module my_networks: .* got AttributeError"),
        ("nowhere.at_all:make", r"the module nowhere\.at_all: .* ModuleNotFoundError: No module named 'nowhere'"),
        ("my_networks:number", r"expected a torch\.nn\.Module, got int"),
        ("my_networks:Chooses", r"expected a network that torch\.export follows for pictures of 3×32×48 .*, got "),
        ("my_networks:nothing", r"expected a network that gives a tensor"),
    ],
)
def test_what_a_function_does_wrong_is_one_line(name, message, place):
    with pytest.raises(CompileError, match=message) as raised:
        open_made_network(name, None, "contract.yaml")
    assert "\n" not in str(raised.value)


def test_an_output_that_is_not_there_is_told(place):
    with pytest.raises(CompileError, match=r"output: expected one of its outputs \(0, 1\), got 'aux'"):
        open_made_network("my_networks:list_", None, "aux.yaml")
    with pytest.raises(CompileError, match=r"\(one tensor without a name: leave it out\), got 'aux'"):
        open_made_network("my_networks:tensor", None, "aux.yaml")


def test_a_contract_is_asked_for_and_its_layout_fits(place):
    with pytest.raises(CompileError, match=r"--network my_networks:make; to compile it as it is, .*--contract"):
        open_made_network("my_networks:make", None, "stream")
    (place / "c.yaml").write_text("imgsz: 32\nlayout: nhwc\n")
    with pytest.raises(CompileError, match=r"layout: expected none for --network my_networks:make"):
        open_made_network("my_networks:make", None, "c.yaml")


def test_nothing_is_imported_without_the_option(place):
    torch.save(made_network("my_networks:make").state_dict(), "n.pth")
    del sys.modules["my_networks"]
    with pytest.raises(CheckpointError):
        build(place / "n.pth", "b", contract="contract.yaml")
    assert "my_networks" not in sys.modules


@pytest.mark.parametrize("name", ["my_networks", "my-networks:make", "a:b:c", "a.py:make()", "/x/a:make"])
def test_names_of_another_form_are_refused(name):
    with pytest.raises(OptionError, match=r"--network: expected package\.module:function, got"):
        BuildOptions(network=name, output="b")


def test_masks_are_those_of_the_network(place):
    opened = open_made_network("my_networks:make", None, "contract.yaml", upsample="scores")
    frames = np.random.default_rng(0).integers(0, 256, (1, *SIZE_HW, 3), np.uint8)
    x = torch.from_numpy(frames[..., ::-1].copy()).permute(0, 3, 1, 2).float() / 255
    expected, _ = gives(made_network("my_networks:make"), x)
    masks = opened.reference(frames).masks_nhw
    assert (masks == expected.argmax(1).numpy()).mean() > 0.999
    assert len(np.unique(masks)) > 1
