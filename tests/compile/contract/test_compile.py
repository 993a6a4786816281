"""Foreign networks are compiled without a contract, and the command says what it took and what it could not know."""

import logging

import cv2
import numpy as np
import pytest
import torch

from compile.build import build
from compile.contract.__main__ import main
from compile.networks.contract import read_contract
from pipeline.errors import CompileError
from pipeline.model import Model
from tests.compile.contract.family_networks import SIDE, ModNet, Plain, Scaled, Smp, export


@pytest.mark.parametrize(("make", "telling"), [(Smp, True), (ModNet, False)])
def test_without_a_contract(tmp_path, said, caplog, make, telling, pictures):
    torch.manual_seed(1)
    network = make().eval()
    path = export(network, tmp_path / "net.onnx", (0, 3, SIDE, SIDE))
    bundle = build(path, tmp_path / "bundle", verify_count=2, quiet=True)
    contract = bundle.manifest.contract
    (line,) = [line for line in said if "contract found" in line]
    assert tuple(contract["imgsz"]) == (SIDE, SIDE)
    assert ("not known: " in line) == telling
    if telling:
        assert tuple(contract["mean"]) == (0.485, 0.456, 0.406)
        assert "python -m compile.contract net.onnx --examples DIR" in line
    # The masks are those of the network, prepared by hand.
    (image,) = pictures(1, SIDE, SIDE)
    x = torch.from_numpy(np.ascontiguousarray(image[None, :, :, ::-1])).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(contract[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = network((x - mean) / std)
    expected = torch.sigmoid(expected) if telling else expected
    got = Model(bundle.folder, backend="onnxruntime")(image)
    assert np.abs(got.astype(int) - (expected[0, 0] * 255).round().numpy()).max() <= 1


def test_exported_programs_too(tmp_path, said):
    batch = {0: torch.export.Dim("N", max=64)}
    program = torch.export.export(Smp().eval(), (torch.zeros(2, 3, SIDE, SIDE),), dynamic_shapes=(batch,))
    torch.export.save(program, tmp_path / "net.pt2")
    bundle = build(tmp_path / "net.pt2", tmp_path / "bundle", verify_count=2, quiet=True)
    assert tuple(bundle.manifest.contract["std"]) == (0.229, 0.224, 0.225)
    assert any("contract found" in line for line in said)


def test_what_is_not_known_is_a_warning(tmp_path, caplog):
    path = export(Plain(), tmp_path / "net.onnx")
    with caplog.at_level(logging.INFO, "edgemask"):
        build(path, tmp_path / "bundle", verify_count=2, quiet=True)
    (record,) = [record for record in caplog.records if "contract found" in record.getMessage()]
    assert record.levelno == logging.WARNING  # shown with --quiet too
    assert "mean and std: assumed 0 and 1" in record.getMessage()


def test_imgsz_of_the_command_line(tmp_path):
    path = export(Plain(), tmp_path / "net.onnx", (0, 3, 0, 0))
    bundle = build(path, tmp_path / "bundle", verify_count=2, quiet=True, imgsz=(48, 64))
    assert bundle.manifest.network_size_hw == (48, 64)


def test_other_tasks_are_refused_in_one_line(tmp_path):
    path = export(Plain(), tmp_path / "net.onnx", metadata={"names": "{0: 'a'}", "task": "detect"})
    with pytest.raises(CompileError, match="Ultralytics for task detect, which gives boxes"):
        build(path, tmp_path / "bundle", verify_count=2, quiet=True)


def test_the_command_writes_what_compile_takes(tmp_path, capsys):
    path = export(Scaled(Plain(), (0.0,) * 3, (255.0,) * 3), tmp_path / "net.onnx")
    written = tmp_path / "contract.yaml"
    assert main([str(path), "-o", str(written)]) == 0
    out = capsys.readouterr().out
    assert f"--contract {written}" in out
    contract = read_contract(written)
    assert (contract.divide_by, contract.imgsz) == (1.0, (SIDE, SIDE))
    bundle = build(path, tmp_path / "bundle", verify_count=2, quiet=True, contract=str(written))
    assert bundle.manifest.contract["name"] == "contract"


def test_the_command_with_examples(tmp_path, capsys, pictures):
    network = Plain().eval()
    path = export(network, tmp_path / "net.onnx")
    folder = tmp_path / "examples"
    folder.mkdir()
    for index, image in enumerate(pictures(3, 64, 64)):
        x = cv2.resize(image.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR) / 255
        with torch.no_grad():
            scores = network(torch.from_numpy(x.transpose(2, 0, 1)[None]))
        mask = cv2.resize((torch.sigmoid(scores - scores.median())[0, 0].numpy() * 255).astype(np.uint8), (64, 64))
        cv2.imwrite(str(folder / f"{index}.bmp"), image)
        cv2.imwrite(str(folder / f"{index}.png"), mask)
    assert main([str(path), "--examples", str(folder), "--count", "2"]) == 0
    out = capsys.readouterr().out
    assert "candidates on 2 examples" in out
    assert "<- taken" in out
    assert "imgsz: [32, 32]" in out


def test_mistakes_of_the_command(tmp_path, capsys):
    assert main([str(tmp_path / "none.onnx")]) == 2
    assert "none.onnx: expected an ONNX network, got No such file" in capsys.readouterr().err
    path = export(Plain(), tmp_path / "net.onnx")
    assert main([str(path), "-o", str(tmp_path / "no" / "folder.yaml")]) == 2
    assert "expected a file that can be written" in capsys.readouterr().err
    assert main([str(path), "--examples", str(tmp_path / "none")]) == 2
    assert "expected a folder with pictures and masks" in capsys.readouterr().err
