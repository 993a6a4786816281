import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import BackendUnavailableError, SourceError
from pipeline.sources import SOURCES, open_source, open_sources, source_kind
from pipeline.sources.kinds import name_and_spec

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("0", "camera"),
        ("12", "camera"),
        ("/dev/video0", "camera"),
        ("/dev/v4l/by-id/usb-046d_HD_Pro-video-index0", "camera"),
        ("test://", "test"),
        ("test://?size=64x48&frames=3", "test"),
        ("a.mp4", "video"),
        ("./0", "video"),
        ("1234", "video"),
        ("a", "video"),
        ("a.gif", "video"),
        ("-a.mp4", "video"),
        ("C:a.mp4", "video"),
        ("C:\\a.mp4", "video"),
        ("12:30.mp4", "video"),
        ("/dev/shm/a.mp4", "video"),
        ("/dev/shm/a.png", "pictures"),
        ("/dev/shm", "pictures"),
        ("a.png", "pictures"),
        ("a.JPG", "pictures"),
        ("a/*.jpg", "pictures"),
        ("a/**/*", "pictures"),
        ("a?.png", "pictures"),
        ("[ab].tif", "pictures"),
        (".", "pictures"),
        ("rtsp://cam/1", "stream"),
        ("RTSPS://u:p@cam:322/1", "stream"),
        ("http://cam/x.mjpg", "stream"),
        ("https://cam/a.png", "stream"),
        ("gst:videotestsrc", "gstreamer"),
        ("csi://0", "gstreamer"),
    ],
)
def test_what_a_string_names(spec, kind):
    assert source_kind(spec) == kind
    assert kind in SOURCES


@pytest.mark.parametrize("suffix", sorted(SOURCES["pictures"].suffixes))
def test_suffixes_of_pictures(suffix):
    assert source_kind(f"a{suffix}") == source_kind(f"a{suffix.upper()}") == "pictures"


@pytest.mark.parametrize("name", ["a[1].mp4", "what?.mp4", "*.mp4", "rtsp:a.mp4", "a: b.mp4", "0.5"])
def test_a_file_that_exists_is_taken_by_its_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).touch()
    assert source_kind(name) == "video"


def test_a_folder_is_pictures_whatever_its_name(tmp_path):
    (tmp_path / "clip.mp4").mkdir()
    assert source_kind(str(tmp_path / "clip.mp4")) == "pictures"


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        ("rtmp://user:secret@cam/1", "rtmp://…"),
        ("udp://cam:5000?token=secret", "udp://…"),
        ("rtsp:user:secret@cam/1", "rtsp:…"),
        ("http:cam", "http:…"),
        ("data:text/plain,x", "data:…"),
        ("pipe:0", "pipe:…"),
        ("hls+http://cam/x.m3u8", "hls+http://…"),
        ("concat:a.mp4|b.mp4", "concat:…"),
        ("subfile,,start,0,end,9,,:a.mp4", None),
        ("file:a.mp4", "file:…"),
    ],
)
def test_addresses_of_other_kinds_are_refused_without_showing_secrets(spec, shown):
    with pytest.raises(SourceError) as caught:
        open_source(spec)
    if shown:
        assert str(caught.value).startswith(f"{shown}: expected a camera number, /dev/video0, a video")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("mark", ["\n", "\r", "\0", "\x1b", "\udc80"])
def test_what_no_address_holds_is_refused(mark):
    with pytest.raises(
        SourceError, match=r"^rtsp://…: expected an address, got one with control characters or no UTF-8$"
    ):
        open_source(f"rtsp://user:sec{mark}ret@cam/1")


def test_nothing_is_refused():
    with pytest.raises(SourceError, match=r"^--source: expected .*, got nothing$"):
        open_source("")


@pytest.mark.parametrize(
    "spec", ["no.mp4", "no.png", "no/", "no/*.png", "a\0b.mp4", "a" * 5000, "a" * 5000 + ".png", "~.mp4"]
)
def test_what_is_not_there_is_one_sentence(spec):
    with pytest.raises(SourceError, match=r"(no such file|got a pattern with none)$"):
        open_source(spec)


def test_a_missing_package_says_what_installs_it(monkeypatch):
    def missing(name):
        raise ImportError("No module named 'cv2'")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(
        BackendUnavailableError, match=r"^a.png: cannot be read here \(No module named 'cv2'\).*\[cpu\]'$"
    ):
        open_source("a.png")


def test_a_source_is_closed_at_the_end_of_its_block(monkeypatch):
    with open_source("test://?frames=1") as source:
        closed = []
        monkeypatch.setattr(source, "close", lambda: closed.append(True))
    assert closed == [True]
    source.close()
    source.close()


def test_names_of_several_sources_differ_also_as_file_names():
    sources = open_sources(
        ["test://?frames=1", "rtsp://u:p@cam/a", "test://?frames=2", "rtsp://cam/a", "http://cam/a%20b"]
    )
    names = [source.info.name for source in sources]
    assert names[:4] == ["test", "cam/a", "test-2", "cam/a-2"]
    assert [source.telemetry.name for source in sources] == names
    assert len({re.sub(r"[^\w.-]+", "_", name) for name in names}) == 5
    for source in sources:
        frames = list(source) if not source.info.live else []
        assert all(frame.source == source.info.name for frame in frames)
        source.close()


def test_a_source_that_cannot_be_opened_closes_those_before_it(monkeypatch, tmp_path):
    closed = []
    from pipeline.sources.synthetic import SyntheticSource

    monkeypatch.setattr(SyntheticSource, "close", lambda self: closed.append(self.info.name))
    with pytest.raises(SourceError, match="no such file"):
        open_sources(["test://", "test://", str(tmp_path / "none.mp4")])
    assert closed == ["test", "test-2"]


def test_importing_loads_nothing_heavy():
    heavy = {"torch", "onnx", "onnxruntime", "cv2", "av", "tensorrt", "tensorrt_rtx", "pycuda"}
    code = (
        f"import sys, pipeline, pipeline.engines, pipeline.sources, pipeline.sinks; print({heavy} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("text", "name", "spec"),
    [
        ("door=rtsp://u:p=w@192.0.2.1/a?b=c", "door", "rtsp://u:p=w@192.0.2.1/a?b=c"),
        ("Front door-2=0", "Front door-2", "0"),
        (" yard =test://?frames=2", "yard", "test://?frames=2"),
        ("a=b=c.mp4", "a", "b=c.mp4"),
        ("x" * 40 + "=0", "x" * 40, "0"),
        ("x" * 41 + "=0", None, "x" * 41 + "=0"),
        ("  =0", None, "  =0"),
        ("=0", None, "=0"),
        ("tür=0", None, "tür=0"),
        ("test://?size=64x48&frames=3", None, "test://?size=64x48&frames=3"),
        ("gst:videotestsrc num-buffers=5 ! videoconvert", None, "gst:videotestsrc num-buffers=5 ! videoconvert"),
        ("http://camera/stream?user=a", None, "http://camera/stream?user=a"),
        ("night/run=3.mp4", None, "night/run=3.mp4"),
        ("run=3.mp4", None, "run=3.mp4"),  # is there
        ("run=?.mp4", None, "run=?.mp4"),
        ("run=?.png", "run", "?.png"),
    ],
)
def test_a_name_in_front_of_a_source(tmp_path, monkeypatch, text, name, spec):
    monkeypatch.chdir(tmp_path)
    Path("run=3.mp4").touch()
    assert name_and_spec(text) == (name, spec)


def test_a_home_folder_behind_a_name_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert name_and_spec("door=~/a.mp4") == ("door", f"{tmp_path}/a.mp4")


def test_a_named_source_is_called_so_everywhere():
    first, second, third = open_sources(
        ["door=test://?size=16x8&frames=1", "Door=test://?size=16x8&frames=1", "test://"]
    )
    assert [one.info.name for one in (first, second)] == ["door", "Door-2"]
    assert third.info.name not in ("door", "Door-2")
    assert [frame.source for frame in second] == ["Door-2"]
    assert second.telemetry.snapshot().name == "Door-2"
    assert source_kind("door=test://") == "test"


def test_a_name_without_a_source_is_refused():
    with pytest.raises(SourceError, match="got nothing"):
        open_source("door=")


@given(st.text(max_size=60))
def test_a_name_never_loses_a_character_of_what_is_opened(text):
    name, spec = name_and_spec(text)
    assert text.endswith(spec) or "=~" in text
    if name is not None:
        assert re.fullmatch(r"[A-Za-z0-9 _-]{1,40}", name)
        assert name.strip() == name != ""
