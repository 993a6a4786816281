import json
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.questions.flicker import SETTINGS
from benchmarks.shared.plots import WIDTH_PX
from calibration.metrics.agreement import iou
from calibration.metrics.flicker import FlickerMeter
from pipeline.engines import open_engine
from pipeline.masks.temporal import Smoothing
from pipeline.sources import open_source

CLIP = Path(__file__).parents[3] / "samples" / "clip.mp4"


@pytest.fixture
def clip(tmp_path):
    """12 frames of a red square on grey, its red flickering; then a cut to another."""
    path = tmp_path / "clip.mp4"
    random = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "crf": "10"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for index in range(12):
            image = np.full((64, 96, 3), (30, 30, 60) if index < 8 else (200, 200, 100), np.uint8)
            image[16:48, 24:60] = (30, 30, 220) if index < 8 else (0, 140, 255)
            image[..., 2] = np.clip(image[..., 2] + random.integers(-3, 4), 0, 255)
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_the_command_prints_a_table_draws_and_writes_json(clip, red_bundle, tmp_path, capsys):
    result, plot = tmp_path / "result.json", tmp_path / "plots" / "plot.png"
    known = ["flicker", "--clip", clip, "--model", red_bundle.folder, "--json", result, "--plot", plot]
    assert main([str(argument) for argument in known]) == 0
    printed = capsys.readouterr().out
    assert "12 frames of clip.mp4" in printed
    assert (
        "| noise | smoothing | flicker × 1000 | of that without | IoU with the FP32 mask | worst | cuts | ms at 1080p |"
        in printed
    )
    entries = json.loads(result.read_text())
    assert entries["question"] == "flicker"
    rows = {(row["noise"], row["setting"]): row for row in entries["table"]}
    assert list(rows) == [(noise, key) for noise in (0.0, 6.0) for key in SETTINGS]
    off, default = rows[0.0, "off"], rows[0.0, "default"]
    assert (off["of_off"], off["iou_mean"], off["iou_worst"], off["cuts"]) == (1, 1, 1, None)
    assert 0 < default["flicker"] < off["flicker"]
    assert default["of_off"] == pytest.approx(default["flicker"] / off["flicker"], abs=1e-3)
    assert entries["ratios"]["default_over_off"] == default["of_off"]
    assert default["cuts"] == 1
    assert rows[6.0, "off"]["flicker"] > off["flicker"]
    assert default["ms_1080p"] > 0
    assert cv2.imread(str(plot)).shape[1] == WIDTH_PX


def test_max_frames_ends_early(clip, red_bundle, capsys):
    assert main(["flicker", "--clip", str(clip), "--model", str(red_bundle.folder), "--max-frames", "3"]) == 0
    assert "3 frames of clip.mp4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--noise", "0"), "--noise: expected a standard deviation above 0, at most 255, got 0.0"),
        (("--max-frames", "1"), "expected a video of two frames of one scene or more, got 1 frames"),
        (("--model", "{classes}"), "expected a bundle of binary masks, got one of classes"),
    ],
)
def test_what_cannot_be_measured_is_told(clip, red_bundle, class_bundle, more, message, capsys):
    given = [text.format(classes=class_bundle.folder) for text in more]
    assert main(["flicker", "--clip", str(clip), "--model", str(red_bundle.folder), *given]) == 2
    assert message in capsys.readouterr().err


def test_the_default_halves_the_flicker_of_the_sample_clip_and_keeps_the_masks(u2netp_bundle):
    smoothing, raw_meter, meter, ious = Smoothing(), FlickerMeter(), FlickerMeter(), []
    with open_source(str(CLIP)) as source, open_engine(u2netp_bundle, "auto") as engine:
        for frame in source:
            if frame.index < 105:
                continue
            if frame.index == 145:
                break
            mask = engine(frame.image[None])[0]
            steady = smoothing(frame.image, mask, frame.pts_s)
            raw_meter.add(frame.image, mask)
            meter.add(frame.image, steady)
            ious.append(iou(steady, mask))
            if frame.index == 125:  # the hard cut
                np.testing.assert_array_equal(steady, mask)
    assert meter.pairs == raw_meter.pairs == 38
    assert smoothing.cuts == 1
    assert meter.flicker <= raw_meter.flicker / 2
    assert np.mean(ious) > 0.97
    assert min(ious) > 0.97
