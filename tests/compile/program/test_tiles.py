# Networks that see frames in tiles, from the build to masks: beside ONNX Runtime on the bare network, with tiles blended in NumPy.

import itertools

import cv2
import numpy as np
import onnxruntime
import pytest
from torch import nn

from compile.build import build
from compile.networks.contract import Contract, read_contract
from edgemask import Model, open_source
from pipeline.bundles.bundle import Bundle
from pipeline.errors import CompileError, OptionError
from tests.compile.program.test_fit import reds, saved
from tests.pipeline.frames.test_tiles import begins, blended

SIZE, OVERLAP = 48, 8
FRAMES_HW = [(100, 170), (48, 48), (49, 200), (20, 31), (30, 90)]


def in_tiles(image, session, size=SIZE, overlap=OVERLAP):
    """Probabilities of a picture, (H, W): of each tile by ONNX Runtime, and blended."""
    rows, columns = image.shape[:2]
    padded = cv2.copyMakeBorder(
        image, 0, max(0, size - rows), 0, max(0, size - columns), borderType=cv2.BORDER_REPLICATE
    )
    found = {}
    tops, lefts = begins(rows, size, overlap), begins(columns, size, overlap)
    for (row, top), (column, left) in itertools.product(enumerate(tops), enumerate(lefts)):
        x = padded[top : top + size, left : left + size, ::-1].astype(np.float32).transpose(2, 0, 1)[None] / 255
        scores = session.run(None, {session.get_inputs()[0].name: x})[0][0]
        found[row, column] = 1 / (1 + np.exp(-scores[0])) if len(scores) == 1 else scores.argmax(0)
    return found, (tops, lefts)


@pytest.fixture(scope="module")
def place(tmp_path_factory, pictures):
    folder = tmp_path_factory.mktemp("tiles")
    saved(reds(), folder / "net.onnx", (SIZE, SIZE))
    for name, seed, count in (("calib", 1, 12), ("judged", 2, 4)):
        (folder / name).mkdir()
        for index, picture in enumerate(pictures(count, 100, 170, seed=seed)):
            cv2.imwrite(str(folder / name / f"{index}.png"), picture)
    (folder / "c.yaml").write_text(f"imgsz: {SIZE}\ntile: [{SIZE}, {OVERLAP}]\n")
    return folder


def options_of(place, **more):
    return {"contract": str(place / "c.yaml"), "verify": str(place / "judged"), "quiet": True, **more}


BUILDS = {
    "fp32": {},
    "fp16": {"precision": "fp16"},
    "int8": {"precision": "int8", "target": "onnxruntime", "strict": True, "min_iou": 0.5, "min_worst_iou": 0.0},
}


@pytest.mark.parametrize("how", BUILDS)
def test_a_bundle(place, tmp_path, monkeypatch, pictures, how):
    monkeypatch.setenv("EDGEMASK_CACHE", str(tmp_path / "cache"))
    more = {"calibration": place / "calib"} if how == "int8" else {}
    bundle = build(place / "net.onnx", tmp_path / "bundle", **options_of(place, **BUILDS[how], **more))
    manifest = Bundle.read(bundle.folder).manifest
    assert (manifest.frame_size_hw, manifest.precision) == ((SIZE, SIZE), BUILDS[how].get("precision", "fp32"))
    assert manifest.contract["tile"] == [[SIZE, SIZE], OVERLAP]
    assert manifest.verification["frames"] == 4
    if how == "int8":
        assert manifest.calibration["frames"] > 12  # several tiles of each picture
    session = onnxruntime.InferenceSession(str(place / "net.onnx"))
    with Model(bundle.folder) as model:
        for frame_hw in FRAMES_HW:
            frames = pictures(2, *frame_hw, seed=5)
            for image, mask in zip(frames, model(frames), strict=True):
                found, _ = in_tiles(image, session)
                expected = 255 * blended(found, frame_hw, (SIZE, SIZE), OVERLAP)
                difference = np.abs(mask - expected)
                assert (difference.max() if how != "int8" else difference.mean() / 10) <= (1.01 if how == "fp32" else 4)


def test_a_stream(place, tmp_path):
    build(place / "net.onnx", tmp_path / "bundle", **options_of(place))
    with Model(tmp_path / "bundle") as model, open_source(str(place / "judged")) as source:
        frames = list(model.stream(source))
        assert [frame.mask.shape for frame in frames] == [(100, 170)] * 4
        for frame in frames:
            np.testing.assert_array_equal(frame.mask, model(frame.image))


class Most(nn.Module):
    def forward(self, x):
        return nn.functional.avg_pool2d(x, 5, 1, 2)


def test_classes(place, tmp_path, pictures):
    saved(Most(), tmp_path / "net.onnx", (SIZE, SIZE))
    (tmp_path / "c.yaml").write_text(f"imgsz: {SIZE}\nactivation: softmax\ntile: [{SIZE}, {OVERLAP}]\n")
    build(tmp_path / "net.onnx", tmp_path / "bundle", **options_of(place, contract=str(tmp_path / "c.yaml")))
    (image,) = pictures(1, 100, 170, seed=5)
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    found, (tops, lefts) = in_tiles(image, session)
    with Model(tmp_path / "bundle") as model:
        mask = model(image)
    # One of the tiles that lie there says so; where all agree, there is no choice.
    votes = np.full((len(found), 100, 170), -1)
    for index, (row, column) in enumerate(found):
        there = slice(tops[row], tops[row] + SIZE), slice(lefts[column], lefts[column] + SIZE)
        votes[index][there] = found[row, column][: 100 - tops[row], : 170 - lefts[column]]
    assert (votes == mask).any(0).mean() > 0.999
    agreed = (votes.max(0) == np.where(votes < 0, 9, votes).min(0)) & (votes >= 0).any(0)
    assert (mask == votes.max(0))[agreed].mean() > 0.999
    assert len(np.unique(mask)) == 3


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"pixels": "nv12"}, "--pixels nv12: expected none of it for a network that sees frames in tiles"),
        ({"compose": "device"}, "--compose device: expected none of it"),
        ({"frame_size_hw": (100, 170)}, "--frame: expected none of it"),
    ],
)
def test_options_that_do_not_go_with_tiles(place, tmp_path, option, message):
    with pytest.raises(OptionError, match=message):
        build(place / "net.onnx", tmp_path / "bundle", **options_of(place, **option))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tile: 64", r"tile: expected \[SIZE, OVERLAP\] in pixels, .* got 64"),
        (
            "tile: [32, 4]",
            r"tile: expected \[SIZE, OVERLAP\] with the network's own size, 64×64, got \(\(32, 32\), 4\)",
        ),
        ("tile: [64, 40]", r"tile: expected an overlap from 0 to 32, half of a side"),
        ("tile: [64, 4]\nfit: cover", "fit: expected none beside tile"),
    ],
)
def test_wrong_keys(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(f"imgsz: 64\n{text}\n")
    with pytest.raises(CompileError, match=message):
        read_contract(tmp_path / "c.yaml")


def test_the_contract_of_a_manifest():
    contract = Contract("x", (48, 64), tile=((48, 64), 8), fit="stretch", pad=(1.0, 2.0, 3.0))
    assert contract.as_dict()["tile"] == ((48, 64), 8)
    entries = {**contract.as_dict(), "tile": [[48, 64], 8], "imgsz": [48, 64], "pad": [1.0, 2.0, 3.0]}
    assert Contract.from_dict(entries) == contract
