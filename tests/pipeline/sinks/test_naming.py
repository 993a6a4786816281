"""One output for each source, whatever the source is called."""

import argparse
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SinkError
from pipeline.sinks import sink_kind
from pipeline.sinks.kinds import shown
from pipeline.sinks.naming import file_name_of, path_for_source
from pipeline.sinks.options import byte_count, duration_s


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("cam1", "cam1"),
        ("front door", "front_door"),
        ("../../etc/passwd", "etc_passwd"),
        ("..", "source"),
        ("", "source"),
        (".hidden", "hidden"),
        ("-rf", "rf"),
        ("a/b\\c\0d\ne", "a_b_c_d_e"),
        ("tür", "tür"),
        ("x" * 40, "x" * 40),
        ("x" * 300, "x" * 31 + "-0d4e2ca9"),
        ("rtsp://***@cam:554/h264?a=b&c", "rtsp_cam_554_h264_a_b_c"),
        ("a%{}$`'\"|;!", "a"),
    ],
)
def test_a_name_as_part_of_a_files(name, safe):
    assert file_name_of(name) == safe


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ("out.mp4", "out-door.mp4"),
        ("a/b.c/out.MKV", "a/b.c/out-door.MKV"),
        ("out.jsonl", "out-door.jsonl"),
        ("out.png", "out-door.png"),
        ("frames/", "frames/door/"),
        ("frames", "frames/door/"),
        ("null", "null"),
        ("jsonl:-", "jsonl:-"),
        ("rtsp://h:8554/live", "rtsp://h:8554/live-door"),
        ("rtsp://me:pw@h/a/b?x=1", "rtsp://me:pw@h/a/b-door?x=1"),
        ("rtsp://h/", "rtsp://h/door"),
        ("rec/{source}.mp4", "rec/door.mp4"),
        ("rec/{source}/out.mp4", "rec/door/out.mp4"),
        ("gst:autovideosink name={source}", "gst:autovideosink name=door"),
    ],
)
def test_several_sources_get_outputs_of_their_own(spec, path):
    assert path_for_source(spec, "door", many=True) == path
    assert sink_kind(path) == sink_kind(spec)


@pytest.mark.parametrize("spec", ["out.mp4", "frames/", "a/../b.mp4", "rtsp://h/live", "gst:fakesink ! {x}", "null"])
def test_one_source_keeps_the_name(spec):
    assert path_for_source(spec, "door", many=False) == spec


def test_one_source_fills_the_field():
    assert path_for_source("{source}.mp4", "a/b", many=False) == "a_b.mp4"


@pytest.mark.parametrize("spec", ["{time}.mp4", "a{source.__class__}/{index}.mp4"])
def test_other_fields_are_refused(spec):
    with pytest.raises(SinkError, match=r"^--output .*: expected \{source\} as the only field, got \{(time|index)\}$"):
        path_for_source(spec, "door", many=True)


def test_a_pipeline_for_several_sources_needs_the_field():
    with pytest.raises(SinkError, match=r"gst:…: expected \{source\} .* several sources, got none$"):
        path_for_source("gst:autovideosink", "door", many=True)


def test_a_name_cannot_leave_the_folder(tmp_path):
    path = path_for_source(f"{tmp_path}/{{source}}/out.mp4", "../../up", many=True)
    assert os.path.realpath(path).startswith(f"{tmp_path}{os.sep}")


def test_messages_show_no_password_and_are_short():
    assert "hunter2" not in shown("rtsp://me:hunter2@h/live")
    assert len(shown("gst:" + "identity ! " * 100)) == 120


@pytest.mark.parametrize(
    ("text", "count"), [("0", 0), ("500", 500), ("500k", 500_000), ("200M", 200_000_000), ("1.5G", 1_500_000_000)]
)
def test_sizes(text, count):
    assert byte_count(text) == count


@pytest.mark.parametrize("text", ["", "-1", "x", "1 M", "1MB", "1e9", "nan", "9" * 30, "9" * 15 + "T", "\u0663", "1m"])
def test_what_is_no_size(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected a size such as 500k, 200M or 1\.5G, got"):
        byte_count(text)


@pytest.mark.parametrize(("text", "seconds"), [("30", 30), ("0.5", 0.5), ("10m", 600), ("1h", 3600), ("2d", 172_800)])
def test_times(text, seconds):
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "1M", "1w", "inf", "9" * 15 + "d"])
def test_what_is_no_time(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a time above 0 such as 30, 10m, 1h or 1d, got"):
        duration_s(text)


@given(st.text(max_size=120), st.text(max_size=120))
def test_names_that_differ_in_what_a_file_may_hold_give_files_that_differ(one, other):
    def plain(name):
        return re.sub(r"[^\w.-]+", "_", name).strip(".-_")

    if plain(one) != plain(other) and plain(one) and plain(other):
        assert file_name_of(one) != file_name_of(other)
    assert 1 <= len(file_name_of(one)) <= 40
