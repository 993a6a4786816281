"""Which precision is taken: the fastest, the first that passes, with ground truth in the gate; and searches that are not made twice."""

import cv2
import numpy as np
import pytest
import torch

from compile import timing
from compile.__main__ import main
from compile.draft import Draft
from compile.timing import fastest
from pipeline.bundles.bundle import Bundle, Manifest
from pipeline.engines.on_cpu import slower_on_cpu


def write_pictures(folder, pictures):
    folder.mkdir()
    for index, picture in enumerate(pictures):
        cv2.imwrite(str(folder / f"{index}.png"), picture)


@pytest.fixture
def calib(tmp_path, pictures):
    """Options that calibrate on pictures of the same kind as those that judge, but others."""
    write_pictures(tmp_path / "calib", pictures(4, 120, 160, seed=1))
    return ["--calib", str(tmp_path / "calib")]


@pytest.fixture
def network(tmp_path, tiny_unet, pictures, monkeypatch):
    """Options for a network of random weights, judged on pictures like those that spread its scores."""
    monkeypatch.setenv("EDGEMASK_CACHE", str(tmp_path / "cache"))
    torch.save(tiny_unet(1).state_dict(), tmp_path / "net.pth")
    write_pictures(tmp_path / "blobs", pictures(2, 120, 160))
    judged = ["--verify", str(tmp_path / "blobs"), "--verify-count", "2"]
    return ["-w", str(tmp_path / "net.pth"), "--imgsz", "64", "-o", str(tmp_path / "bundle"), *judged]


def made(precision):
    manifest = Manifest(
        "x", "binary", ("subject",), (64, 64), precision=precision, contract={}, weights={}, tools={}, created=""
    )
    return Draft(manifest, {})


@pytest.mark.parametrize(
    ("times_ms", "taken", "said"),
    [
        ([4.0, 6.0, 10.0], "int8", "the fastest here that passes is int8"),
        ([6.0, 5.0, 10.0], "fp16", "the fastest here that passes is fp16: int8 is no faster here"),
        ([9.9, 9.8, 10.0], "fp32", "the fastest here that passes is fp32: int8 and fp16 are no faster here"),
        ([5.0, 5.0, 10.0], "fp16", "the fastest here that passes is fp16: int8 is no faster here"),
    ],
)
def test_the_fastest_is_taken_and_of_equals_the_more_exact(times_ms, taken, said, monkeypatch, caplog):
    monkeypatch.setattr(timing, "_times_ms", lambda *_: times_ms)
    caplog.set_level("INFO", "edgemask")
    sample = type("", (), {"frames_nhwc": None})
    draft = fastest([made(name) for name in ("int8", "fp16", "fp32")], "onnxruntime", [sample])
    assert draft.manifest.precision == taken
    lines = caplog.messages
    assert lines[-1] == said
    assert lines[1] == f"fp16: {times_ms[1]:.2f} ms a frame, {times_ms[1] / 10:.2f} × fp32's"


def test_auto_times_what_passes_on_this_device(network, calib, tmp_path, capsys):
    assert main([*network, "--precision", "auto", "--min-iou", "0.8", *calib]) == 0
    said = capsys.readouterr().out
    for precision in ("int8", "fp16", "fp32"):
        assert f"\n{precision}: " in said
    taken = Bundle.read(tmp_path / "bundle").manifest.precision
    assert f"the fastest here that passes is {taken}" in said


def test_auto_without_calibration_frames_leaves_int8_out(network, capsys):
    assert main([*network, "--precision", "auto", "--min-iou", "0.8"]) == 0
    said = capsys.readouterr().out
    assert "\nfp16: " in said
    assert "int8" not in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--precision", "auto", "--target", "torch-tensorrt"],
            "--precision auto: expected another --target, got torch-tensorrt",
        ),
        (["--calib-masks", "/none"], "--calib-masks /none: expected a folder with NAME.png for every frame, got none"),
    ],
)
def test_wrong_options(network, capsys, tmp_path, options, message):
    assert main([*network, *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "bundle").exists()


@pytest.mark.needs("tensorrt_rtx_bindings")
def test_auto_cannot_time_a_plan_for_a_gpu_that_is_not_here(network, capsys):
    assert main([*network, "--precision", "auto", "--target", "tensorrt-rtx", "--sm", "75"]) == 2
    assert "--precision auto: expected the GPU that the plan is for in this machine" in capsys.readouterr().err


def test_the_same_search_is_not_made_twice(network, calib, tmp_path, capsys):
    arguments = [*network, "--precision", "int8", "--strict", "--min-iou", "0.8", *calib]
    assert main(arguments) == 0
    first = Bundle.read(tmp_path / "bundle")
    program = first.program_path.read_bytes()
    said = capsys.readouterr().out
    assert "INT8, cross-layer equalization" in said
    assert slower_on_cpu(first.manifest) in said.splitlines()
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "INT8 as found before" in said
    assert "INT8, cross-layer equalization" not in said
    second = Bundle.read(tmp_path / "bundle")
    assert second.manifest.calibration == first.manifest.calibration
    assert second.program_path.read_bytes() == program
    assert main([*arguments, "--calib-method", "max"]) == 0
    assert "INT8, cross-layer equalization" in capsys.readouterr().out


@pytest.mark.parametrize(("precision", "told"), [("fp32", 0), ("fp16", 1)])
def test_what_a_cpu_runs_slower_than_fp32_is_told(network, capsys, precision, told):
    assert main([*network, "--precision", precision, "--min-iou", "0.8"]) == 0
    assert capsys.readouterr().out.count("--precision fp32") == told


def test_one_calibration_frame_is_told(network, capsys):
    assert main([*network, "--precision", "int8", "--min-iou", "0", "--calib", "test://?size=96x64&frames=1"]) == 0
    assert "1 frame(s) to calibrate on, expected 16 or more" in capsys.readouterr().out


@pytest.fixture
def pictures_with_truth(network, tmp_path):
    """Pictures, and as their truth what the trained network makes of them."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    random = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        blob = cv2.resize(random.integers(0, 256, (5, 5, 3), dtype=np.uint8), (80, 60), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), blob)
        cv2.imwrite(str(tmp_path / "masks" / f"{name}.png"), (blob[:, :, 2] > 127).astype(np.uint8) * 255)
    return ["--verify", str(tmp_path / "images"), "--calib-masks", str(tmp_path / "masks")]


def test_ground_truth_is_in_the_gate(network, pictures_with_truth, tmp_path, capsys):
    assert main([*network, *pictures_with_truth, "--precision", "fp32"]) == 0
    verification = Bundle.read(tmp_path / "bundle").manifest.verification
    assert verification["truth_metric"] == "max F-measure"
    assert verification["truth"] == pytest.approx(verification["truth_reference"], abs=1e-3)
    assert "max F-measure against ground truth 0." in capsys.readouterr().out


def test_masks_of_another_size_are_told(network, pictures_with_truth, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "masks" / "a.png"), np.zeros((60, 81), np.uint8))
    assert main([*network, *pictures_with_truth]) == 2
    assert "a.png: expected a mask of 60×80 as its frame, got 60×81" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()
