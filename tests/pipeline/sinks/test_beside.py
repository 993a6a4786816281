"""Sound and subtitles of a file are in its output, in time with the pictures: flashes and clicks by FFmpeg's own programs."""

import json
import re
import subprocess
from fractions import Fraction
from itertools import islice

import av
import numpy as np
import pytest

from pipeline.errors import TruncatedError
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.sinks import SinkOptions, open_sink
from pipeline.sources import open_source

pytestmark = pytest.mark.needs_program("ffprobe")

H, W, FPS, RATE = 48, 64, 25, 48000
EVENTS_S = (0.6, 2.0)  # a white picture and a click
LENGTH_S = 3.0
IN_SYNC_S = 0.04


def write_talk(path, *, codec="aac", stamps=None, start_s=0.0, sound_from_s=0.0, sound_to_s=LENGTH_S, subtitles=""):
    """A video with flashes and clicks; ``stamps`` are times of pictures, ``start_s`` comes on top of all."""
    stamps = [n / FPS for n in range(round(LENGTH_S * FPS))] if stamps is None else stamps
    with av.open(str(path), "w") as out:
        film = out.add_stream("libx264", rate=FPS, options={"bf": "2", "g": "25"})
        film.width, film.height, film.pix_fmt = W, H, "yuv420p"
        film.codec_context.time_base = Fraction(1, 1000)
        sound = out.add_stream(codec, rate=RATE, layout="mono")
        packets = []
        for time_s in stamps:
            bright = any(abs(time_s - event_s) < 0.5 / FPS for event_s in EVENTS_S)
            frame = av.VideoFrame.from_ndarray(np.full((H, W, 3), 250 if bright else 20, np.uint8), format="bgr24")
            frame.pts, frame.time_base = round((time_s + start_s) * 1000), Fraction(1, 1000)
            packets += film.encode(frame)
        packets += film.encode()
        size = sound.codec_context.frame_size or 1024
        samples = np.zeros(round((sound_to_s - sound_from_s) * RATE), np.float32)
        for event_s in EVENTS_S:
            first = round((event_s - sound_from_s) * RATE)
            if 0 <= first < len(samples):
                samples[first : first + 480] = 0.9 * np.sin(np.arange(480))[: len(samples) - first]
        for first in range(0, len(samples) - size + 1, size):
            block = av.AudioFrame.from_ndarray(samples[None, first : first + size], format="fltp", layout="mono")
            block.sample_rate, block.time_base = RATE, Fraction(1, RATE)
            block.pts = first + round((sound_from_s + start_s) * RATE)
            packets += sound.encode(block)
        packets += sound.encode()
        packets.sort(key=lambda packet: float(packet.dts * packet.time_base))
        for packet in packets:
            out.mux(packet)
    if subtitles:
        lines = path.with_suffix(".srt")
        lines.write_text("1\n00:00:00,500 --> 00:00:01,500\nfirst\n\n2\n00:00:02,000 --> 00:00:02,500\nsecond\n")
        bare = path.with_name(f"bare{path.suffix}")
        path.rename(bare)
        ffmpeg("-i", bare, "-i", lines, "-c", "copy", "-c:s", subtitles, "-metadata:s:s:0", "language=fin", path)
    return path


def ffmpeg(*arguments):
    command = ["ffmpeg", "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout


def through(path, target, frames=None, **options):
    """What the pipeline does with a file and no mask: its pictures into a video."""
    with (
        open_source(str(path)) as source,
        open_sink(str(target), source.info, Renderer(Look(), "binary"), SinkOptions(**options)) as out,
    ):
        for frame in islice(source, frames):
            frame.view = frame.image
            out.write(frame)
    return target


def tracks(path):
    command = ["ffprobe", "-v", "error", "-of", "json", "-show_streams", str(path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    return json.loads(said)["streams"]


def kinds(path):
    return [one["codec_type"] for one in tracks(path)]


def flashes_s(path):
    text = ffmpeg("-i", path, "-map", "v:0", "-vf", "signalstats,metadata=print:file=-", "-f", "null", "-").decode()
    values = re.findall(r"pts_time:([\d.]+).*?YAVG=([\d.]+)", text, re.DOTALL)
    return [float(time_s) for time_s, luma in values if float(luma) > 150]


def clicks_s(path):
    """When sound begins, by its time stamps: silence is put where there is none."""
    raw = ffmpeg(
        "-i", path, "-map", "a:0", "-af", "aresample=async=1:first_pts=0", "-ar", RATE, "-ac", 1, "-f", "f32le", "-"
    )
    loud = np.flatnonzero(np.abs(np.frombuffer(raw, np.float32)) > 0.3) / RATE
    return [first for number, first in enumerate(loud) if number == 0 or first - loud[number - 1] > 0.1]


def sound_end_s(path):
    raw = ffmpeg(
        "-i", path, "-map", "a:0", "-af", "aresample=async=1:first_pts=0", "-ar", RATE, "-ac", 1, "-f", "f32le", "-"
    )
    return len(raw) / 4 / RATE


def assert_in_sync(path, count):
    flashes, clicks = flashes_s(path), clicks_s(path)
    assert len(flashes) == len(clicks) == count, (flashes, clicks)
    assert np.abs(np.subtract(flashes, clicks)).max() <= IN_SYNC_S, (flashes, clicks)


SOUNDS = [("in.mp4", "aac"), ("in.mkv", "aac"), ("in.ts", "aac"), ("in.ts", "mp2"), ("in.mkv", "flac")]
MP2_IN_MP4 = {"mp2": ("mp2", "mp3")}  # one number stands for both there


@pytest.mark.parametrize(
    ("source", "codec", "target"),
    [
        *((*sound, target) for sound in SOUNDS for target in ("out.mp4", "out.mkv")),
        *((*sound, target) for sound in SOUNDS[:3] for target in ("out.mov", "out.m4v")),
    ],
)
def test_sound_is_in_sync(tmp_path, source, codec, target):
    out = through(write_talk(tmp_path / source, codec=codec), tmp_path / target)
    assert kinds(out) == ["video", "audio"]
    assert tracks(out)[1]["codec_name"] in MP2_IN_MP4.get(codec, (codec,))
    assert_in_sync(out, 2)
    assert sound_end_s(out) == pytest.approx(LENGTH_S, abs=0.06)


@pytest.mark.parametrize(("suffix", "target"), [(".mp4", "out.mp4"), (".mkv", "out.mp4"), (".ts", "out.mkv")])
@pytest.mark.parametrize(
    "made",
    [
        pytest.param({"start_s": 7.3}, id="late start"),
        pytest.param({"sound_from_s": 0.4}, id="sound comes later"),
        pytest.param({"start_s": 5.0, "sound_from_s": -0.9}, id="sound comes first"),
        pytest.param({"sound_to_s": 2.4}, id="sound ends first"),
        pytest.param({"sound_to_s": 4.5}, id="sound ends last"),
    ],
)
def test_offsets_are_kept(tmp_path, suffix, target, made):
    out = through(write_talk(tmp_path / f"in{suffix}", **made), tmp_path / target)
    assert_in_sync(out, 2)
    assert sound_end_s(out) == pytest.approx(made.get("sound_to_s", LENGTH_S), abs=0.06)


@pytest.mark.parametrize("target", ["out.mp4", "out.mkv"])
def test_a_variable_rate(tmp_path, target):
    stamps = [0.0, 0.2, 0.24, 0.6, 0.64, 1.5, 2.0, 2.04, 2.9]
    out = through(write_talk(tmp_path / "in.mkv", stamps=stamps), tmp_path / target)
    assert_in_sync(out, 2)


@pytest.mark.parametrize("source", ["in.mp4", "in.mkv", "in.ts"])
@pytest.mark.parametrize("target", ["out.mp4", "out.mkv"])
def test_sound_is_cut_with_the_pictures(tmp_path, source, target):
    """As --max-frames does: one second, with the first event in it."""
    out = through(write_talk(tmp_path / source), tmp_path / target, frames=FPS)
    assert_in_sync(out, 1)
    assert sound_end_s(out) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("frames", [None, 140])
@pytest.mark.parametrize("second_start_s", [0.0, 60.0])
def test_recordings_one_after_another_keep_their_sound(tmp_path, second_start_s, frames):
    """``cat a.ts b.ts``: each has its own clock."""
    first = write_talk(tmp_path / "a.ts", start_s=20.0)
    second = write_talk(tmp_path / "b.ts", start_s=second_start_s)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    out = through(joined, tmp_path / "out.mp4", frames=frames)
    assert_in_sync(out, 4)
    if frames:
        assert sound_end_s(out) == pytest.approx(frames / FPS, abs=0.06)


def test_a_file_that_is_cut_off_keeps_the_sound_of_what_came(tmp_path):
    whole = write_talk(tmp_path / "whole.mkv")
    path = tmp_path / "in.mkv"
    content = whole.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    target = tmp_path / "out.mp4"
    with open_source(str(path)) as source:
        out = open_sink(str(target), source.info, Renderer(Look(), "binary"))
        last_s = 0.0

        def write():
            nonlocal last_s
            for frame in source:
                frame.view, last_s = frame.image, frame.pts_s
                out.write(frame)

        with pytest.raises(TruncatedError):
            write()
        out.cut_off()
        out.close()
    made = tmp_path / "out.cut-off.mp4"
    assert_in_sync(made, 1)
    assert sound_end_s(made) == pytest.approx(last_s, abs=0.3)


@pytest.mark.parametrize("target", ["out.mp4", "out.mkv"])
def test_what_begins_in_the_middle_has_the_sound_from_there(tmp_path, target):
    """As a recording from a window has it."""
    path = write_talk(tmp_path / "in.mp4")
    with (
        open_source(str(path)) as source,
        open_sink(str(tmp_path / target), source.info, Renderer(Look(), "binary")) as out,
    ):
        for frame in islice(source, 30, None):
            frame.view = frame.image
            out.write(frame)
    assert_in_sync(tmp_path / target, 1)
    first_s = [float(one["start_time"]) for one in tracks(tmp_path / target)]
    assert first_s == pytest.approx([1.2, 1.2], abs=0.03)


def test_a_damaged_track_of_sound_costs_no_picture(tmp_path):
    path = write_talk(tmp_path / "in.ts")
    content = bytearray(path.read_bytes())
    for start in range(0, len(content), 188):  # every third packet of the sound
        if ((content[start + 1] & 0x1F) << 8 | content[start + 2]) == 0x101 and start // 188 % 3 == 0:
            content[start + 4 : start + 188] = b"\xa5" * 184
    path.write_bytes(content)
    out = through(path, tmp_path / "out.mp4")
    assert flashes_s(out) == pytest.approx(EVENTS_S, abs=1e-3)
    assert kinds(out) == ["video", "audio"]


def test_a_packet_that_the_container_refuses_is_left_out(tmp_path, said):
    class Choosy:
        def __init__(self, container):
            self.container, self.refused = container, 0

        def mux(self, packet):
            if 1.0 < packet.pts * packet.time_base < 1.1:
                self.refused += 1
                raise av.error.InvalidDataError(1, "invalid data")
            self.container.mux(packet)

    target = tmp_path / "out.mp4"
    with (
        open_source(str(write_talk(tmp_path / "in.mp4"))) as source,
        open_sink(str(target), source.info, Renderer(Look(), "binary")) as out,
    ):
        for frame in source:
            frame.view = frame.image
            out.write(frame)
            if frame.index == 0:
                choosy = out._beside._container = Choosy(out._beside._container)
    assert choosy.refused > 2
    assert_in_sync(target, 2)
    assert sum("sound or subtitles is damaged, and left out (invalid data)" in line for line in said) == 1


def test_no_audio(tmp_path, said):
    out = through(write_talk(tmp_path / "in.mkv", subtitles="srt"), tmp_path / "out.mkv", sound=False)
    assert kinds(out) == ["video"]
    assert not any("sound" in line for line in said)


@pytest.mark.parametrize(("suffix", "codec", "name"), [(".mkv", "srt", "subrip"), (".mp4", "mov_text", "mov_text")])
def test_subtitles_are_copied(tmp_path, suffix, codec, name):
    out = through(write_talk(tmp_path / f"in{suffix}", subtitles=codec), tmp_path / f"out{suffix}")
    made = tracks(out)
    assert [one["codec_type"] for one in made] == ["video", "audio", "subtitle"]
    assert made[2]["codec_name"] == name
    assert made[2]["tags"]["language"] == "fin"
    text = ffmpeg("-i", out, "-map", "s:0", "-f", "srt", "-").decode()
    shown = re.findall(r"00:00:([\d,]+) --> 00:00:([\d,]+)\s+(\w+)", text)
    assert [word for *_, word in shown] == ["first", "second"]
    times_s = [float(time_s.replace(",", ".")) for *both, _ in shown for time_s in both]
    assert times_s == pytest.approx([0.5, 1.5, 2.0, 2.5], abs=IN_SYNC_S)
    assert_in_sync(out, 2)


@pytest.mark.parametrize(
    ("source", "codec", "subtitles", "target", "line"),
    [
        ("in.mkv", "aac", "srt", "out.mp4", r"subtitles \((srt|subrip)\), which \.mp4 cannot hold; \.mkv can"),
        (
            "in.mp4",
            "aac",
            "mov_text",
            "out.mkv",
            r"subtitles \(mov_text\), which \.mkv cannot hold; \.mp4 and \.mov can",
        ),
        ("in.mp4", "aac", "", "out.webm", r"sound \(aac\), which \.webm cannot hold; \.mkv and \.mp4 and \.mov can"),
        ("in.mkv", "flac", "", "out.mov", r"sound \(flac\), which \.mov cannot hold; \.mkv and \.mp4 can"),
        ("in.mkv", "flac", "", "out.webm", r"sound \(flac\), which \.webm cannot hold"),
    ],
)
def test_what_a_container_cannot_hold_is_told(tmp_path, said, source, codec, subtitles, target, line):
    out = through(write_talk(tmp_path / source, codec=codec, subtitles=subtitles), tmp_path / target)
    (told,) = [one for one in said if "without the source's" in one]
    assert re.search(f"out{out.suffix}: without the source's {line}", told), told
    assert len(kinds(out)) == (2 if subtitles else 1)
