"""python -m benchmarks without a question: a row for each backend and precision that runs here, and a verdict."""

import dataclasses
import json

import cv2
import pytest

from benchmarks import fps
from benchmarks.__main__ import main
from benchmarks.fps import Row, find_cases, table, verdict
from benchmarks.shared.process import in_its_own_process, peak_memory_mb
from pipeline.bundles.bundle import PROGRAM_NAME, Bundle


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def row(precision, backend, rate, iou=None, error=""):
    return Row(precision, backend, fps=rate, iou_mean=iou, error=error)


def test_a_bundle_is_measured(red_bundle, clip, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fps, "SECONDS", 0.05)
    result, plot = tmp_path / "fps.json", tmp_path / "fps.png"
    given = [red_bundle.folder, "--source", clip, "--json", result, "--plot", plot]
    assert main([str(argument) for argument in given]) == 0
    entries = json.loads(result.read_text())
    (found,) = entries["table"]
    assert (found["precision"], found["backend"], found["error"]) == ("fp32", "onnxruntime", "")
    assert (found["iou_mean"], found["iou_worst"]) == (1, 1)
    assert 0 < found["p50_ms"] <= found["p99_ms"]
    assert found["fps"] > 0
    assert found["program_mb"] == pytest.approx(red_bundle.program_path.stat().st_size / 1e6, abs=1e-3)
    assert 20 < found["memory_mb"] < 2000
    assert entries["environment"]["cores"] > 0
    assert cv2.imread(str(plot)) is not None
    printed = capsys.readouterr()
    assert f"fp32 on onnxruntime: {found['fps']:.1f} frames a second" in printed.out.splitlines()[-1]
    assert "TensorRT is not measured" in printed.out
    assert "rows" in printed.err  # the progress bar


def test_a_program_that_does_not_load_is_a_row_that_says_so(red_bundle, clip, tmp_path, capsys):
    manifest = dataclasses.replace(red_bundle.manifest, precision="fp16", model="mine")
    broken = Bundle.write(tmp_path / "broken", manifest, {PROGRAM_NAME: b"no program"})
    assert main([str(broken.folder), "--source", str(clip)]) == 0
    printed = capsys.readouterr().out
    assert "| fp16 | onnxruntime | " in printed
    assert "no FP32 program of mine is here" in printed
    assert "nothing could be measured here" in printed


def test_a_published_network_has_its_programs_in_both_precisions():
    said = []
    cases, reference = find_cases("u2netp", said.append)
    assert [case.name for case in cases] == ["fp32 on onnxruntime", "fp16 on onnxruntime"]
    assert reference is cases[0].bundle
    assert len(said) == 1


def test_a_bundle_in_fp16_is_compared_with_the_published_one_in_fp32():
    half = find_cases("u2netp", print)[0][1].bundle
    cases, reference = find_cases(str(half.folder), print)
    assert [case.name for case in cases] == ["fp16 on onnxruntime"]
    assert reference.manifest.precision == "fp32"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [row("fp32", "onnxruntime", 19.7, 1.0), row("fp16", "onnxruntime", 9, 0.999)],
            "fp32 on onnxruntime is the fastest here: 19.7 frames a second; nothing loses masks",
        ),
        ([row("fp32", "onnxruntime", 4, 1.0)], "fp32 on onnxruntime: 4.0 frames a second"),
        (
            [row("fp32", "onnxruntime", 4, 1.0), row("int8", "onnxruntime", 9, 0.912)],
            "int8 on onnxruntime is the fastest here: 9.0 frames a second; int8 on onnxruntime (IoU 0.912) loses masks: "
            "the fastest that keeps them is fp32 on onnxruntime, 4.0 frames a second",
        ),
        ([row("int8", "onnxruntime", 9)], "int8 on onnxruntime: 9.0 frames a second; masks were not compared"),
        (
            [row("fp32", "onnxruntime", 4, 1.0), row("fp32", "tensorrt", 0, error="crashed")],
            "fp32 on onnxruntime: 4.0 frames a second",
        ),
    ],
)
def test_verdict(rows, expected):
    assert verdict(rows) == expected


def test_a_row_without_figures_says_why():
    *_, last = table([row("fp16", "tensorrt", 0, error="its process ended")])
    assert last.startswith("| fp16 | tensorrt | its process ended |")
    assert last.count("|") == 10


def test_memory_is_of_the_process_alone():
    ballast = bytearray(300_000_000)
    assert peak_memory_mb() > 300
    assert in_its_own_process(peak_memory_mb) < 250
    del ballast


def test_help_lists_the_questions(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert "MODEL|BUNDLE" in printed
    assert "latency" in printed
