# Networks of other channels than pictures have, from the build to masks, beside ONNX Runtime on the bare network.

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from torch import nn

from compile.build import build
from compile.networks.contract import Contract, read_contract
from compile.program.program import FrameToInput
from edgemask import Model, open_source
from pipeline.__main__ import main
from pipeline.bundles.bundle import Bundle
from pipeline.errors import CompileError, EdgemaskError, OptionError, ShapeError, SourceError
from tests.compile.program.test_fit import run, saved
from tests.compile.program.test_graph_network import with_a_determinant

tifffile = pytest.importorskip("tifffile")

SIZE_HW = (48, 48)
FRAME_HW = (64, 80)


class Fourth(nn.Module):
    """Where the fourth channel is more than the first: as ``Reds``, of channels that are normalized."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Conv2d(4, 8, 3, 1, 1)
        self.second = nn.Conv2d(8, 8, 3, 1, 1)
        self.head = nn.Conv2d(8, 1, 1)
        with torch.no_grad():
            for layer in (self.first, self.second):
                layer.weight.mul_(0.1)
                layer.bias.fill_(0.2)
                for channel in range(8):
                    layer.weight[channel, channel % layer.in_channels] += 1 / 9
            self.head.weight.copy_(torch.tensor([-1.0, 0, 0, 1, -1, 0, 0, 1]).view(1, 8, 1, 1))
            self.head.bias.zero_()

    def forward(self, x):
        return self.head(self.second(self.first(x).relu()).relu())


def scans(pictures, count, seed):
    """(N, H, W, 4) uint16 within 12 bits: blobs, each channel other ones."""
    parts = [pictures(count, *FRAME_HW, seed=seed + part)[..., part] for part in (0, 1, 2)]
    parts.append(pictures(count, *FRAME_HW, seed=seed + 3)[..., 0])
    return np.stack(parts, 3).astype(np.uint16) * 16 + 7


@pytest.fixture(scope="module")
def place(tmp_path_factory, pictures):
    folder = tmp_path_factory.mktemp("bands")
    torch.manual_seed(0)
    network = Fourth().eval()
    saved(network, folder / "net.onnx", SIZE_HW, 4)
    for name, seed, count in (("calib", 10, 12), ("judged", 20, 10)):
        (folder / name).mkdir()
        for index, scan in enumerate(scans(pictures, count, seed)):
            tifffile.imwrite(folder / name / f"{index}.tif", scan, photometric="minisblack", planarconfig="contig")
    (folder / "c.yaml").write_text(f"imgsz: {SIZE_HW[0]}\nchannels: 4\nbits: 16\nzscore: true\nfilter: bilinear\n")
    return folder


def options_of(place, **more):
    return {"contract": str(place / "c.yaml"), "verify": str(place / "judged"), "quiet": True, **more}


def expected_mask(scan, path):
    x = cv2.resize(scan.astype(np.float32), SIZE_HW[::-1], interpolation=cv2.INTER_LINEAR).astype(np.float64)
    x = (x - x.mean((0, 1))) / x.std((0, 1))
    session = onnxruntime.InferenceSession(str(path))
    scores = session.run(None, {session.get_inputs()[0].name: x.transpose(2, 0, 1)[None].astype(np.float32)})[0]
    found = 1 / (1 + np.exp(-scores[0, 0]))
    return 255 * cv2.resize(found, scan.shape[1::-1], interpolation=cv2.INTER_LINEAR)


BUILDS = {
    "fp32": ({}, 1.01),
    "fp16": ({"precision": "fp16", "frame_size_hw": FRAME_HW, "verify_count": 4}, 4),
    "int8": ({"precision": "int8", "target": "onnxruntime", "strict": True, "min_iou": 0.5, "min_worst_iou": 0.0}, 8),
}


@pytest.mark.parametrize("how", BUILDS)
def test_a_bundle(place, tmp_path, monkeypatch, pictures, how):
    monkeypatch.setenv("EDGEMASK_CACHE", str(tmp_path / "cache"))
    options, most = BUILDS[how]
    more = {"calibration": str(place / "calib")} if how == "int8" else {}
    build(place / "net.onnx", tmp_path / "bundle", **options_of(place, **options, **more))
    bundle = Bundle.read(tmp_path / "bundle")
    assert (bundle.manifest.pixels, bundle.manifest.contract["channels"]) == ("4x16", 4)
    (entry,) = onnx.load(bundle.program_path).graph.input
    assert entry.type.tensor_type.elem_type == TensorProto.INT32
    with Model(bundle.folder) as model:
        scan, *others = scans(pictures, 3, 30)
        expected = expected_mask(scan, place / "net.onnx")
        assert np.ptp(expected) > 100
        mask = model(scan)
        assert np.abs(mask - expected).max() <= most if how != "int8" else np.abs(mask - expected).mean() <= most
        np.testing.assert_array_equal(model(np.stack([scan, *others]))[0], mask)


def test_files_through_a_model_and_the_command(place, tmp_path, capsys, pictures):
    build(place / "net.onnx", tmp_path / "bundle", **options_of(place, verify_count=4))
    with Model(tmp_path / "bundle") as model, open_source(str(place / "judged" / "*.tif")) as source:
        frames = list(model.stream(source))
        assert len(frames) == 10
        for frame in frames:
            np.testing.assert_array_equal(frame.mask, model(frame.pixels))
            assert model.draw(frame).shape == (*FRAME_HW, 3)
    np.save(tmp_path / "scan.npy", frames[3].pixels)
    command = ["--model", str(tmp_path / "bundle"), "--backend", "onnxruntime", "--render", "mask"]
    assert main([*command, "--source", str(tmp_path / "scan.npy"), "--output", str(tmp_path / "mask.png")]) == 0
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_GRAYSCALE), frames[3].mask)
    cv2.imwrite(str(tmp_path / "photo.jpg"), frames[3].image)
    capsys.readouterr()
    assert main([*command, "--source", str(tmp_path / "photo.jpg"), "--output", str(tmp_path / "other.png")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert "photo.jpg: expected 4 channels of 16 bits as the network takes" in said[-1]
    with Model(tmp_path / "bundle") as model:
        with pytest.raises(
            ShapeError,
            match=r"expected \(H, W, 4\) or .* uint16, 4 channels of 16 bits as the network takes, got \(64, 80, 3\)",
        ):
            model(frames[3].image)
        with pytest.raises(ShapeError, match=r"got \(64, 80, 4\) int32"):
            model(frames[3].pixels.astype(np.int32))
        with (
            open_source("test://?size=80x64&frames=2") as source,
            pytest.raises(ShapeError, match="got an ordinary picture"),
        ):
            list(model.stream(source))


def test_an_ordinary_network_refuses_such_files(tmp_path, pictures, red_bundle):
    np.save(tmp_path / "scan.npy", scans(pictures, 1, 0)[0])
    with (
        Model(red_bundle.folder) as model,
        open_source(str(tmp_path / "scan.npy")) as source,
        pytest.raises(SourceError, match=r"scan\.npy: expected an ordinary picture as the network takes, got an array"),
    ):
        list(model.stream(source))


def test_a_checkpoint_of_five_channels_in_tiles_of_8_bits(tmp_path, pictures, tiny_unet):
    network = tiny_unet(1, n_channels=5)
    torch.save(network.state_dict(), tmp_path / "net.pth")
    (tmp_path / "judged").mkdir()
    arrays = pictures(3, 90, 100, seed=1)[..., [0, 1, 2, 2, 1]]
    for index, array in enumerate(arrays):
        np.save(tmp_path / "judged" / f"{index}.npy", array)
    (tmp_path / "c.yaml").write_text("imgsz: 64\nchannels: 5\ntile: [64, 16]\n")
    options = {
        "contract": str(tmp_path / "c.yaml"),
        "verify": str(tmp_path / "judged"),
        "precision": "fp16",
        "quiet": True,
    }
    bundle = build(tmp_path / "net.pth", tmp_path / "bundle", **options)
    assert (bundle.manifest.pixels, bundle.manifest.frame_size_hw) == ("5x8", (64, 64))
    with Model(bundle.folder) as model, torch.inference_mode():
        mask = model(arrays[0])
        x = torch.from_numpy(arrays[0][:64, :64]).permute(2, 0, 1)[None] / 255
        corner = 255 * network.logits(x).sigmoid()[0, 0].numpy()
    assert np.ptp(corner) > 100
    assert np.abs(mask[:26, :36] - corner[:26, :36]).max() <= 4  # where no other tile lies


def test_a_network_that_stays_as_it_is(place, tmp_path, caplog, pictures):
    caplog.set_level("INFO", "edgemask")
    with_a_determinant(place / "net.onnx", tmp_path / "odd.onnx")
    build(tmp_path / "odd.onnx", tmp_path / "bundle", **options_of(place, verify_count=2))
    assert any("FP32 alone" in line for line in caplog.messages)
    (scan,) = scans(pictures, 1, 40)
    with Model(tmp_path / "bundle") as model:
        assert np.abs(model(scan) - expected_mask(scan, place / "net.onnx")).max() <= 1.01


def test_zscore_with_bars():
    random = np.random.default_rng(0)
    frames = random.integers(0, 4096, (2, 24, 48, 3)).astype(np.int32)
    frames[1, ..., 2] = 700  # one value all over
    contract = Contract("x", (48, 48), channels=3, bits=16, zscore=True, fit="letterbox", pad=4095.0, divide_by=65535.0)
    x = run(FrameToInput(contract), frames)
    for image, got in zip(frames.astype(np.float64), x, strict=True):
        mean, std = image.mean((0, 1)), image.std((0, 1))
        for channel in range(3):
            expected = (image[..., channel] - mean[channel]) / max(std[channel], 65535e-6)
            np.testing.assert_allclose(got[channel, 12:36], expected, atol=2e-3)
            bar = (4095 - mean[channel]) / max(std[channel], 65535e-6)
            np.testing.assert_allclose(got[channel, :12], bar, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"pixels": "nv12"},
            "--pixels nv12: expected none of it for a network of 4 channels of 16 bits as files have them",
        ),
        ({"compose": "device"}, "--compose device: expected none of it"),
        ({"target": "torch-tensorrt"}, "--target torch-tensorrt: expected none of it"),
        ({"verify": None}, "--verify: expected pictures with 4 channels of 16 bits .* got none: give --verify DIR"),
    ],
)
def test_options_that_do_not_go_with_such_channels(place, tmp_path, options, message):
    with pytest.raises(OptionError, match=message):
        build(place / "net.onnx", tmp_path / "bundle", **options_of(place, **options))


def test_ordinary_pictures_do_not_prove_such_a_network(place, tmp_path, pictures):
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "a.png"), pictures(1, 60, 60)[0])
    with pytest.raises(
        EdgemaskError, match=r"a\.png: expected 4 channels of 16 bits as the network takes, .* got \(60, 60, 3\) uint8"
    ):
        build(place / "net.onnx", tmp_path / "bundle", **options_of(place, verify=str(tmp_path / "photos")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("channels: 17", "channels: expected rgb, bgr, grey or a number from 1 to 16, got 17"),
        ("channels: 0", "channels: expected rgb, bgr, grey or a number from 1 to 16, got 0"),
        ("channels: true", "channels: expected rgb, bgr, grey or a number from 1 to 16, got True"),
        ("bits: 16", "bits: expected 8, or 16 for channels by their number, got 16"),
        ("channels: 4\nbits: 12", "bits: expected 8, or 16 for channels by their number, got 12"),
        ("zscore: 1", "zscore: expected true or false, got 1"),
        ("zscore: true\nmean: [0.5, 0.5, 0.5]", "zscore: expected no mean and std beside it"),
        ("channels: 2\nmean: [0.5, 0.5, 0.5]", "mean: expected 2 numbers for 2 channels"),
        ("channels: 2\nbits: 16\npad: 70000", "pad: expected a number from 0 to 65535, or 2 numbers for 2 channels"),
    ],
)
def test_wrong_keys(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(f"imgsz: 64\n{text}\n")
    with pytest.raises(CompileError, match=message):
        read_contract(tmp_path / "c.yaml")


def test_keys_that_follow_from_others(tmp_path):
    (tmp_path / "c.yaml").write_text("imgsz: 64\nchannels: 2\nbits: 16\nzscore: true\n")
    contract = read_contract(tmp_path / "c.yaml", Contract("x", (32, 32), mean=(0.5, 0.5, 0.5)))
    assert (contract.mean, contract.divide_by, contract.pixels) == ((0.0, 0.0), 65535.0, "2x16")
    assert Contract("x", (32, 32)).pixels == "bgr"
