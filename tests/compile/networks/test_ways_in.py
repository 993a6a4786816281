# What cannot be opened is told with what works: the lines of the message are run here, and what they write is opened.

import re
import sys
import types
import warnings

import pytest
import torch
from torch import nn

from compile.build import build
from compile.networks.checkpoint import load_network
from compile.networks.contract import Contract
from compile.program.open_network import open_network
from pipeline.errors import CheckpointError, ModelError

CONTRACT = Contract("mine", (32, 48))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 1, 1)

    def forward(self, x):
        return self.last(self.first(x).relu())


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Plain().eval()


def does_what_is_told(error, network):
    """Run the Python of a message, and give the file that it then names."""
    text = str(error)
    assert "\n" not in text
    code, _, named = re.search(
        r"((?:model = |model\.eval|import torch).*?)(; then --weights )(\S+?)(?:;|$)", text
    ).groups()
    names = {"torch": torch, "model": network, "H": 32, "W": 48}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, of its exporters
        exec(code, names)  # the product's own words
    return named


def same(path, network):
    opened = open_network(path, "stream", CONTRACT)
    x = torch.rand(2, 3, 32, 48)
    with torch.inference_mode():
        torch.testing.assert_close(opened._trained(x), network(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors"])
def test_weights_of_an_unknown_network(suffix, network, tmp_path):
    path = tmp_path / f"net{suffix}"
    if suffix == ".safetensors":
        import safetensors.torch

        safetensors.torch.save_file(network.state_dict(), path)
    else:
        torch.save({"state_dict": network.state_dict()}, path)
    with pytest.raises(ModelError, match=rf"--network package\.module:function --weights {path}") as raised:
        open_network(path, "stream", CONTRACT)
    assert does_what_is_told(raised.value, network) == str(tmp_path / "net.onnx")
    same(tmp_path / "net.onnx", network)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_program(network, tmp_path):
    path = tmp_path / "net.pt"
    torch.jit.script(network).save(str(path))
    with pytest.raises(CheckpointError, match="got a TorchScript program") as raised:
        open_network(path, "stream", CONTRACT)
    assert does_what_is_told(raised.value, None) == str(tmp_path / "net.onnx")
    same(tmp_path / "net.onnx", network)


def test_a_pickled_network(network, tmp_path, monkeypatch):
    # Its class is in a module that there is where it was trained.
    module = types.ModuleType("where_it_was_trained")
    module.Plain = Plain
    monkeypatch.setitem(sys.modules, "where_it_was_trained", module)
    monkeypatch.setattr(Plain, "__module__", "where_it_was_trained")
    path = tmp_path / "net.pth"
    torch.save(network, path)
    with pytest.raises(CheckpointError, match=r"a pickle that calls where_it_was_trained\.Plain, ") as raised:
        open_network(path, "stream", CONTRACT)
    does_what_is_told(raised.value, None)
    same(tmp_path / "net.onnx", network)


def test_an_exported_program_by_another_name(network, tmp_path):
    program = torch.export.export(network, (torch.zeros(1, 3, 32, 48),))
    torch.export.save(program, tmp_path / "net.pt2")
    (tmp_path / "net.pt2").rename(tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match=r"got a network of torch\.export\.save: name it net\.pt2"):
        load_network(tmp_path / "net.pt")


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("net.h5", r'keras\.models\.load_model\("\S+net\.h5"\)\.export\("\S+net\.onnx", format="onnx"\)'),
        ("net.keras", r'keras\.models\.load_model\("\S+net\.keras"\)'),
        ("net.tflite", r"tf2onnx\.convert --tflite \S+net\.tflite --output \S+net\.onnx, then --weights \S+net\.onnx"),
        ("net.pb", r"tf2onnx\.convert --graphdef \S+net\.pb --inputs NAME:0"),
        (
            "net.engine",
            r'holds for one GPU .* torch\.onnx\.export\(model, torch\.zeros\(1, 3, H, W\), "\S+net\.onnx"\)',
        ),
        ("net.plan", r"holds for one GPU .*--network package\.module:function"),
        ("net.mlmodel", r"that it was converted from.*net\.onnx"),
        ("net", r"torch\.onnx\.export.*net\.onnx"),
        ("net.pkl", r"torch\.onnx\.export.*net\.onnx"),
    ],
)
def test_other_files(name, way, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=way) as raised:
        build(tmp_path / name, tmp_path / "bundle")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("inside", "way"),
    [
        ("saved_model.pb", r"tf2onnx\.convert --saved-model \S+/net --output \S+/net\.onnx"),
        ("manifest.json", r"a bundle, compiled already: python -m pipeline --model \S+/net$"),
        ("model.bin", r"got a folder: name the file in it, or as ONNX"),
    ],
)
def test_folders(inside, way, tmp_path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / inside).touch()
    with pytest.raises(CheckpointError, match=way):
        build(tmp_path / "net", tmp_path / "bundle")
