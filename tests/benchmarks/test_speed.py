"""latency, throughput, soak and start: that they measure what they say, on a tiny network and a few frames."""

import re
import time

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.shared.stand_in import Sleeper, disc_mask


def test_latency(asked, clip, red_bundle, monkeypatch):
    monkeypatch.setattr("benchmarks.questions.latency.SIZE_1080P_WH", (96, 64))
    entries, printed = asked("latency", "--clip", clip, "--model", red_bundle.folder, "--frames", 4, "--rounds", 3)
    assert set(entries["ratios"]) == {"pipeline_over_engine", "pipeline_over_engine_sleep10"}
    network, stand_in = entries["table"]
    assert (network["size_wh"], network["frames"]) == ([64, 48], 4)
    assert (stand_in["size_wh"], stand_in["frames"]) == ([96, 64], 32)
    assert len(network["pairs"]) == 3
    assert network["ratio"] == pytest.approx(sorted(network["pairs"])[1])
    assert 20 < stand_in["alone_fps"] <= 100
    assert [stage["name"] for stage in stand_in["stages"]] == ["decode", "engine", "render", "write"]
    assert stand_in["stages"][1]["p50_ms"] >= 9.8
    assert f"pipeline_over_engine_sleep10: {stand_in['ratio']:.4f}" in printed


def test_throughput(asked, clip, red_bundle):
    entries, _ = asked("throughput", "--clip", clip, "--model", red_bundle.folder, "--sources", "1,3", "--frames", 9)
    assert [row["sources"] for row in entries["table"]] == [1, 3]
    assert entries["ratios"]["fps_1_over_1"] == 1
    assert entries["ratios"]["fps_3_over_1"] > 0
    row = entries["table"][1]
    assert row["least_fps"] == pytest.approx(row["fps"] / 3, rel=0.01)


def test_soak(asked):
    entries, printed = asked("soak", "--frames", 400, "--size", "64x48", "--engine-ms", "4")
    assert [row["frames"] for row in entries["table"]] == [100, 200, 300, 400]
    assert {row["threads"] for row in entries["table"]} == {entries["table"][0]["threads"]}
    assert all(row["resident_mb"] > 10 for row in entries["table"])
    assert entries["ratios"]["soak_growth_mb"] >= 0
    assert entries["dropped"]["newer"] > 0
    came_in, out, dropped = map(int, re.search(r"(\d+) in = (\d+) out \+ (\d+) dropped", printed).groups())
    assert came_in == out + dropped


def test_start(asked, clip, red_bundle):
    entries, _ = asked("start", "--clip", clip, "--model", red_bundle.folder, "--rounds", 1)
    rows = {row["what"]: row for row in entries["table"]}
    assert list(rows) == ["python", "help", "runtime", "video", "picture"]
    assert rows["runtime"]["over_runtime"] == 1
    assert rows["python"]["median_s"] < rows["help"]["median_s"]
    assert entries["ratios"]["first_mask_over_runtime"] == rows["video"]["over_runtime"]
    assert entries["ratios"]["help_s"] == rows["help"]["median_s"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("latency", "--rounds", "0"), "--rounds: expected 1 or more, got 0"),
        (("soak", "--size", "wide"), "--size: expected WxH, got wide"),
        (("soak", "--frames", "9"), "--frames: expected 200 or more, got 9"),
        (("start", "--rounds", "0"), "--rounds: expected 1 or more, got 0"),
        (("throughput", "--sources", "1,x"), "--sources: expected numbers from 1, at most --frames, got 1,x"),
        (("throughput", "--sources", "4", "--frames", "3"), "at most --frames, got 4 and 3"),
    ],
)
def test_numbers_that_are_none(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_the_stand_in_takes_its_time_without_the_processor():
    frames = np.zeros((1, 90, 160, 3), np.uint8)
    with Sleeper(20, mask_share=0.3) as engine:
        start_s, cpu_s = time.perf_counter(), time.thread_time()
        for _ in range(5):
            engine.submit(frames)
            masks = engine.collect()
        assert time.perf_counter() - start_s >= 0.099
        assert time.thread_time() - cpu_s < 0.05
    assert masks.shape == (1, 90, 160)
    assert np.mean(masks >= 128) == pytest.approx(0.3, abs=0.01)


def test_the_stand_in_works_on_frames_one_after_another():
    frames = np.zeros((1, 9, 16, 3), np.uint8)
    with Sleeper(20, in_flight=3) as engine:
        start_s = time.perf_counter()
        for _ in range(3):
            engine.submit(frames)
        for _ in range(3):
            engine.collect()
        assert time.perf_counter() - start_s >= 0.059


def test_a_disc_covers_its_share():
    for share in (0.05, 0.2, 0.6):
        mask = disc_mask((108, 192), share)
        assert np.mean(mask >= 128) == pytest.approx(share, abs=0.01)
        assert len(np.unique(mask)) > 20  # a soft edge
