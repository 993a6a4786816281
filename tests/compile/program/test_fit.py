# Letterbox and cover, written a second time with OpenCV and NumPy: as ultralytics' LetterBox does it, in floating point.

import warnings
from dataclasses import replace

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compile.build import build
from compile.networks.contract import Contract, read_contract
from compile.program.onnx_export import export_program
from compile.program.program import FrameProgram, FrameToInput
from edgemask import Model
from pipeline.errors import CompileError
from pipeline.frames.nv12 import to_bgr, to_nv12
from tests.compile.program.test_graph_network import with_a_determinant

SIZE_HW = (48, 64)
# Wide, tall, odd, of the network's shape, larger, smaller, and one row or column.
FRAMES_HW = [(60, 200), (211, 70), (97, 131), (48, 64), (96, 128), (20, 31), (480, 641), (1, 90), (90, 1)]
STRIP = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}


def boxed(size_hw):
    """Rows, columns, top and left of a frame in the network's input."""
    (height, width), (rows, columns) = SIZE_HW, size_hw
    ratio = min(height / rows, width / columns)
    inner_hw = max(1, int(rows * ratio + 0.5)), max(1, int(columns * ratio + 0.5))
    top, left = (round((whole - inner) / 2 - 0.1) for whole, inner in zip(SIZE_HW, inner_hw, strict=True))
    return (*inner_hw, max(top, 0), max(left, 0))


def cut(size_hw):
    """Rows, columns, top and left of the part of a frame that the network sees."""
    ratio = min(size_hw[0] / SIZE_HW[0], size_hw[1] / SIZE_HW[1])
    rows, columns = (max(1, int(side * ratio + 0.5)) for side in SIZE_HW)
    return rows, columns, (size_hw[0] - rows) // 2, (size_hw[1] - columns) // 2


def resized(image, size_hw, kind="bilinear"):
    """To a size; with "area" to the nearest whole multiple, and blocks are averaged."""
    blocks = [
        max(1, int(was / now + 0.5)) if kind == "area" else 1 for was, now in zip(image.shape, size_hw, strict=False)
    ]
    fine = cv2.resize(
        image.astype(np.float32), (size_hw[1] * blocks[1], size_hw[0] * blocks[0]), interpolation=cv2.INTER_LINEAR
    )
    fine = fine.reshape(size_hw[0], blocks[0], size_hw[1], blocks[1], -1).mean((1, 3))
    return fine if image.ndim == 3 else fine[..., 0]


def prepared(image, fit, kind="bilinear", pad=114.0):
    """The network's input before its division, (h, w, 3) BGR."""
    if fit == "cover":
        rows, columns, top, left = cut(image.shape[:2])
        return resized(image[top : top + rows, left : left + columns], SIZE_HW, kind)
    rows, columns, top, left = boxed(image.shape[:2])
    x = np.empty((*SIZE_HW, 3), np.float32)
    x[:] = pad
    x[top : top + rows, left : left + columns] = resized(image, (rows, columns), kind)
    return x


def back(values, frame_hw, fit):
    """(h, w) of the network's size to the frame's."""
    if fit == "cover":
        rows, columns, top, left = cut(frame_hw)
        whole = np.zeros(frame_hw, np.float32)
        whole[top : top + rows, left : left + columns] = resized(values, (rows, columns))
        return whole
    rows, columns, top, left = boxed(frame_hw)
    return resized(values[top : top + rows, left : left + columns], frame_hw)


def probability(x, session):
    scores = session.run(None, {session.get_inputs()[0].name: x.transpose(2, 0, 1)[None]})[0][0, 0]
    return (1 / (1 + np.exp(-scores.astype(np.float64)))).astype(np.float32)


class Reds(nn.Module):
    """Where red is more than green: some layers, with nothing random and little that rounding can spoil."""

    def __init__(self, *, small=False):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2 if small else 1, 1)
        self.second = nn.Conv2d(8, 8, 3, 1, 1)
        self.head = nn.Conv2d(8, 1, 1)
        with torch.no_grad():
            for layer in (self.first, self.second):
                layer.weight.mul_(0.1)
                layer.bias.zero_()
                for channel in range(8):
                    layer.weight[channel, channel % layer.in_channels] += 1 / 9
            self.head.weight.copy_(torch.tensor([4.0, -4.0, 0, 4, -4, 0, 4, -4]).view(1, 8, 1, 1))
            self.head.bias.zero_()

    def forward(self, x):
        return self.head(self.second(self.first(x).relu()).relu())

    logits = forward


def reds(**options):
    torch.manual_seed(1)
    return Reds(**options).eval()


def saved(network, path, size_hw, channels=3):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (torch.zeros(1, channels, *size_hw),), str(path), dynamo=False)


def run(module, *arrays):
    with torch.inference_mode():
        given = module.eval()(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))
    return (given[0] if isinstance(given, tuple) else given).numpy()


@pytest.mark.parametrize("kind", ["bilinear", "area"])
@pytest.mark.parametrize("fit", ["letterbox", "cover"])
@pytest.mark.parametrize("frame_hw", FRAMES_HW)
def test_input(pictures, frame_hw, fit, kind):
    contract = Contract("x", SIZE_HW, channels="bgr", divide_by=1.0, filter=kind, fit=fit, pad=(10.0, 20.0, 30.0))
    frames = pictures(2, *frame_hw)
    for image, x in zip(frames, run(FrameToInput(contract), frames), strict=True):
        np.testing.assert_allclose(x.transpose(1, 2, 0), prepared(image, fit, kind, (10, 20, 30)), atol=0.02)


@pytest.mark.parametrize("divide_by", [255.0, "max"])
def test_bars_are_scaled_as_pixels_are_and_no_part_of_the_frame(pictures, divide_by):
    contract = Contract("x", SIZE_HW, fit="letterbox", divide_by=divide_by, **STRIP)
    frames = pictures(1, 30, 200) // np.uint8(4)  # darker than the bars
    x = prepared(frames[0], "letterbox", "area")[..., ::-1]
    rows, _, top, _ = boxed((30, 200))
    largest = x[top : top + rows].max() if divide_by == "max" else 255
    expected = (x / largest - STRIP["mean"]) / STRIP["std"]
    np.testing.assert_allclose(run(FrameToInput(contract), frames)[0].transpose(1, 2, 0), expected, atol=2e-3)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("fit", ["letterbox", "cover"])
def test_masks_of_one_exported_program_for_all_sizes(tmp_path, pictures, fit, small):
    contract = Contract("x", SIZE_HW, fit=fit, filter="bilinear")
    network = reds(small=small)
    program = export_program(FrameProgram(network, contract))
    session = onnxruntime.InferenceSession(program.SerializeToString(), providers=["CPUExecutionProvider"])
    saved(network, tmp_path / "bare.onnx", SIZE_HW)
    bare = onnxruntime.InferenceSession(str(tmp_path / "bare.onnx"))
    for frame_hw in FRAMES_HW:
        frames = pictures(2, *frame_hw)
        masks = session.run(["masks"], {"frames": frames})[0]
        assert masks.shape == (2, *frame_hw)
        for image, mask in zip(frames, masks, strict=True):
            found = probability(prepared(image, fit)[..., ::-1] / 255, bare)
            if small and fit == "letterbox":  # scores are enlarged to the network's size, for bars end between them
                scores = np.log(found) - np.log1p(-found)
                found = 1 / (1 + np.exp(-resized(scores, SIZE_HW)))
            assert np.abs(mask - back(found, frame_hw, fit) * 255).max() <= 1.01, frame_hw


def test_what_is_outside_of_the_cut_is_0_and_bars_are_no_mask(pictures):
    everything = type("Everything", (nn.Module,), {"logits": lambda _, x: x[:, :1] * 0 + 9})()
    frames = pictures(1, 60, 200)
    rows, columns, top, left = cut((60, 200))
    mask = run(FrameProgram(everything, Contract("x", SIZE_HW, fit="cover")), frames)[0]
    assert (mask[top : top + rows, left : left + columns] == 255).all()
    assert (mask > 0).sum() == rows * columns
    assert (run(FrameProgram(everything, Contract("x", SIZE_HW, fit="letterbox")), frames) == 255).all()


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("fit", ["letterbox", "cover"])
def test_classes(pictures, fit, smooth):
    network = type("Most", (nn.Module,), {"logits": lambda _, x: F.avg_pool2d(x, 5, 1, 2)})()
    contract = Contract("x", SIZE_HW, fit=fit, filter="bilinear", activation="softmax")
    frames = pictures(1, 71, 200)
    contract = replace(contract, upsample="scores" if smooth else "classes")
    (mask,) = run(FrameProgram(network, contract), frames)
    x = torch.from_numpy(prepared(frames[0], fit)[..., ::-1].copy()).permute(2, 0, 1)[None]
    index = F.avg_pool2d(x, 5, 1, 2)[0].argmax(0).numpy()
    region = cut((71, 200)) if fit == "cover" else (71, 200, 0, 0)
    rows, columns, top, left = region
    inner = mask[top : top + rows, left : left + columns]
    if fit == "letterbox":
        content = boxed((71, 200))
        index = index[content[2] : content[2] + content[0], content[3] : content[3] + content[1]]
    expected = cv2.resize(index.astype(np.uint8), (columns, rows), interpolation=cv2.INTER_NEAREST)
    assert (inner == expected).mean() > (0.9 if smooth else 0.995)
    outside = mask.copy()
    outside[top : top + rows, left : left + columns] = 0
    assert not outside.any()


# --- through the build


@pytest.fixture(scope="module")
def place(tmp_path_factory, pictures):
    folder = tmp_path_factory.mktemp("fit")
    saved(reds(), folder / "net.onnx", SIZE_HW)
    for name, seed, count in (("calib", 1, 12), ("judged", 2, 4)):
        (folder / name).mkdir()
        for index, picture in enumerate(pictures(count, 60, 140, seed=seed)):
            cv2.imwrite(str(folder / name / f"{index}.png"), picture)
    for fit in ("letterbox", "cover"):
        (folder / f"{fit}.yaml").write_text(f"imgsz: {list(SIZE_HW)}\nfilter: bilinear\nfit: {fit}\n")
    return folder


def expected_masks(place, frames, fit, name="net.onnx"):
    session = onnxruntime.InferenceSession(str(place / name))
    found = [probability(prepared(image, fit)[..., ::-1] / 255, session) for image in frames]
    return np.stack([back(one, image.shape[:2], fit) * 255 for one, image in zip(found, frames, strict=True)])


BUILDS = {
    "fp32": ({}, 1.01),
    "fp16": ({"precision": "fp16", "compose": "device"}, 4),
    "nv12": ({"pixels": "nv12", "frame_size_hw": (60, 140)}, 5),
    "int8": ({"precision": "int8", "target": "onnxruntime", "strict": True, "min_iou": 0.5, "min_worst_iou": 0.0}, 40),
}


@pytest.mark.parametrize("how", BUILDS)
@pytest.mark.parametrize("fit", ["letterbox", "cover"])
def test_a_bundle(place, tmp_path, monkeypatch, pictures, fit, how):
    monkeypatch.setenv("EDGEMASK_CACHE", str(tmp_path / "cache"))
    options, most = BUILDS[how]
    more = {"calibration": place / "calib"} if how == "int8" else {}
    options = {
        "contract": str(place / f"{fit}.yaml"),
        "verify": str(place / "judged"),
        "quiet": True,
        **options,
        **more,
    }
    bundle = build(place / "net.onnx", tmp_path / "bundle", **options)
    assert bundle.manifest.contract["fit"] == fit
    assert bundle.manifest.precision == options.get("precision", "fp32")
    with Model(tmp_path / "bundle") as model:
        for frame_hw in [(60, 140)] if how == "nv12" else [(60, 140), (140, 61), (31, 22)]:
            frames = pictures(2, *frame_hw, seed=5)
            seen = np.stack([to_bgr(to_nv12(image)) for image in frames]) if how == "nv12" else frames
            expected = expected_masks(place, seen, fit)
            difference = np.abs(model(frames) - expected)
            assert np.ptp(expected) > 100
            assert (difference.max() if how != "int8" else difference.mean()) <= most


@pytest.mark.parametrize(("fit", "small"), [("letterbox", False), ("letterbox", True), ("cover", True)])
def test_a_network_that_stays_as_it_is(place, tmp_path, caplog, pictures, fit, small):
    caplog.set_level("INFO", "edgemask")
    (tmp_path / "square.yaml").write_text(f"imgsz: 64\nfilter: bilinear\nfit: {fit}\n")
    saved(reds(small=small), tmp_path / "square.onnx", (64, 64))
    with_a_determinant(tmp_path / "square.onnx", tmp_path / "odd.onnx")
    options = {"contract": str(tmp_path / "square.yaml"), "verify": str(place / "judged"), "quiet": True}
    build(tmp_path / "odd.onnx", tmp_path / "odd", **options)
    build(tmp_path / "square.onnx", tmp_path / "plain", **options)
    assert any("FP32 alone" in line for line in caplog.messages)
    frames = pictures(2, 70, 120)
    with Model(tmp_path / "odd") as odd, Model(tmp_path / "plain") as plain:
        masks = odd(frames)
        assert np.ptp(masks) > 100
        assert np.abs(masks.astype(int) - plain(frames)).max() <= 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fit: crop", r"fit: expected stretch, letterbox or cover, got 'crop'"),
        ("pad: 300", r"pad: expected a number from 0 to 255, or 3 numbers for rgb, got 300"),
        ("pad: [1, 2]", r"pad: expected a number from 0 to 255, or 3 numbers for rgb, got \(1\.0, 2\.0\)"),
        ("pad: gray", r"pad: expected a number, or a list of them, one for each channel, got 'gray'"),
    ],
)
def test_wrong_keys(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(f"imgsz: 64\n{text}\n")
    with pytest.raises(CompileError, match=message):
        read_contract(tmp_path / "c.yaml")
