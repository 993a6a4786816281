# Files of torch.export that attack: a few bytes that ask for all of the memory.

import zipfile

import pytest
import torch
from torch import nn

from compile.networks.exported_program import exported_network
from compile.program.open_network import open_network
from pipeline.errors import CompileError

SIDE = 16


class Greedy(nn.Module):
    """Makes a tensor of a few numbers, of which it needs the mean."""

    def __init__(self, side):
        super().__init__()
        self.side, self.conv = side, nn.Conv2d(3, 1, 1)

    def forward(self, x):
        return self.conv(x) + torch.zeros(self.side, self.side).mean()


def saved(path, side):
    torch.export.save(torch.export.export(Greedy(side).eval(), (torch.zeros(1, 3, SIDE, SIDE),)), path)
    return path


def changed(path, change):
    """The archive with its parts as ``change(name, content)`` gives them."""
    with zipfile.ZipFile(path) as old:
        parts = [(entry.filename, old.read(entry)) for entry in old.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name, content in parts:
            for made_name, made in change(name, content):
                new.writestr(made_name, made)
    return path


def test_values_as_networks_have_them_are_taken(tmp_path):
    (tmp_path / "c.yaml").write_text(f"imgsz: {SIDE}\n")
    assert open_network(saved(tmp_path / "n.pt2", 64), str(tmp_path / "c.yaml")).has_layers


def test_a_terabyte_is_not_made(tmp_path):
    (tmp_path / "c.yaml").write_text(f"imgsz: {SIDE}\n")
    with pytest.raises(CompileError, match=r"n\.pt2.*at most 268435456 elements, got one of 524288×524288"):
        open_network(saved(tmp_path / "n.pt2", 2**19), str(tmp_path / "c.yaml"))


def test_texts_that_are_too_long(tmp_path):
    path = saved(tmp_path / "n.pt2", 4)
    changed(
        path, lambda name, content: [(name, content + b" " * (65 << 20) if name.endswith("model.json") else content)]
    )
    with pytest.raises(CompileError, match="at most 64 MiB of text, got 65 MiB"):
        exported_network(path)


def test_texts_that_are_too_deep(tmp_path):
    path, deep = saved(tmp_path / "n.pt2", 4), b"[" * 200_000 + b"]" * 200_000
    changed(path, lambda name, content: [(name, deep if name.endswith("model.json") else content)])
    with pytest.raises(CompileError, match="damaged") as caught:
        exported_network(path)
    assert "\n" not in str(caught.value)


def test_too_many_parts(tmp_path):
    path = saved(tmp_path / "n.pt2", 4)
    with path.open("ab") as file:
        file.write(b"PK\x01\x02" * 100_001)
    with pytest.raises(CompileError, match="at most 100000 parts"):
        exported_network(path)
