"""What a video file says beside its pixels, by container and codec: it comes out, or it is told. FFmpeg's own programs judge."""

import json
import math
import struct
import subprocess
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np
import pytest

from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.sinks import open_sink
from pipeline.sources import open_source

pytestmark = pytest.mark.needs_program("ffprobe")

H, W, FPS = 48, 64, 25
PQ, HLG, BT709 = 16, 18, 1
BT2020, P3 = 9, 12


@dataclass(frozen=True)
class Case:
    """One row of the table: how the file is written, and what must be said of it."""

    container: str
    codec: str
    name: str
    pix_fmt: str = "yuv420p"
    size_hw: tuple[int, int] = (H, W)
    stamps: tuple[int, ...] = (0, 1, 2, 3, 4)  # in units of 1 / FPS
    options: dict[str, str] = field(default_factory=dict)
    container_options: dict[str, str] = field(default_factory=dict)
    aspect: Fraction = Fraction(1)
    tags: tuple[int, int, int, int] | None = None  # primaries, transfer, matrix, range
    matrix: tuple[int, int, int, int] | None = None  # a, b, c, d
    extras: tuple[str, ...] = ()
    told: tuple[str, ...] = ()

    def __str__(self):
        return f"{self.container}-{self.codec}-{self.name}"


H264 = [
    ("mp4", "libx264"),
    ("mov", "libx264"),
    ("mkv", "libx264"),
    ("ts", "libx264"),
    ("flv", "libx264"),
    ("nut", "libx264"),
]
OTHERS = [
    *(("mp4", "mpeg4"), ("avi", "mpeg4"), ("avi", "mjpeg"), ("mov", "mjpeg"), ("mkv", "mjpeg"), ("mpg", "mpeg2video")),
    *(
        ("ts", "mpeg2video"),
        ("mkv", "mpeg2video"),
        ("webm", "libvpx-vp9"),
        ("mkv", "ffv1"),
        ("avi", "ffv1"),
        ("nut", "ffv1"),
    ),
    *(
        ("mp4", "libx265"),
        ("mov", "libx265"),
        ("mkv", "libx265"),
        ("mov", "prores_ks"),
        ("flv", "flv"),
        ("mp4", "libvpx-vp9"),
    ),
]
FULL = {"mjpeg": "yuvj420p", "prores_ks": "yuv422p10le"}
TEN_BITS = "10 bits a color"


def plain(container, codec, name, **more):
    told = (TEN_BITS,) if "10" in FULL.get(codec, "") else ()
    return Case(container, codec, name, **{"pix_fmt": FULL.get(codec, "yuv420p"), "told": told} | more)


def cases():
    everywhere = [*H264, *OTHERS]
    shaped = [pair for pair in everywhere if pair[0] not in ("flv", "avi")]  # FLV and AVI have no place for it
    timed = [pair for pair in everywhere if pair[0] in ("mp4", "mov", "mkv", "webm", "nut")]
    for pair in everywhere:
        yield plain(*pair, "plain")
        yield plain(*pair, "one frame", stamps=(0,))
    for pair in shaped:
        yield plain(
            *pair,
            "wide pixels",
            aspect=Fraction(64, 45) if pair[1] != "mpeg2video" else Fraction(16, 9) * Fraction(H, W),
        )
        if pair[1] != "mpeg2video":
            yield plain(*pair, "high pixels", aspect=Fraction(1, 2))
    for pair in timed:
        yield plain(*pair, "variable rate", stamps=(0, 1, 4, 5, 12))
        yield plain(*pair, "late start", stamps=(75, 76, 77, 78))
    for container, codec in [
        *H264,
        ("mp4", "mpeg4"),
        ("mpg", "mpeg2video"),
        ("mkv", "libx265"),
        ("mp4", "libx265"),
        ("ts", "mpeg2video"),
    ]:
        if (container, codec) != ("flv", "libx264"):
            yield plain(container, codec, "b-frames", stamps=tuple(range(12)), options={"bf": "2"})
    for container, codec in [
        ("mp4", "libx264"),
        ("mkv", "libx264"),
        ("mov", "libx264"),
        ("mkv", "ffv1"),
        ("nut", "ffv1"),
        ("mkv", "libx265"),
    ]:
        for pix_fmt, bits in (
            ("yuv422p", 8),
            ("yuv444p", 8),
            ("yuv420p10le", 10),
            ("yuv422p10le", 10),
            ("yuv444p10le", 10),
            ("gray", 8),
        ):
            yield Case(container, codec, pix_fmt, pix_fmt, told=(TEN_BITS,) if bits == 10 else ())
        yield Case(container, codec, "odd size", "yuv444p", size_hw=(35, 51))
    for container, codec in (("mkv", "ffv1"), ("nut", "ffv1")):
        yield Case(container, codec, "gray 16 bits", "gray16le", told=("16 bits a color",))
        yield Case(container, codec, "alpha", "yuva420p", told=("transparent in part",))
        yield Case(container, codec, "one wide row", "yuv444p", size_hw=(1, 16))
    for container in ("mp4", "mov"):
        for number, matrix in enumerate(product_of_turns()):
            for codec in ("libx264", "mpeg4"):
                yield Case(container, codec, f"turn {number}", matrix=matrix)
            yield Case(container, "libx264", f"turn {number}, wide pixels", matrix=matrix, aspect=Fraction(3, 2))
    for container, codec in (
        ("mp4", "libx265"),
        ("mkv", "libx265"),
        ("mp4", "libx264"),
        ("mkv", "libx264"),
        ("ts", "libx265"),
        ("mov", "libx265"),
    ):
        for name, primaries, transfer, matrix, words in (
            ("PQ", BT2020, PQ, 9, "high dynamic range (PQ)"),
            ("HLG", BT2020, HLG, 9, "high dynamic range (HLG)"),
            ("BT.2020", BT2020, 14, 9, "wide colors (BT.2020)"),
            ("P3", P3, BT709, 1, "wide colors (P3)"),
        ):
            yield Case(
                container,
                codec,
                name,
                "yuv420p10le",
                tags=(primaries, transfer, matrix, 1),
                told=(TEN_BITS, words, "BT.709"),
            )
    for container, codec in (
        ("mp4", "libx264"),
        ("mkv", "libx264"),
        ("mov", "libx264"),
        ("ts", "libx264"),
        ("mkv", "ffv1"),
    ):
        yield Case(container, codec, "full range", tags=(BT709, BT709, 1, 2))
        yield Case(container, codec, "BT.601", tags=(6, 6, 6, 1))
        yield Case(container, codec, "BT.709", tags=(BT709, BT709, 1, 1))
    for container, codec in (
        ("mp4", "libx264"),
        ("mov", "libx264"),
        ("mkv", "libx264"),
        ("ts", "libx264"),
        ("avi", "mpeg4"),
        ("flv", "libx264"),
    ):
        yield Case(container, codec, "sound", extras=("sound",))
    for container in ("mp4", "mov", "mkv"):
        yield Case(container, "libx264", "chapters", extras=("chapters",), told=("2 chapters",))
        yield Case(container, "libx264", "second track first", extras=("preview",), told=("another picture track",))
        yield Case(container, "libx264", "fragmented", container_options=FRAGMENTED[container])
    yield Case("mov", "libx264", "timecode", extras=("timecode",), told=("timecode",))
    yield Case("mkv", "libx264", "no length", container_options={"live": "1"})


FRAGMENTED = {
    "mp4": {"movflags": "frag_keyframe+empty_moov+default_base_moof"},
    "mov": {"movflags": "frag_every_frame+empty_moov"},
    "mkv": {"cluster_time_limit": "40"},
}


def product_of_turns():
    return [
        (1, 0, 0, 1),
        (0, 1, -1, 0),
        (-1, 0, 0, -1),
        (0, -1, 1, 0),
        (-1, 0, 0, 1),
        (1, 0, 0, -1),
        (0, 1, 1, 0),
        (0, -1, -1, 0),
    ]


CASES = list(cases())


def test_the_table_is_large():
    assert len(CASES) >= 200
    assert len({str(case) for case in CASES}) == len(CASES)


def corner_picture(height, width, number):
    """Bright in the upper left, so that every turn can be told from every other; a little brighter each time."""
    image = np.full((height, width, 3), 40, np.uint8)
    image[: height // 2, : width // 3] = 200
    image[: height // 4, width // 2 :, 0] = 120
    return image + np.uint8(number)


def write(case, path):
    with av.open(str(path), "w", options=case.container_options) as out:
        if "preview" in case.extras:
            small = add_stream(out, "mjpeg", "yuvj420p", (16, 16))
        film = add_stream(out, case.codec, case.pix_fmt, case.size_hw, case.options)
        if "preview" in case.extras:
            small.disposition, film.disposition = av.stream.Disposition(0), av.stream.Disposition.default
        film.codec_context.sample_aspect_ratio = case.aspect
        if case.tags:
            context = film.codec_context
            context.color_primaries, context.color_trc, context.colorspace, context.color_range = case.tags
        if "timecode" in case.extras:
            film.metadata["timecode"] = "01:02:03:04"
        sound = (
            out.add_stream("mp2" if case.container in ("ts", "avi") else "aac", rate=44100)
            if "sound" in case.extras
            else None
        )
        if "chapters" in case.extras:
            out.set_chapters(
                [
                    {"id": n, "start": n * 80, "end": n * 80 + 80, "time_base": Fraction(1, 1000), "metadata": {}}
                    for n in range(2)
                ]
            )
        if "preview" in case.extras:
            encode(out, small, corner_picture(16, 16, 0), 0)
            flush(out, small)
        for number, stamp in enumerate(case.stamps):
            encode(out, film, corner_picture(*case.size_hw, number), stamp, case)
        if sound is not None:
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 4608), np.int16), format="s16", layout="mono")
            samples.sample_rate, samples.pts = 44100, 0
            for packet in (*sound.encode(samples), *sound.encode()):
                out.mux(packet)
        flush(out, film)
    if case.matrix:
        turn(path, case.matrix, case.size_hw)


def add_stream(out, codec, pix_fmt, size_hw, options=None):
    stream = out.add_stream(codec, rate=FPS, options=dict(options or {}))
    stream.height, stream.width = size_hw
    stream.pix_fmt = pix_fmt
    stream.codec_context.time_base = Fraction(1, FPS)
    if codec == "libx265":
        stream.options = {**(options or {}), "x265-params": "log-level=none"}
    return stream


def encode(out, stream, image, stamp, case=None):
    frame = av.VideoFrame.from_ndarray(image, format="bgr24").reformat(format=stream.pix_fmt)
    if case is not None and case.tags:
        frame.color_primaries, frame.color_trc, frame.colorspace, frame.color_range = case.tags
    frame.pts, frame.time_base = stamp, Fraction(1, FPS)
    for packet in stream.encode(frame):
        out.mux(packet)


def flush(out, stream):
    for packet in stream.encode():
        out.mux(packet)


def turn(path, matrix, size_hw):
    """Write a display matrix into the track's header."""
    content, one = path.read_bytes(), 0x10000
    tkhd = content.index(b"tkhd") + 4
    place = tkhd + 4 + (20 if content[tkhd] == 0 else 32) + 16
    a, b, c, d = (one * value for value in matrix)
    x = (size_hw[1] if a < 0 else 0) + (size_hw[0] if c < 0 else 0)
    y = (size_hw[1] if b < 0 else 0) + (size_hw[0] if d < 0 else 0)
    path.write_bytes(
        content[:place] + struct.pack(">9i", a, b, 0, c, d, 0, x << 16, y << 16, 1 << 30) + content[place + 36 :]
    )


def probe(path):
    """What ffprobe says of the film: its frames' times, its size and the shape of its pixels."""
    command = [
        "ffprobe",
        "-v",
        "error",
        "-of",
        "json",
        "-show_streams",
        "-show_frames",
        "-select_streams",
        "v",
        str(path),
    ]
    said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)
    film = max(said["streams"], key=lambda one: one["width"] * one["height"])
    frames = [one for one in said["frames"] if one["stream_index"] == film["index"]]
    times = [float(one.get("pts_time", one.get("best_effort_timestamp_time", "nan"))) for one in frames]
    shape = film.get("sample_aspect_ratio", "1:1").replace("N/A", "1:1").replace("0:1", "1:1")
    if math.isnan(times[-1]):  # a stamp that the container left out of its last frame
        times[-1] = times[-2] + 1 / FPS if times[1:] else 0.0
    return [time - times[0] for time in times], (film["height"], film["width"]), Fraction(*map(int, shape.split(":")))


def as_ffmpeg_shows(path, size_hw):
    """The first frame by the program, (H, W, 3) BGR."""
    read = ["-flags", "unaligned", "-i", str(path)]  # so that all that is to be cropped on the left is
    command = ["ffmpeg", "-v", "error", *read, "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "bgr24", "-"]
    done = subprocess.run(command, check=True, capture_output=True, timeout=60)
    return np.frombuffer(done.stdout, np.uint8).reshape(*size_hw, 3)


def upright(image, matrix):
    """Where a display matrix puts each pixel, one by one."""
    a, b, c, d = matrix
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    new_x, new_y = a * x + c * y, b * x + d * y
    new_x, new_y = new_x - new_x.min(), new_y - new_y.min()
    shown = np.empty((new_y.max() + 1, new_x.max() + 1, 3), image.dtype)
    shown[new_y, new_x] = image
    return shown


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_property_comes_out_or_is_told(case, tmp_path, said):
    path = tmp_path / f"film.{case.container}"
    write(case, path)
    times, size_hw, shape = probe(path)
    with open_source(str(path)) as source:
        if source.info.left_out:
            said.append(source.info.left_out)
        with open_sink(str(tmp_path / "out.mp4"), source.info, Renderer(Look(), "binary")) as out:
            frames = []
            for frame in source:
                frame.view = frame.image
                out.write(frame)
                frames.append(frame)
    is_turned = case.matrix is not None and case.matrix[0] == 0
    assert size_hw == case.size_hw
    assert [frame.pts_s for frame in frames] == pytest.approx(times, abs=2e-3)
    assert len(frames) == len(case.stamps)
    assert frames[0].size_hw == (size_hw[::-1] if is_turned else size_hw)
    assert frames[0].sample_aspect == (1 / shape if is_turned else shape)
    if case.tags is None or case.tags[1] in (6, BT709):
        expected = upright(corner_picture(*size_hw, 0), case.matrix or (1, 0, 0, 1))
        if case.tags or case.pix_fmt.startswith("gray"):
            expected = as_ffmpeg_shows(path, size_hw)
        difference = np.abs(frames[0].image.astype(float) - expected)
        assert np.median(difference) < 8
    for words in case.told:
        assert any(words in line for line in said), said
    if "sound" in case.extras:
        with av.open(str(tmp_path / "out.mp4")) as made:
            assert [float(stream.duration * stream.time_base) for stream in made.streams.audio] == [
                pytest.approx(4608 / 44100, abs=0.03)
            ]
    made_times, made_hw, made_shape = probe(tmp_path / "out.mp4")
    assert made_times == pytest.approx(times, abs=2e-3)
    shown = Fraction(frames[0].size_hw[1], frames[0].size_hw[0]) * frames[0].sample_aspect
    made = Fraction(made_hw[1], made_hw[0]) * made_shape
    if min(size_hw) > 1:
        assert float(made / shown) == pytest.approx(1, abs=0.05)  # an odd side gets one more
