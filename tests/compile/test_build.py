"""Builds from Python: what is refused, and what the command line and Python have in common."""

import pytest
import torch

from compile.build import build, build_bundle
from compile.options import METHODS, BuildOptions, parse_options
from pipeline.bundles.bundle import Bundle
from pipeline.errors import BundleError, EdgemaskError, ModelError, OptionError


def test_the_command_lines_defaults_are_those_of_python():
    assert parse_options(["-w", "net.pth", "-o", "bundle"]) == BuildOptions(weights="net.pth", output="bundle")


def test_every_option_has_its_place():
    arguments = ["-w", "net.pth", "-o", "b", "-m", "door", "--precision", "int8", "--calib", "photos", "--strict"]
    arguments += ["--calib-size", "9", "--calib-method", "max", "--calib-masks", "truth", "--imgsz", "320x640"]
    arguments += ["--frame", "720x1280", "--classes", "2", "--upsample", "scores", "--pixels", "nv12", "--verify", "v"]
    arguments += ["--verify-count", "7", "--min-iou", "0.5", "--min-worst-iou", "0.25", "--contract", "c.yaml", "-q"]
    arguments += ["--target", "tensorrt", "--batch", "4", "--workspace", "1", "--timing-cache", "t", "--dla", "1"]
    arguments += ["--version-compatible", "--hardware-compatible"]
    assert parse_options(arguments) == BuildOptions(
        weights="net.pth",
        output="b",
        model="door",
        precision="int8",
        calibration="photos",
        strict=True,
        calibration_size=9,
        calibration_method="max",
        calibration_masks="truth",
        imgsz=(320, 640),
        frame_size_hw=(720, 1280),
        classes=2,
        upsample="scores",
        pixels="nv12",
        verify="v",
        verify_count=7,
        min_iou=0.5,
        min_worst_iou=0.25,
        contract="c.yaml",
        quiet=True,
        target="tensorrt",
        batch=4,
        workspace_bytes=1 << 30,
        timing_cache="t",
        dla=1,
        version_compatible=True,
        hardware_compatible=True,
    )


def test_the_earlier_name_of_enlarged_scores_is_still_taken():
    options = [parse_options(["-w", "x", "-o", "y", *more]) for more in (["--smooth"], ["--upsample", "scores"])]
    assert options[0] == options[1]
    assert options[0].upsample == "scores"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int9"}, r"--precision: expected fp32, fp16, int8 or auto, got 'int9'"),
        ({"target": "coffee"}, r"--target: expected onnx, .* got 'coffee'"),
        ({"precision": "int8"}, "--precision int8: expected --calib"),
        ({"calibration": "photos"}, "--calib: expected --precision int8 or auto"),
        ({"calibration_method": "guess"}, f"--calib-method: expected {METHODS[0]}, .* got 'guess'"),
        ({"min_iou": 1.5}, "--min-iou: expected a number from 0 to 1, got 1.5"),
        ({"min_iou": float("nan")}, "--min-iou: expected a number from 0 to 1, got nan"),
        ({"verify_count": 0}, "--verify-count: expected a number from 1 to .* got 0"),
        ({"imgsz": (0, 320)}, r"--imgsz: expected \(height, width\) from 1 to 16384, got \(0, 320\)"),
        ({"batch": 2}, "--batch: expected --target tensorrt .* beside it, got onnx"),
        ({"batch": 65, "target": "tensorrt"}, "--batch: expected a number from 1 to 64, got 65"),
        ({"output": None}, "expected --output DIR"),
        ({"weights": None}, "expected --model"),
        ({"bundle": "b", "target": "tensorrt", "weights": None}, "--bundle: expected no --output beside it"),
    ],
)
def test_what_is_refused_is_refused_when_the_options_are_made(options, message):
    with pytest.raises(OptionError, match=message):
        BuildOptions(**{"weights": "net.pth", "output": "bundle", **options})


def test_a_bundle_from_python(tmp_path, tiny_unet, caplog, capsys):
    caplog.set_level("INFO", "edgemask")
    torch.save(tiny_unet(1).state_dict(), tmp_path / "net.pth")
    bundle = build(tmp_path / "net.pth", tmp_path / "bundle", imgsz=(32, 32), verify_count=2, quiet=True)
    assert bundle.folder == tmp_path / "bundle"
    assert Bundle.read(bundle.folder).manifest.network_size_hw == (32, 32)
    assert bundle.manifest.verification["frames"] == 2
    assert any("fp32 agrees with the trained network" in line for line in caplog.messages)
    assert capsys.readouterr() == ("", "")


def test_mistakes_are_errors_and_end_no_program(tmp_path):
    with pytest.raises(ModelError, match=r"none\.pth: expected a file of weights"):
        build(tmp_path / "none.pth", tmp_path / "bundle")
    with pytest.raises(OptionError, match="--precision int8: expected --calib"):
        build("u2netp", tmp_path / "bundle", precision="int8")
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="expected a folder for the bundle, got a file"):
        build_bundle(BuildOptions(model="u2netp", output=tmp_path / "file"))
    assert issubclass(OptionError, EdgemaskError)
