"""Results as text: what a line says, and that lines are whole whatever happens."""

import json
import os
import re
import resource
import select
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.errors import SinkError
from pipeline.frames.audited import Audited
from pipeline.frames.frame import Frame
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.render.palette import load_palette
from pipeline.results.finder import Finder
from pipeline.results.regions import MAX_REGIONS
from pipeline.sinks.json_lines import JsonLinesSink, results_of
from pipeline.sinks.options import SinkOptions

ROOT = Path(__file__).parents[3]


def frame_of(mask, index=7, pts_s=0.28, source="cam", **facts):
    return Frame(np.zeros((*mask.shape, 3), np.uint8), index, pts_s, source, "x", mask=mask, **facts)


@pytest.fixture
def two_parts():
    """A frame of 100 × 200: 20 × 30 pixels with probability 0.8, 10 × 20 with 1, one with 1; the rest has 0.2."""
    mask = np.full((100, 200), 51, np.uint8)
    mask[10:30, 40:70] = 204
    mask[60:70, 100:120] = 255
    mask[90, 190] = 255
    return mask


@pytest.fixture
def open_lines(tmp_path, make_info, renderer):
    def start(name="out.jsonl", renderer=renderer, live=False, **options):
        spec = name if name == "jsonl:-" else str(tmp_path / name)
        return JsonLinesSink(spec, make_info(live=live), renderer, SinkOptions(**{"min_free_bytes": 0, **options}))

    return start


def read(path):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    content = path.read_text(encoding="utf-8")
    assert content.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in content.splitlines()]


def test_a_binary_frame(two_parts, renderer):
    result = results_of(frame_of(two_parts), Finder(renderer, ("salient object",), ()))
    captured = datetime.strptime(result.pop("captured"), "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
    assert abs((datetime.now(timezone.utc) - captured).total_seconds()) < 30
    assert 0 <= result.pop("age_ms") < 30_000
    subject = 600 * 0.8 + 201
    assert result == {
        "source": "cam",
        "index": 7,
        "pts_s": 0.28,
        "size_hw": [100, 200],
        "mean_probability": pytest.approx((subject + (20_000 - 801) * 0.2) / 20_000, abs=1e-5),
        "classes": [
            {
                "class": 1,
                "name": "salient object",
                "area": pytest.approx(801 / 20_000, abs=1e-6),
                "mean_probability": pytest.approx(subject / 801, abs=1e-5),
                "boxes": [
                    {"xywh": [40, 10, 30, 20], "area": 0.03, "mean_probability": 0.8},
                    {"xywh": [100, 60, 20, 10], "area": 0.01, "mean_probability": 1.0},
                ],
            }
        ],
    }


@pytest.mark.parametrize(("threshold", "area"), [(0.0, 1.0), (0.2, 1.0), (0.5, 801 / 20_000), (0.9, 201 / 20_000)])
def test_the_threshold_counts(two_parts, threshold, area):
    result = results_of(frame_of(two_parts), Finder(Renderer(Look(threshold=threshold), "binary"), ("subject",), ()))
    assert result["classes"][0]["area"] == pytest.approx(area, abs=1e-6)


def test_an_empty_frame_has_no_class(renderer):
    assert results_of(frame_of(np.zeros((8, 8), np.uint8)), Finder(renderer, ("subject",), ()))["classes"] == []


@pytest.mark.parametrize(("palette", "background_boxes"), [("default", 0), ("cityscapes", 1)])
def test_a_frame_of_classes(palette, background_boxes):
    mask = np.zeros((40, 50), np.uint8)
    mask[:10, :20] = 2
    mask[30:, 40:] = 2
    mask[20:25, 5:10] = 9
    find = Finder(Renderer(Look(palette=load_palette(palette)), "classes"), ("nothing", "a", "car"), ())
    result = results_of(frame_of(mask), find)
    assert "mean_probability" not in result
    assert [(entry["class"], entry["name"], entry["area"]) for entry in result["classes"]] == [
        (0, "nothing", 1675 / 2000),
        (2, "car", 0.15),
        (9, "class 9", 0.0125),
    ]
    assert [entry["boxes"] for entry in result["classes"][1:]] == [
        [{"xywh": [0, 0, 20, 10], "area": 0.1}, {"xywh": [40, 30, 10, 10], "area": 0.05}],
        [{"xywh": [5, 20, 5, 5], "area": 0.0125}],
    ]
    assert len(result["classes"][0]["boxes"]) == background_boxes


def test_no_more_boxes_than_anybody_reads(renderer):
    mask = np.zeros((100, 100), np.uint8)
    for number in range(40):
        row, column = 12 * (number // 8), 12 * (number % 8)
        mask[row : row + 5, column : column + 3 + (number == 11)] = 255
    boxes = results_of(frame_of(mask), Finder(renderer, ("subject",), ()))["classes"][0]["boxes"]
    assert len(boxes) == MAX_REGIONS
    assert boxes[0]["xywh"] == [36, 12, 4, 5]


def test_a_file_of_a_job_appears_when_it_is_complete(open_lines, two_parts, tmp_path):
    (tmp_path / "out.jsonl").write_text("old\n")
    sink = open_lines()
    for index in range(3):
        sink.write(frame_of(two_parts, index))
        assert (tmp_path / "out.jsonl").read_text() == "old\n"
    sink.close()
    sink.close()
    assert [result["index"] for result in read(tmp_path / "out.jsonl")] == [0, 1, 2]
    assert os.listdir(tmp_path) == ["out.jsonl"]
    sink.discard()
    assert (os.listdir(tmp_path), sink.written) == (["out.jsonl"], str(tmp_path / "out.jsonl"))


def test_discard_leaves_no_file_of_a_job(open_lines, two_parts, tmp_path):
    sink = open_lines()
    sink.write(frame_of(two_parts))
    sink.discard()
    sink.discard()
    sink.close()
    assert os.listdir(tmp_path) == []


def test_lines_of_a_live_source_are_there_at_once_and_are_appended(open_lines, two_parts, tmp_path):
    path = tmp_path / "out.jsonl"
    for run in range(2):
        sink = open_lines(live=True)
        for index in range(3):
            sink.write(frame_of(two_parts, index))
            assert len(read(path)) == 3 * run + index + 1
        sink.discard()
    path.write_text(path.read_text() + '{"half":')
    open_lines(live=True).close()
    assert path.read_text().endswith('{"half":\n')


def test_what_no_json_number_or_text_can_be(open_lines, two_parts, tmp_path):
    sink = open_lines(classes=('"name\n',))
    sink.write(frame_of(two_parts, pts_s=float("nan"), source="ünï \udcff\x00"))
    sink.close()
    (result,) = read(tmp_path / "out.jsonl")
    assert (result["pts_s"], result["classes"][0]["name"]) == (None, '"name\n')
    assert result["source"] == "ünï ?\x00"


def test_a_source_that_is_an_address_shows_no_password(two_parts, renderer):
    assert (
        results_of(frame_of(two_parts, source="rtsp://me:hunter2@h"), Finder(renderer, ("x",), ()))["source"]
        == "rtsp://***@h"
    )


def test_a_full_disk_cuts_no_line(open_lines, two_parts, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        sink = open_lines(live=True)
        sink.write(frame_of(two_parts))
        sink.write(frame_of(two_parts))
        with pytest.raises(SinkError, match=r"out.jsonl: cannot be written \(File too large\)$"):
            sink.write(frame_of(two_parts))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    sink.close()
    assert len(read(tmp_path / "out.jsonl")) == 2


def test_a_disk_that_is_nearly_full(open_lines, two_parts):
    sink = open_lines(live=True, min_free_bytes=1 << 62)
    with pytest.raises(
        SinkError, match=r"out.jsonl: expected .* free on the disk, got .*: make room or lower --min-free$"
    ):
        sink.write(frame_of(two_parts))
    sink.close()


def test_a_closed_file_takes_no_line(open_lines, two_parts):
    sink = open_lines()
    sink.close()
    with pytest.raises(ValueError, match="the output is closed"):
        sink.write(frame_of(two_parts))


def test_where_nothing_can_be_written(open_lines):
    for name in ("/proc/deep/x.jsonl", "x" * 300 + ".jsonl"):
        with pytest.raises(SinkError, match=r"cannot be written \(.*\): choose another --output$"):
            open_lines(name)


def test_standard_output(open_lines, two_parts, capfd):
    sink = open_lines("jsonl:-")
    for index in range(3):
        sink.write(frame_of(two_parts, index))
        assert json.loads(capfd.readouterr().out)["index"] == index
    sink.close()
    assert sink.written == ""
    os.write(1, b"still open")
    assert capfd.readouterr().out == "still open"


@pytest.fixture
def pipe(monkeypatch):
    """A pipe in the place of standard output; gives the end to read from."""
    reader, writer = os.pipe()
    monkeypatch.setattr("pipeline.sinks.json_lines._STDOUT_FD", writer)
    yield reader
    os.close(reader)
    os.close(writer)


def test_a_reader_that_does_not_read_misses_lines_and_holds_nobody_up(open_lines, two_parts, pipe, said):
    sink = open_lines("jsonl:-", live=True)
    for index in range(1000):
        sink.write(frame_of(two_parts, index))
    content = os.read(pipe, 1 << 20)
    sink.write(frame_of(two_parts, 1000))
    sink.close()
    content += os.read(pipe, 1 << 20)
    numbers = [json.loads(line)["index"] for line in content.splitlines()]
    kept = len(numbers) - 1
    assert numbers == [*range(kept), 1000]
    assert 50 < kept < 1000
    assert said == [f"jsonl:-: {1000 - kept} lines were left out: the reader is too slow"]


def test_a_reader_that_goes_away_stops_the_sink(open_lines, two_parts, monkeypatch):
    reader, writer = os.pipe()
    monkeypatch.setattr("pipeline.sinks.json_lines._STDOUT_FD", writer)
    sink = open_lines("jsonl:-", live=True)
    os.close(writer)
    os.close(reader)
    sink.write(frame_of(two_parts))
    assert sink.stopped
    sink.write(frame_of(two_parts))
    sink.close()
    with pytest.raises(SinkError, match=r"^jsonl:-: standard output is closed$"):
        open_lines("jsonl:-")


def test_a_reader_that_goes_away_ends_the_run_quietly(red_bundle):
    command = [sys.executable, "-m", "pipeline", "--source", "test://?size=64x48&frames=100000000", "--quiet"]
    job = subprocess.Popen(
        [*command, "--model", str(red_bundle.folder), "--output", "jsonl:-", "--headless"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    first = json.loads(job.stdout.readline())
    job.stdout.close()
    assert (job.stderr.read(), job.wait(60)) == ("", 0)
    job.stderr.close()
    assert re.fullmatch("test", first["source"])
    assert first["classes"][0]["boxes"]


@pytest.mark.parametrize("how", ["deleted", "renamed", "replaced", "its folder renamed"])
def test_a_file_that_is_taken_away_is_begun_anew(open_lines, two_parts, tmp_path, monkeypatch, said, how):
    now_s = [1000.0]
    monkeypatch.setattr("pipeline.sinks.json_lines.time", SimpleNamespace(monotonic=lambda: now_s[0]))
    path = tmp_path / "lines" / "out.jsonl"
    sink = open_lines("lines/out.jsonl", live=True)
    sink.write(frame_of(two_parts, 0))
    moved = path
    if how == "deleted":
        path.unlink()
    elif how == "its folder renamed":
        path.parent.rename(tmp_path / "elsewhere")
        moved = tmp_path / "elsewhere" / "out.jsonl"
    else:
        moved = path.rename(path.with_suffix(".1"))
    if how == "replaced":
        path.write_text('{"index": "of somebody else"}')
    now_s[0] += 1.1
    for index in range(1, 4):
        sink.write(frame_of(two_parts, index))
    sink.close()
    earlier = ["of somebody else"] if how == "replaced" else []
    assert [line["index"] for line in read(path)] == [*earlier, 1, 2, 3]
    if how != "deleted":
        assert [line["index"] for line in read(moved)] == [0]
    assert said == [f"{path}: begun anew, because it was deleted, renamed or replaced, or its disk is gone"]


def test_a_file_of_a_live_source_goes_on_when_there_is_room_again(open_lines, two_parts, tmp_path, monkeypatch):
    room_bytes = [0]
    monkeypatch.setattr("pipeline.sinks.disk.os.statvfs", lambda _: SimpleNamespace(f_bavail=room_bytes[0], f_frsize=1))
    sink = open_lines(live=True, min_free_bytes=1000)
    assert sink.comes_back
    with pytest.raises(SinkError, match="expected 1 kB free on the disk, got 0 bytes"):
        sink.write(frame_of(two_parts, 0))
    assert not sink.again()
    room_bytes[0] = 10**9
    assert sink.again()
    sink.write(frame_of(two_parts, 1))
    sink.close()
    assert not sink.again()
    assert [line["index"] for line in read(tmp_path / "out.jsonl")] == [1]


def test_two_processes_append_whole_lines_to_one_file(renderer, make_info, tmp_path, in_two_processes):
    comb = np.zeros((400, 400), np.uint8)
    comb[::2], comb[:, 0] = 255, 255  # whose outline fills several pages

    def append(name):
        options = SinkOptions(min_free_bytes=0, results=("polygons", "rle"))
        with JsonLinesSink(str(tmp_path / "out.jsonl"), make_info(live=True), renderer, options) as sink:
            for index in range(150):
                sink.write(frame_of(comb, index, source=name))

    in_two_processes(append)
    lines = read(tmp_path / "out.jsonl")
    assert max(map(len, (tmp_path / "out.jsonl").read_bytes().splitlines())) > 2 * select.PIPE_BUF
    for name in ("one", "two"):
        assert [line["index"] for line in lines if line["source"] == name] == list(range(150))


def test_boxes_have_the_forms_that_are_asked_for(two_parts, renderer):
    find = Finder(renderer, ("subject",), ())
    result = results_of(frame_of(two_parts), find, ("polygons", "rle", "rle-counts", "yolo"))
    large, small = result["classes"][0]["boxes"]
    assert large["polygons"] == [[40.25, 10.25, 40.25, 29.75, 69.75, 29.75, 69.75, 10.25]]
    assert small["rle-counts"]["counts"][:3] == [100 * 100 + 60, 10, 90]
    assert small["rle"]["size"] == small["rle-counts"]["size"] == [100, 200]
    assert small["yolo"] == "0 0.501250 0.602500 0.501250 0.697500 0.598750 0.697500 0.598750 0.602500"
    assert json.loads(json.dumps(result)) == result


def test_ids_zones_and_events_are_in_the_lines(main, tmp_path):
    path = tmp_path / "out.jsonl"
    zones = [
        "--zone",
        "top=0,0 1,0 1,0.5 0,0.5",
        "--zone-above",
        "top=0.001",
        "--zone-dwell",
        "0.1",
        "--zone-enter",
        "0.0005",
    ]
    done = main(
        "test://?size=160x120&fps=30&frames=40", "--output", path, "--results", "rle", "--threshold", "0.9", *zones
    )
    assert (done.status, done.err) == (0, [])
    lines = read(path)
    assert all(
        box["id"] == 1 and "rle" in box for line in lines for entry in line["classes"] for box in entry["boxes"][:1]
    )
    events = [event for line in lines for event in line.get("events", ())]
    assert [event["event"] for event in events][:2] == ["enter", "above"]
    assert events[0]["zone"] == "top"
    at = events[0]["index"]
    assert lines[at]["zones"]["top"]["subject"]["present"]
    assert lines[at]["pts_s"] == events[0]["pts_s"]


def test_forms_that_do_not_exist(refused):
    told = refused("test://", "--output", "null", "--results", "rle,boxes")
    assert "--results: expected some of polygons,rle,rle-counts,yolo, got 'boxes'" in told


def test_an_audit_is_told_once_in_the_next_line_of_its_source(open_lines, tmp_path):
    newest = {}
    sink = open_lines(audited=newest.get)
    mask = np.zeros((4, 6), np.uint8)
    sink.write(frame_of(mask, 0))
    newest["cam"] = Audited("cam", 0, 0.0, "2026-01-01T00:00:00.000000Z", 0.98765432, 0.001, False, True)
    sink.write(frame_of(mask, 1, source="other"))
    sink.write(frame_of(mask, 2))
    sink.write(frame_of(mask, 3))
    newest["cam"] = Audited("cam", 2, float("nan"), "2026-01-01T00:00:01.000000Z", 0.0, 1.0, True, True)
    sink.write(frame_of(mask, 4))
    sink.close()
    lines = {line["index"]: line for line in read(tmp_path / "out.jsonl")}
    assert [index for index, line in lines.items() if "audit" in line] == [2, 4]
    assert lines[2]["audit"] == {
        "index": 0,
        "pts_s": 0.0,
        "captured": "2026-01-01T00:00:00.000000Z",
        "iou": 0.987654,
        "mae": 0.001,
        "empty": False,
        "judged": True,
    }
    assert lines[4]["audit"]["pts_s"] is None
