"""What a search for INT8 cost, from what the command says and when."""

import sys

import cv2
import numpy as np
import pytest
import torch

from benchmarks.shared import watched_compile
from benchmarks.shared.watched_compile import compile_watched, search_of
from compile.networks.unet import UNet
from pipeline.command.command_line import SaidError


def bar(percent, left):
    return f"searching INT8: {percent:3} %|##   | 00:10, about {left} left"


SAID = [
    (100.0, "exporting the frame program, fp32"),
    (101.0, "calibrating:   0%|      | 0/64 [00:00<?, ? frames/s]"),
    (110.0, "calibrating: 100%|######| 64/64 [00:09<00:00, 7.1 frames/s]"),
    (111.0, bar(0, "?")),
    (120.0, bar(29, "03:00")),
    (130.0, bar(31, "01:40")),
    (131.0, bar(35, "01:39")),
    (150.0, bar(52, "01:10:05")),
    (200.0, "INT8, cross-layer equalization, strength 1: 98.6 % of the MACs in INT8"),
    (211.0, "exporting the frame program, int8"),
]


def test_the_first_line_from_each_share_on_is_held_against_the_end():
    search = search_of(SAID, 1700.4)
    assert search.as_dict() == {
        "calibration_s": 10.0,
        "search_s": 100.0,
        "peak_memory_mb": 1700,
        "time_left": [
            {"done": 0.3, "told_s": 100.0, "really_s": 81.0},
            {"done": 0.4, "told_s": 4205.0, "really_s": 61.0},
            {"done": 0.5, "told_s": 4205.0, "really_s": 61.0},
        ],
    }


def test_a_short_search_shows_no_bar():
    search = search_of([line for line in SAID if not line[1].startswith("searching")], 1.0)
    assert (search.calibration_s, search.search_s, search.told) == (0.0, 110.0, ())


def test_what_fails_has_told_the_user(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("EDGEMASK_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SaidError):
        compile_watched("none", ["--weights", str(tmp_path / "none.pth")])
    assert "none.pth" in capfd.readouterr().err


def test_lines_that_a_bar_wrote_over_count(capfd):
    program = "import sys; sys.stderr.write('one\\rtwo\\n\\x1b[Athree\\n')"
    with watched_compile.subprocess.Popen([sys.executable, "-c", program], stderr=-1) as process:
        assert [line for _, line in watched_compile._said(process.stderr)] == ["one", "two", "three"]
    assert capfd.readouterr().err == "one\rtwo\n\x1b[Athree\n"


def test_a_search_is_measured_as_the_command_makes_it(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEMASK_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    torch.save(UNet(3, 1, True, base_width=4).state_dict(), tmp_path / "tiny.pth")
    (tmp_path / "contract.yaml").write_text("imgsz: [64, 64]\nmean: [0.5, 0.5, 0.5]\nstd: [0.25, 0.25, 0.25]\n")
    for number in range(2):
        blob = np.random.default_rng(number).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.png"), blob)
    arguments = [
        "--weights",
        "tiny.pth",
        "--contract",
        "contract.yaml",
        "--precision",
        "int8",
        "--strict",
        "--min-iou",
        "0",
    ]
    monkeypatch.chdir(tmp_path)
    bundle, search = compile_watched("tiny", [*arguments, "--calib", "*.png", "--verify", "*.png"])
    assert bundle.manifest.precision == "int8"
    assert search.calibration_s > 0
    assert search.search_s >= 0
    assert search.peak_memory_mb > 100
    assert list((tmp_path / "cache" / "int8").iterdir())  # for the next one
