import cv2
import numpy as np
import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.questions.sizes import advice
from benchmarks.shared import bundles
from pipeline.command.command_line import SaidError


@pytest.fixture(scope="module")
def network(tmp_path_factory, spread_unet):
    """A U-Net of few weights, and a contract in which its own size is 48×48."""
    folder = tmp_path_factory.mktemp("network")
    unet = spread_unet(1, True, (48, 48), 4)
    torch.save(unet.state_dict(), folder / "tiny.pth")
    (folder / "small.yaml").write_text("imgsz: 48\n")
    return folder


@pytest.fixture
def pictures(tmp_path):
    random = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for name in ("a", "b"):
        image = cv2.resize(random.integers(0, 255, (6, 8, 3), np.uint8), (96, 72), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), image)
        cv2.imwrite(str(tmp_path / "masks" / f"{name}.png"), np.where(image[:, :, 2] > 127, 255, 0).astype(np.uint8))
    return tmp_path


def test_sizes_are_timed_and_compared_with_the_networks_own(asked, network, pictures, clip, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEMASK_CACHE", str(tmp_path / "cache"))
    entries, printed = asked(
        *("sizes", "--weights", network / "tiny.pth", "--contract", network / "small.yaml", "--sizes", "48,32x64"),
        *("--clip", clip, "--pictures", pictures / "images", "--truth", pictures / "masks"),
        *("--most", "4", "--frames", "3", "--rounds", "2"),
    )
    own, other = entries["table"]
    assert (own["size"], own["own"], other["size"], other["own"]) == ("48", True, "32x64", False)
    assert (own["iou_mean"], own["iou_worst"], own["fps_over_own"]) == (1, 1, 1)
    assert 0 < other["iou_mean"] < 1
    assert other["worst_picture"]
    assert all(
        row["ms"] > 0 and row["fps"] > 0 and 0 < row["max_f"] <= 1 and 0 < row["mae"] < 1 for row in (own, other)
    )
    assert entries["compared_on"] == 2 + 4
    assert entries["ratios"] == {"fps_32x64_over_48": other["fps_over_own"], "iou_32x64_with_48": other["iou_mean"]}
    assert "| --imgsz | ms alone | FPS | of 48's | IoU with 48 | worst | max F-measure | MAE |" in printed
    assert entries["advice"][0] in printed
    folders = {path.name for path in (tmp_path / "cache" / "benchmarks").iterdir()}
    assert folders == {"tiny-fp32-small-onnx", "tiny-fp32-small-onnx-32x64"}


def row(size, fps, iou_mean, max_f=None):
    return {"size": size, "fps": fps, "iou_mean": iou_mean, "max_f": max_f}


def test_advice_takes_the_best_masks_that_are_fast_enough():
    rows = [row("320", 6.2, 1.0), row("256", 8.0, 0.99), row("192", 12.4, 0.972), row("160", 16.0, 0.95)]
    assert advice(rows, (5, 10, 12, 15)) == [
        "for 5 FPS: the network's own size, 320 (6.2 FPS)",
        "for 10 FPS: --imgsz 192 (12.4 FPS, IoU 0.97 with 320), or --fps 10 with 320",
        "for 12 FPS: --imgsz 192 (12.4 FPS, IoU 0.97 with 320), or --fps 12 with 320",
        "for 15 FPS: --imgsz 160 (16.0 FPS, IoU 0.95 with 320), or --fps 15 with 320",
    ]


def test_advice_where_nothing_is_fast_enough_and_with_ground_truth():
    rows = [row("320", 6.2, 1.0, 0.94), row("192", 12.4, 0.97, 0.9312)]
    best, none = advice(rows, (10, 60))
    assert best.startswith("for 10 FPS: --imgsz 192 (12.4 FPS, IoU 0.97 with 320, max F-measure 0.931, its 0.940), or")
    assert none == (
        "for 60 FPS: no size reaches it (192 has 12.4 FPS); --fps 60 moves masks between those that are computed"
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--sizes", "192,wide"), "expected a size such as 320 or 720x1280 (height × width), got 'wide'"),
        (("--rounds", "0"), "expected a whole number from 1, got 0"),
        (("--truth", "nowhere"), "--truth nowhere: expected a folder with NAME.png for every picture, got none"),
    ],
)
def test_options_that_do_not_fit(more, message, capsys):
    assert main(["sizes", *more]) == 2
    assert message in capsys.readouterr().err


def test_a_size_that_the_network_does_not_take_is_told_once(network, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EDGEMASK_CACHE", str(tmp_path / "cache"))
    given = ["--weights", str(network / "tiny.pth"), "--contract", str(network / "small.yaml"), "--sizes", "8"]
    assert main(["sizes", *given]) == 2
    errors = capsys.readouterr().err
    assert errors.count("error:") == 1
    assert "--imgsz: expected at least 16×16 for this network, got 8×8" in errors


def test_a_bundle_is_read_and_a_name_is_compiled(red_bundle, tmp_path, monkeypatch):
    assert bundles.read_or_compile(str(red_bundle.folder), "stream").manifest == red_bundle.manifest
    monkeypatch.setenv("EDGEMASK_CACHE", str(tmp_path))
    calls = []
    monkeypatch.setattr(bundles, "compile_main", lambda arguments: calls.append(arguments) or 2)
    with pytest.raises(SaidError, match="u2netp-fp16-mine"):
        bundles.read_or_compile("u2netp", "contracts/mine.yaml", "fp16")
    folder = tmp_path / "benchmarks" / "u2netp-fp16-mine"
    network = ["--model", "u2netp", "--contract", "contracts/mine.yaml", "--precision", "fp16", "--target", "onnx"]
    assert calls == [[*network, "--output", str(folder)]]
