import os

import numpy as np
import pytest

from pipeline.errors import SinkError
from pipeline.sinks import SINKS, open_sink, sink_kind


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("null", "null"),
        ("./null", "folder"),
        ("out", "folder"),
        ("out/", "folder"),
        ("out.mp4/", "folder"),
        ("out.xyz/", "folder"),
        ("results.2026", "folder"),
        ("/tmp/.hidden", "folder"),
        ("-out.mp4", "video"),
        ("a:b.mkv", "video"),
        ("OUT.MP4", "video"),
        ("out.PNG", "picture"),
        ("out.jsonl", "results"),
        ("out.NDJSON", "results"),
        ("jsonl:-", "results"),
        ("rtsp://host:8554/name", "rtsp"),
        ("rtsps://host/name", "rtsp"),
        ("gst:autovideosink", "gstreamer"),
        ("gst:x264enc ! mp4mux ! filesink location=out.mp4", "gstreamer"),
    ],
)
def test_what_a_string_names(spec, kind):
    assert sink_kind(spec) == kind


@pytest.mark.parametrize(
    ("suffix", "kind"), [(suffix, kind.name) for kind in SINKS.values() for suffix in kind.suffixes]
)
def test_known_suffixes(suffix, kind):
    assert sink_kind(f"out{suffix}") == kind


def test_a_folder_that_exists_is_a_folder_whatever_its_name(tmp_path):
    (tmp_path / "out.mp4").mkdir()
    assert sink_kind(str(tmp_path / "out.mp4")) == "folder"


@pytest.mark.parametrize(
    "spec", ["out.avi", "out.ogv", "out.gif", "out.m3u8", "out.xyz", "out.mpeg4", "out.exr", "out.mp"]
)
def test_an_unknown_suffix_is_no_folder_by_accident(spec):
    with pytest.raises(
        SinkError, match=rf"^--output {spec}: expected a name that ends in one of .*\.mp4.*, got \..*end it in /"
    ):
        sink_kind(spec)


@pytest.mark.parametrize("spec", ["", "ftp://a/out.mp4", "rtmp://me:hunter2@a/b", "rtsp:///out", "srt://a:1"])
def test_nothing_and_other_addresses_are_refused(spec):
    with pytest.raises(SinkError, match=r"^--output .*: expected .*") as refused:
        sink_kind(spec)
    for form in (form for kind in SINKS.values() for form in kind.forms):
        assert form in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_a_file_of_another_kind_is_not_overwritten(tmp_path):
    (tmp_path / "thesis").write_text("years")
    with pytest.raises(SinkError, match=r"thesis: expected a folder or a name that ends in one of .*, got a file$"):
        sink_kind(str(tmp_path / "thesis"))


@pytest.mark.parametrize("name", ["a.mp4", "a.png"])
@pytest.mark.parametrize("through", ["itself", "symlink", "hard link", "dots"])
def test_an_output_that_is_the_source_is_refused(tmp_path, make_info, renderer, name, through):
    path = tmp_path / name
    path.write_bytes(b"precious")
    output = tmp_path / f"link{path.suffix}"
    if through == "itself":
        output = path
    elif through == "symlink":
        output.symlink_to(path)
    elif through == "hard link":
        os.link(path, output)
    else:
        (tmp_path / "x").mkdir()
        output = tmp_path / "x" / ".." / name
    info = make_info(frame_count=1, paths=(str(path),))
    with pytest.raises(
        SinkError, match=r"expected an output of its own, got the source itself: choose another --output$"
    ):
        open_sink(str(output), info, renderer)
    assert path.read_bytes() == b"precious"
    assert not [entry for entry in os.listdir(tmp_path) if entry.startswith(".")]


@pytest.mark.parametrize(("live", "name"), [(True, "RecordingSink"), (False, "VideoSink")])
def test_a_video_of_a_live_source_is_a_recording(tmp_path, make_info, renderer, live, name):
    sink = open_sink(str(tmp_path / "out.mp4"), make_info(live=live), renderer)
    sink.close()
    assert type(sink).__name__ == name


def test_null_takes_everything_and_leaves_nothing(tmp_path, monkeypatch, make_info, make_frame, renderer):
    monkeypatch.chdir(tmp_path)
    sink = open_sink("null", make_info(), renderer)
    sink.write(make_frame(np.zeros((2, 2, 3), np.uint8)))
    sink.close()
    sink.discard()
    assert (sink.written, sink.stopped, os.listdir(tmp_path)) == ("", False, [])
