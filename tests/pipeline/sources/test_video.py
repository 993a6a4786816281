import gc
import itertools
import math
import os
import struct
import subprocess
from fractions import Fraction

import av
import numpy as np
import pytest
from av.sidedata.sidedata import SideDataContainer
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SourceError
from pipeline.sources import open_source, video
from pipeline.sources.completeness import is_cut_off
from pipeline.sources.display import read_matrix
from pipeline.sources.video import FileClock


@pytest.fixture(scope="module")
def noise():
    """Pictures that do not compress, so that a file can be cut at any place."""
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (64, 96, 3), np.uint8) for _ in range(20)]


@pytest.fixture(scope="module")
def files(tmp_path_factory, write_video, noise):
    """Complete videos by what is special in them."""
    folder = tmp_path_factory.mktemp("videos")
    return {
        "faststart": write_video(folder / "faststart.mp4", noise, movflags="+faststart"),
        "moov last": write_video(folder / "last.mp4", noise),
        "fragmented": write_video(folder / "fragmented.mp4", noise, g="5", movflags="+frag_keyframe+empty_moov"),
        "mov": write_video(folder / "a.mov", noise, movflags="+faststart"),
        "avi": write_video(folder / "a.avi", noise, codec="mpeg4"),
        "flv": write_video(folder / "a.flv", noise, codec="flv1"),
        "slow mkv": write_video(folder / "a.mkv", noise, fps=5),
    }


def cut(path, length, folder):
    target = folder / f"cut{path.suffix}"
    target.write_bytes(path.read_bytes()[:length])
    return target


def read_all(path):
    with open_source(str(path)) as source:
        return list(source)


def test_frames_in_order_with_times_and_names(tmp_path, write_video, red_images):
    source = open_source(str(write_video(tmp_path / "a b.mp4", red_images, fps=25)))
    frames = list(source)
    assert [frame.index for frame in frames] == list(range(12))
    assert [frame.pts_s for frame in frames] == pytest.approx([number / 25 for number in range(12)])
    assert frames[3].name == "a b_000003"
    for frame, image in zip(frames, red_images, strict=True):
        assert frame.image.shape == image.shape
        assert abs(int(frame.image[16, 4, 2]) - int(image[16, 4, 2])) < 12
    info = source.info
    assert (info.name, info.description) == ("a b.mp4", "h264, 48×32, 25 FPS")
    assert (info.size_hw, info.fps, info.frame_count, info.live) == ((32, 48), 25, 12, False)
    assert info.paths == (str(tmp_path / "a b.mp4"),)
    assert not np.shares_memory(frames[0].image, frames[1].image)


@pytest.mark.parametrize("fps", ["24000/1001", "25", "30000/1001", "60"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_rates(tmp_path, write_video, red_images, fps, suffix):
    source = open_source(str(write_video(tmp_path / f"a{suffix}", red_images, fps=fps)))
    assert source.info.fps == Fraction(fps)
    expected = [number / float(Fraction(fps)) for number in range(12)]
    assert [frame.pts_s for frame in source] == pytest.approx(expected, abs=0.0011)
    assert source.info.frame_count in (12, 13)  # Matroska tells only its length


def test_a_variable_rate_keeps_its_times_counted_from_the_first_frame(tmp_path, write_video, red_images):
    pts = [5000, 5040, 5075, 5300, 5301, 5500, 5900, 6000, 6100, 7000, 7500, 8000]
    path = write_video(tmp_path / "a.mkv", red_images, pts=pts, time_base=Fraction(1, 1000))
    assert [frame.pts_s for frame in read_all(path)] == pytest.approx(
        [(value - 5000) / 1000 for value in pts], abs=0.0011
    )


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_a_rotated_video_is_upright(tmp_path, write_video, rotation):
    stored = np.zeros((32, 64, 3), np.uint8)
    stored[:16, :32], stored[:16, 32:], stored[16:, :32] = (0, 0, 255), (0, 255, 0), (255, 0, 0)
    frame = read_all(write_video(tmp_path / "a.mp4", [stored] * 2, rotation=rotation))[0]
    expected = np.rot90(stored, rotation // 90)  # the matrix counts counter-clockwise
    assert frame.image.shape == expected.shape
    assert frame.image.flags.c_contiguous
    assert np.abs(frame.image.astype(int) - expected).mean() < 12


@pytest.mark.parametrize(("width", "height"), [(2, 2), (16, 2), (34, 18)])
def test_small_sizes(tmp_path, write_video, width, height):
    images = [np.full((height, width, 3), 128, np.uint8)] * 3
    assert [frame.size_hw for frame in read_all(write_video(tmp_path / "a.mp4", images))] == [(height, width)] * 3


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "suffix"),
    [
        ("mjpeg", "yuvj420p", ".avi"),
        ("mpeg4", "yuv420p", ".avi"),
        ("ffv1", "bgr0", ".mkv"),
        ("libx264", "yuv444p", ".mp4"),
    ],
)
def test_colours_of_other_codecs_and_ranges(tmp_path, write_video, codec, pix_fmt, suffix):
    colours = [(200, 60, 30), (30, 180, 60), (40, 50, 210), (128, 128, 128), (255, 255, 255), (0, 0, 0)]
    images = [np.full((32, 48, 3), colour, np.uint8) for colour in colours]
    path = write_video(tmp_path / f"a{suffix}", images, codec=codec, pix_fmt=pix_fmt, g="1")
    for frame, colour in zip(read_all(path), colours, strict=True):
        np.testing.assert_allclose(frame.image[16, 24], colour, atol=8)


@pytest.mark.parametrize(("height", "matrix"), [(480, "bt601"), (720, "bt709")])
def test_a_video_that_names_no_matrix_has_that_of_its_size(tmp_path, write_video, height, matrix):
    # Y, U, V of a strong red, by hand: BT.601 (81, 90, 240), BT.709 (63, 102, 240).
    y, u, v = {"bt601": (81, 90, 240), "bt709": (63, 102, 240)}[matrix]
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, height, "yuv420p"
        planes = np.concatenate([np.full(64 * height, y), np.full(16 * height, u), np.full(16 * height, v)])
        frame = av.VideoFrame.from_ndarray(planes.astype(np.uint8).reshape(height * 3 // 2, 64), format="yuv420p")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    np.testing.assert_allclose(read_all(path)[0].image[0, 0], (0, 0, 255), atol=4)


@pytest.mark.parametrize(
    "name",
    [
        "sp ace.mp4",
        "ünïcode.mp4",
        "100%d%s.mp4",
        "-dash.mp4",
        "a:b.mp4",
        "a;'\"$(b).mp4",
        "no suffix",
        "\udcff\udcfe.mp4",
    ],
)
def test_any_name(files, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(files["faststart"].read_bytes())
    assert len(read_all(name)) == 20


@pytest.mark.parametrize("kind", ["faststart", "moov last", "fragmented", "mov", "avi", "flv", "slow mkv"])
def test_complete_files_are_complete(files, kind):
    assert len(read_all(files[kind])) == 20


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.99])
@pytest.mark.parametrize("kind", ["faststart", "fragmented", "mov", "avi", "flv"])
def test_a_file_that_is_cut_off_ends_in_an_error_after_its_frames(files, tmp_path, kind, share):
    path = cut(files[kind], int(files[kind].stat().st_size * share), tmp_path)
    frames = []
    with pytest.raises(SourceError, match=r"cut\.\w+: .*cut off.*after \d+ frames"):
        frames.extend(open_source(str(path)))
    assert len(frames) <= 20
    assert [frame.index for frame in frames] == list(range(len(frames)))


@pytest.mark.parametrize("missing", [1, 2, 100])
def test_a_few_missing_bytes_are_noticed(files, tmp_path, missing):
    path = cut(files["faststart"], files["faststart"].stat().st_size - missing, tmp_path)
    with pytest.raises(SourceError, match=r"cut\.mp4: .*cut off.*after \d+ frames"):
        read_all(path)


def test_half_a_matroska_file_is_noticed_by_its_length(files, tmp_path):
    path = cut(files["slow mkv"], files["slow mkv"].stat().st_size // 2, tmp_path)
    with pytest.raises(
        SourceError, match=r"expected a complete file of 4.0 s, got one that is cut off after \d+ frames$"
    ):
        read_all(path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9])
def test_a_file_cut_before_its_index_cannot_be_opened(files, tmp_path, share):
    path = cut(files["moov last"], int(files["moov last"].stat().st_size * share), tmp_path)
    with pytest.raises(SourceError, match=r"cut.mp4: expected a video, got a file that is none or is cut off \("):
        open_source(str(path))


def test_a_trimmed_file_is_complete(tmp_path, write_video):
    # Trimming without encoding anew leaves frames in the file that an edit list hides.
    images = [np.full((32, 48, 3), 2 * number, np.uint8) for number in range(100)]
    whole = write_video(tmp_path / "whole.mp4", images, g="250", bf="0")
    with av.open(str(whole)) as source, av.open(str(tmp_path / "trimmed.mp4"), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts -= 50 * 512  # before 0: hidden, as a player starts at 0
                packet.dts -= 50 * 512
                packet.stream = copy
                target.mux(packet)
    with av.open(str(tmp_path / "trimmed.mp4")) as container:
        assert container.streams.video[0].frames == 100
    frames = read_all(tmp_path / "trimmed.mp4")
    assert len(frames) == 50
    assert [frames[0].pts_s, frames[-1].pts_s] == pytest.approx([0, 49 / 25])


def test_a_last_frame_that_stays_is_not_a_missing_end(tmp_path, write_video, red_images):
    pts = [*range(11), 1000]
    assert len(read_all(write_video(tmp_path / "a.mp4", red_images, pts=pts, time_base=Fraction(1, 25)))) == 12


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.mp4", b""),
        ("text.mp4", b"Dear diary, this is not a video.\n" * 20),
        ("noise.mp4", np.random.default_rng(1).bytes(20_000)),
        ("zeros.mp4", bytes(20_000)),
        ("picture.mp4", b"\x89PNG\r\n\x1a\n" + bytes(100)),
        ("header.mp4", b"\0\0\0\x18ftypisom\0\0\2\0isomiso2"),
        ("text.mkv", b"Dear diary"),
    ],
)
def test_what_is_no_video(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=rf"{name}: expected (a video|frames), got") as caught:
        read_all(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "script",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {other}\n",
        "ffconcat version 1.0\nfile '{other.name}'\n",
        '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet><Representation>'
        "<BaseURL>{other}</BaseURL></Representation></AdaptationSet></Period></MPD>",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "[playlist]\nFile1={other}\n",
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".txt"])
def test_a_playlist_cannot_read_another_file(files, tmp_path, script, suffix):
    (tmp_path / "other.mp4").write_bytes(files["faststart"].read_bytes())
    path = tmp_path / f"list{suffix}"
    path.write_text(script.format(other=tmp_path / "other.mp4"))
    with pytest.raises(SourceError, match=rf"list{suffix}: expected a video, got a file that is none"):
        open_source(str(path))


def test_sound_alone_has_no_picture(tmp_path):
    with av.open(str(tmp_path / "a.m4a"), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(SourceError, match=r"a.m4a: expected a video, got a file without a picture track$"):
        open_source(str(tmp_path / "a.m4a"))


def test_sound_beside_the_pictures_is_passed_over(tmp_path, red_images):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        pictures = container.add_stream("libx264", rate=25)
        pictures.height, pictures.width, pictures.pix_fmt = 32, 48, "yuv420p"
        sound = container.add_stream("aac", rate=44100, layout="mono")
        for image in red_images:
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(pictures.encode(None))
        for number in range(200):  # longer than the pictures
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            samples.rate, samples.pts = 44100, 1024 * number
            container.mux(sound.encode(samples))
        container.mux(sound.encode(None))
    assert len(read_all(tmp_path / "a.mp4")) == 12


def test_frames_that_claim_the_machines_memory_are_refused(files, monkeypatch):
    monkeypatch.setattr(video, "MAX_PIXELS", 64 * 96 - 1)
    with pytest.raises(SourceError, match=r"faststart.mp4: expected frames of at most 6143 pixels, got 96×64$"):
        open_source(str(files["faststart"]))


def test_a_file_that_may_not_be_read(files, monkeypatch):
    monkeypatch.setattr(video.os, "access", lambda *_: False)
    with pytest.raises(SourceError, match=r"got a file that cannot be read: check its permissions$"):
        open_source(str(files["faststart"]))


@pytest.mark.parametrize("head", [b"FLV\x01\x05\0\0\0\x09\0\0\0\0", b"RIFF\xff\xff\xff\x7fAVI LIST"])
def test_gigabytes_of_nothing_behind_a_head_are_not_looked_through(tmp_path, monkeypatch, head):
    monkeypatch.setattr(video, "_OPEN_S", 0.2)
    path = tmp_path / "film.flv"
    path.write_bytes(head)
    os.truncate(path, 10 << 30)
    with pytest.raises(SourceError, match=r"expected a video, got a file (in which no picture is found|that is none)"):
        open_source(str(path))


def test_a_gif_of_gigabytes_is_refused(tmp_path):
    path = tmp_path / "film.gif"
    path.write_bytes(b"GIF89a\x10\x00\x10\x00\x00\x00\x00")
    os.truncate(path, 10 << 30)
    with pytest.raises(SourceError, match=r"film.gif: expected a picture of at most 2048 MiB, got 10240 MiB$"):
        open_source(str(path))


def test_a_pipe_is_no_file(tmp_path):
    video.os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(SourceError, match=r"a.mp4: expected a video, got something that is no file$"):
        open_source(str(tmp_path / "a.mp4"))


def test_a_video_can_be_left_early_and_closed_twice(files):
    with open_source(str(files["faststart"])) as source:
        assert len(list(itertools.islice(source, 3))) == 3
    source.close()


def stamped(stamps, **more):
    said = []
    clock = FileClock(Fraction(25), is_transport=more.get("is_transport", False), note=said.append)
    return [clock(stamp) for stamp in stamps], said


def test_stamps_that_begin_again_go_on_at_the_mean_rate():
    times, said = stamped([10.0, 10.1, 10.2, 3.0, 3.1, 3.2, None, 3.4])
    assert times == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    assert len(said) == 1
    assert "jump by -7.2 s at 0.3 s" in said[0]


def test_a_gap_is_a_gap_but_in_a_transport_stream():
    stamps = [0.0, 0.1, 100.0, 100.1]
    assert stamped(stamps) == (pytest.approx(stamps), [])
    times, said = stamped(stamps, is_transport=True)
    assert times == pytest.approx([0, 0.1, 0.2, 0.3])
    assert len(said) == 1
    assert stamped([0.0, 0.1, 3.0], is_transport=True) == (pytest.approx([0, 0.1, 3.0]), [])


@given(st.lists(st.one_of(st.none(), st.floats(-1e5, 1e5)), max_size=40), st.booleans())
def test_time_never_runs_backward(stamps, is_transport):
    times, _ = stamped(stamps, is_transport=is_transport)
    assert all(later > earlier for earlier, later in itertools.pairwise(times))
    assert times[:1] in ([], [0.0])


@pytest.mark.parametrize("kind", ["faststart", "fragmented", "mov", "avi", "flv", "slow mkv"])
def test_every_byte_of_the_end_counts(files, tmp_path, kind):
    whole = files[kind]
    container = {"avi": "avi", "flv": "flv", "slow mkv": "matroska,webm"}.get(kind, "mov,mp4,m4a,3gp,3g2,mj2")
    assert not is_cut_off(whole, container)
    shorter = cut(whole, whole.stat().st_size - 1, tmp_path)
    assert is_cut_off(shorter, container) == (kind not in ("avi", "flv"))  # an even RIFF chunk need not be filled up
    longer = tmp_path / f"longer{whole.suffix}"
    longer.write_bytes(whole.read_bytes() + b"\0" * 3)
    assert len(read_all(longer)) == 20


@pytest.mark.needs_program("ffprobe")
def test_a_header_that_disagrees_alone_is_told(files, tmp_path, said):
    path = tmp_path / "long.mkv"
    command = ["ffmpeg", "-v", "error", "-i", str(files["slow mkv"]), "-c", "copy", str(path)]
    subprocess.run(command, check=True, timeout=60)
    content = path.read_bytes()
    assert content.count(b"00:00:04.0") == 1
    path.write_bytes(content.replace(b"00:00:04.0", b"00:00:09.0"))
    assert len(read_all(path)) == 20
    assert any("its header says 9.0 s, and its frames end after 4.0 s: taken as complete" in line for line in said)


def test_a_cover_alone_is_no_film(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        cover = out.add_stream("mjpeg", rate=1)
        cover.height = cover.width = 16
        cover.pix_fmt, cover.disposition = "yuvj420p", av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="bgr24").reformat(format="yuvj420p")
        for packet in (*cover.encode(frame), *cover.encode()):
            out.mux(packet)
    with pytest.raises(SourceError, match="without a picture track but a cover"):
        open_source(str(tmp_path / "a.mp4"))


@pytest.mark.parametrize("degrees", [30, 45, 100])
def test_a_free_angle_is_told(degrees):
    cos, sin = (round(f(math.radians(degrees)) * 65536) for f in (math.cos, math.sin))
    found = read_matrix(struct.pack("=9i", cos, sin, 0, -sin, cos, 0, 0, 0, 1 << 30))
    assert found.lost_degrees == pytest.approx(min(degrees, abs(90 - degrees)), abs=0.1)


@pytest.mark.parametrize("matrix", [bytes(36), b"", struct.pack("=9i", 1, 1, 0, 1, 1, 0, 0, 0, 1)])
def test_a_matrix_that_is_damaged_says_nothing(matrix):
    assert read_matrix(matrix).is_upright


def test_decoded_pictures_do_not_wait_for_the_garbage_collector(write_video, tmp_path, noise):
    """A picture that refers to itself keeps its memory, and the decoder takes fresh pages for each of the next ones."""
    path = write_video(tmp_path / "a.mp4", noise * 5)
    gc.collect()
    gc.disable()
    try:
        with open_source(str(path)) as source:
            frames = sum(1 for _ in source)
            held = sum(type(one) is SideDataContainer for one in gc.get_objects())
    finally:
        gc.enable()
    assert frames == 100
    assert held <= 4
