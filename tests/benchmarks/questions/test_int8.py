import json
import shutil
import sys
import warnings
from dataclasses import replace

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from benchmarks.__main__ import main
from benchmarks.peers.int8_tools import PEERS, int8_share
from benchmarks.questions import int8
from benchmarks.readme import _int8_table
from benchmarks.shared.watched_compile import Search
from compile.networks.unet import UNet
from compile.program.open_network import open_network
from pipeline.bundles.bundle import CPU_GRAPH, PROGRAM_NAME, Bundle, Manifest, file_sha256
from pipeline.errors import CompileError

CONTRACT = "imgsz: [64, 64]\nmean: [0.5, 0.5, 0.5]\nstd: [0.25, 0.25, 0.25]\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory, red_bundle):
    """5 pictures whose red channel is the subject, a tiny network, and bundles that say they are of it and give the red channel."""
    folder = tmp_path_factory.mktemp("int8")
    for name in ("images", "masks"):
        (folder / name).mkdir()
    random = np.random.default_rng(0)
    for name in ("10", "15", "20", "25", "35"):
        blob = cv2.resize(random.integers(0, 256, (5, 5, 3), dtype=np.uint8), (80, 60), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / "images" / f"{name}.png"), blob)
        cv2.imwrite(str(folder / "masks" / f"{name}.png"), (blob[:, :, 2] > 127).astype(np.uint8) * 255)
    torch.manual_seed(0)
    network = UNet(3, 1, True, base_width=4).eval()
    with torch.no_grad():  # a fresh network's mask is one shade of grey
        scores = network.logits(torch.randn(4, 3, 64, 64))
        network.outc.conv.weight.mul_(3 / scores.std())
        network.outc.conv.bias.copy_((network.outc.conv.bias - scores.mean()) * 3 / scores.std())
    torch.save(network.state_dict(), folder / "tiny.pth")
    (folder / "contract.yaml").write_text(CONTRACT)
    candidate = open_network(folder / "tiny.pth", str(folder / "contract.yaml"))
    for precision in ("int8", "fp32"):
        write_bundle(folder, precision, candidate, red_bundle.program_path.read_bytes())
    return folder


def write_bundle(folder, precision, candidate, program):
    weights = folder / "tiny.pth"
    manifest = Manifest(
        model="tiny",
        task="binary",
        classes=("subject",),
        network_size_hw=(64, 64),
        precision=precision,
        contract=candidate.contract.as_dict(),
        weights={"file": weights.name, "sha256": file_sha256(weights), "family": candidate.family},
        calibration={"share_of_work": 0.875, "sha256": "0", "source": "others"},
        tools={},
        created="2026-01-01T00:00:00+00:00",
    )
    Bundle.write(folder / precision, manifest, {PROGRAM_NAME: program})


def arguments(place, *more, bundle="int8"):
    known = ["--data", place, "--weights", place / "tiny.pth", "--contract", place / "contract.yaml"]
    return ["int8", *map(str, (*known, "--bundle", place / bundle, *more))]


def test_every_tool_has_a_row_and_what_is_not_here_says_what_to_install(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "modelopt", None)
    monkeypatch.delitem(PEERS, "onnxruntime_per_channel")  # its like is here already
    result, plot = tmp_path / "result.json", tmp_path / "plots" / "plot.png"
    assert main(arguments(place, "--json", result, "--plot", plot)) == 0
    printed = capsys.readouterr().out
    assert "calibrated on 2 pictures, measured on 3 others" in printed
    assert "pip install 'edgemask[peers]'" in printed
    assert "note: the bundle was calibrated on other pictures (others)" in printed
    entries = json.loads(result.read_text())
    rows = {row["tool"]: row for row in entries["table"]}
    assert list(rows) == ["fp32", "ours", *PEERS]
    assert (rows["fp32"]["iou_mean"], rows["fp32"]["mae"], rows["fp32"]["max_f_difference"]) == (1, 0, 0)
    assert (rows["ours"]["share_of_work"], rows["ours"]["max_f"]) == (0.875, 1)
    assert rows["ours"]["max_f_difference"] == pytest.approx(1 - rows["fp32"]["max_f"])
    assert rows["onnxruntime"]["share_of_work"] == 1
    assert 0.5 < rows["onnxruntime"]["iou_mean"] < 1
    assert rows["onnxruntime"]["iou_worst"] <= rows["onnxruntime"]["iou_mean"]
    assert rows["onnxruntime"]["worst_picture"] in ("15", "25", "35")
    assert rows["onnxruntime"]["mae"] > 0
    assert "missing" in rows["modelopt"]
    ratio = entries["ratios"]["ours_iou_over_onnxruntime"]
    assert ratio == pytest.approx(rows["ours"]["iou_mean"] / rows["onnxruntime"]["iou_mean"], abs=1e-3)
    assert not any("modelopt" in name for name in entries["ratios"])
    assert cv2.imread(str(plot)).shape[2] == 3


def test_without_a_bundle_ours_are_compiled_for_gpus_and_for_cpus(place, tmp_path, monkeypatch):
    """The network stands in for both, as its bundle does for one."""
    compiled = []

    def compile_it(name, arguments):
        compiled.append((name, arguments[arguments.index("--target") + 1]))
        made = Bundle.read(place / "int8")
        manifest = replace(made.manifest, calibration={"graph": CPU_GRAPH, "sha256": "0", "share_of_weights": 0.5})
        return Bundle.write(tmp_path / "cpu", manifest, {PROGRAM_NAME: made.program_path.read_bytes()})

    def search(name, arguments):
        compiled.append((name, arguments[arguments.index("--target") + 1]))
        return Bundle.read(place / "int8"), Search(1.0, 2.0, 3.0, ())

    monkeypatch.setattr(int8, "compile_watched", search)
    monkeypatch.setattr(int8, "compile_anew", compile_it)
    monkeypatch.setattr(int8, "PEERS", {"onnxruntime": PEERS["onnxruntime"]})
    words, result = arguments(place, "--json", tmp_path / "result.json"), tmp_path / "result.json"
    del words[words.index("--bundle") : words.index("--bundle") + 2]
    assert main(words) == 0
    assert compiled == [("tiny-int8-onnx-contract", "onnx"), ("tiny-int8-onnxruntime-contract", "onnxruntime")]
    rows = json.loads(result.read_text())["table"]
    assert [row["tool"] for row in rows] == ["fp32", "ours", "ours_for_cpu", "onnxruntime"]
    assert (rows[2]["label"], rows[2]["share_of_work"]) == ("edgemask, INT8 for CPUs", None)
    assert rows[2]["iou_mean"] == rows[1]["iou_mean"]
    shown = _int8_table(rows)
    assert shown[4].startswith("| edgemask, INT8 for CPUs | – | ")


class Ending(torch.nn.Module):
    """A network that nobody here wrote, with probabilities at its output."""

    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 1, 1)

    def forward(self, x):
        return torch.sigmoid(4 * self.last(self.first(x).relu()))


def test_a_network_with_its_own_activation_is_given_to_the_tools_without_it(tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "PEERS", {"onnxruntime": PEERS["onnxruntime"]})
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Ending().eval(), (torch.zeros(1, 3, 64, 64),), str(tmp_path / "n.onnx"), dynamo=False)
    (tmp_path / "c.yaml").write_text("imgsz: 64\nactivation: none\n")
    trained = open_network(tmp_path / "n.onnx", str(tmp_path / "c.yaml"))
    blobs = np.random.default_rng(0).integers(0, 256, (4, 5, 5, 3), dtype=np.uint8)
    frames = np.stack([cv2.resize(blob, (80, 60), interpolation=cv2.INTER_CUBIC) for blob in blobs])
    before = trained.module("fp32", ()).before.eval()
    with torch.inference_mode():
        inputs = before(torch.from_numpy(frames)).numpy()
    (tool,) = int8._quantised(trained, inputs)
    expected = trained.reference(frames).masks_nhw
    assert np.ptp(expected) > 40
    assert np.abs(tool.masks(frames).astype(int) - expected).mean() < 4


def test_modelopt_is_measured_where_it_is(place, tmp_path, monkeypatch):
    pytest.importorskip(
        "modelopt.onnx.quantization", exc_type=ImportError, reason="nvidia-modelopt is not on this machine"
    )
    pytest.importorskip(
        "modelopt.torch.quantization", exc_type=ImportError, reason="nvidia-modelopt is not on this machine"
    )
    for name in ("onnxruntime", "onnxruntime_per_channel"):  # which ModelOpt may have changed in this process
        monkeypatch.delitem(PEERS, name)
    result = tmp_path / "result.json"
    assert main(arguments(place, "--json", result)) == 0
    rows = {row["tool"]: row for row in json.loads(result.read_text())["table"]}
    for name in ("modelopt", "modelopt_torch"):
        assert rows[name]["share_of_work"] > 0.5
        assert 0.5 < rows[name]["iou_mean"] < 1


@pytest.mark.parametrize(
    ("more", "bundle", "message"),
    [
        ((), "fp32", "expected a bundle in INT8, got fp32"),
        (("--data", "nowhere"), "int8", "expected a folder with images/ and masks/, got none in nowhere/images"),
        (("--contract", "stream"), "int8", "expected contract stream, got contract: name the bundle's with --contract"),
        (
            ("--calib", "{images}", "--verify", "{images}/15.png"),
            "int8",
            "expected other pictures than --calib, got 1 in both",
        ),
        (("--weights", "{other}"), "int8", "expected one of other.pth, got one of tiny.pth"),
    ],
)
def test_what_does_not_fit_is_told(place, more, bundle, message, capsys):
    shutil.copy(place / "tiny.pth", place / "other.pth")
    with (place / "other.pth").open("ab") as file:
        file.write(b"more")
    given = [text.format(images=place / "images", other=place / "other.pth") for text in more]
    assert main(arguments(place, *given, bundle=bundle)) == 2
    assert message in capsys.readouterr().err


def test_a_data_set_without_pictures_to_calibrate_on_is_told(place, tmp_path, capsys):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    shutil.copy(place / "images" / "15.png", tmp_path / "images")
    assert main(arguments(place, "--data", tmp_path)) == 2
    assert "0.*: expected pictures" in capsys.readouterr().err


def two_convolutions(size="fixed", activation=TensorProto.INT8):
    """A 3×3 convolution of 2 to 4 channels in 8 bits, then a 1×1 of 4 to 1 with only its weight in 8 bits, on 8×8."""
    height = 8 if size == "fixed" else "H"
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w1", "scale"], ["w1d"]),
        helper.make_node("Conv", ["xd", "w1d"], ["y"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("DequantizeLinear", ["w2", "scale"], ["w2d"]),
        helper.make_node("Conv", ["y", "w2d"], ["z"], name="second"),
    ]
    zero = np.zeros((), helper.tensor_dtype_to_np_dtype(activation))
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, height, 8])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        initializer=[
            numpy_helper.from_array(np.float32(0.1), "scale"),
            numpy_helper.from_array(zero, "zero"),
            numpy_helper.from_array(np.ones((4, 2, 3, 3), np.int8), "w1"),
            numpy_helper.from_array(np.ones((1, 4, 1, 1), np.int8), "w2"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])


def test_a_convolution_counts_where_input_and_weight_are_8_bits():
    assert int8_share(two_convolutions()) == pytest.approx(72 / (72 + 4))
    assert int8_share(two_convolutions(activation=TensorProto.UINT8)) == pytest.approx(72 / (72 + 4))
    assert int8_share(two_convolutions(activation=TensorProto.INT16)) == 0
    weights_only = two_convolutions()
    weights_only.graph.node[3].input[0] = "x"
    assert int8_share(weights_only) == 0
    assert int8_share(onnx.ModelProto()) == 0


def test_a_convolution_of_unknown_size_is_told():
    with pytest.raises(CompileError, match="first: expected a convolution of a known size"):
        int8_share(two_convolutions(size="free"))
