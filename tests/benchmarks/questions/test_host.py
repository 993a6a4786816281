import json

import cv2
import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.questions.host import ALPHA, COLOUR, STEPS, moving_frames, numpy_overlay, ratios
from benchmarks.shared.plots import WIDTH_PX
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.render.palette import load_palette


def test_the_command_prints_a_table_draws_and_writes_json(tmp_path, capsys):
    result, plot = tmp_path / "result.json", tmp_path / "plots" / "plot.png"
    sizes = ["--sizes", "96x54,160x90", "--rounds", "2", "--frames", "3"]
    assert main(["host", *sizes, "--json", str(result), "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    assert "| step | 96×54 | 160×90 |" in printed
    entries = json.loads(result.read_text())
    assert entries["question"] == "host"
    assert entries["environment"]["cores"] > 0
    expected = [step for step in STEPS if step != "supervision" or entries["supervision"]]
    for size_wh in ([96, 54], [160, 90]):
        rows = {row["step"]: row for row in entries["table"] if row["size_wh"] == size_wh}
        assert sorted(rows) == sorted(expected)
        assert all(row["us"] > 0 and row["of_memcpy"] > 0 for row in rows.values())
        assert rows["memcpy"]["of_memcpy"] == 1
        assert rows["numpy"]["of_overlay"] > 0
        assert rows["numpy"]["of_overlay_warm"] > 0
    for step in expected:
        assert f"| {STEPS[step]} |" in printed
    assert entries["ratios"] == {}  # they are of 1080p
    assert ("pip install 'edgemask[peers]'" in printed) == (entries["supervision"] is None)
    picture = cv2.imread(str(plot))
    assert picture.shape[1] == WIDTH_PX
    assert (picture != 255).any()


def test_ratios_are_those_of_1080p():
    def row(step, size_wh, us, **more):
        return {"step": step, "size_wh": size_wh, "us": us, "of_memcpy": 1, **more}

    hd, uhd = [1920, 1080], [3840, 2160]
    ours = [row("overlay", hd, 1500.0), row("overlay", uhd, 6000.0)]
    assert ratios(ours) == {"overlay_ms_1080p": 1.5, "overlay_4k_over_1080p": 4.0}
    peers = [
        row("supervision", hd, 9.0, of_overlay=6.5, of_overlay_warm=5.5),
        row("numpy", hd, 9.0, of_overlay=26.0, of_overlay_warm=25.0),
    ]
    assert ratios([*ours, *peers]) == {
        "overlay_supervision_over_ours": 6.5,
        "overlay_supervision_over_ours_warm": 5.5,
        "overlay_numpy_over_ours": 26.0,
        "overlay_numpy_over_ours_warm": 25.0,
        "overlay_ms_1080p": 1.5,
        "overlay_4k_over_1080p": 4.0,
    }
    assert ratios([row("overlay", [640, 360], 100.0)]) == {}


def test_what_is_measured_draws_the_same_picture():
    for frame in moving_frames((320, 180), 2):
        assert abs((frame.mask >= 128).mean() - 0.2) < 0.01
        view = Renderer(Look(alpha=ALPHA, palette=load_palette(COLOUR)), "binary")(frame.image, frame.mask)
        difference = np.abs(view.astype(int) - numpy_overlay(frame.image, frame.mask))
        assert difference.max() <= 1


def test_frames_move():
    first, second = moving_frames((320, 180), 2)
    assert (first.image != second.image).any()
    assert (first.mask != second.mask).any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--sizes", "640"), "--sizes: expected WIDTHxHEIGHT, several divided by commas, got '640'"),
        (("--sizes", "640x0"), "got '640x0'"),
        (("--rounds", "0"), "--rounds: expected 1 or more, got 0"),
        (("--frames", "-1"), "--frames: expected 1 or more, got -1"),
    ],
)
def test_what_cannot_be_measured_is_told(given, message, capsys):
    assert main(["host", *given]) == 2
    assert message in capsys.readouterr().err
