import os
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.frames.pixels import Bands
from pipeline.sources import open_source
from pipeline.sources.bands import read_bands
from pipeline.sources.picture_file import read_picture

ROOT = Path(__file__).parents[3]


def png(width, height, colour_type, depth, rows, extra=b""):
    """A PNG file made byte by byte, as OpenCV cannot write every kind."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    content = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def palette(*colours_rgb):
    content = b"PLTE" + bytes(value for colour in colours_rgb for value in colour)
    return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))


def with_orientation(jpeg, orientation):
    """A JPEG file with an EXIF orientation."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0) + b"\0\0\0\0"
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


@pytest.fixture
def folder(tmp_path, write_picture):
    """A folder of pictures, with names and things that must not confuse it."""
    for number, name in enumerate(("b10.png", "b9.png", "a.JPG", "ü ß%d:x.png", "-dash.png")):
        write_picture(tmp_path / name, np.full((4, 6, 3), 40 * number, np.uint8), suffix=".png")
    write_picture(tmp_path / ".hidden.png", np.zeros((4, 6, 3), np.uint8))
    write_picture(tmp_path / "below" / "c.png", np.zeros((4, 6, 3), np.uint8))
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to("nowhere.png")
    return tmp_path


def test_a_folder_in_the_order_of_its_names_with_numbers_as_numbers(folder):
    source = open_source(str(folder))
    frames = list(source)
    assert [frame.name for frame in frames] == ["-dash", "a", "b9", "b10", "ü ß%d:x"]
    assert [frame.image[0, 0, 0] for frame in frames] == [160, 80, 40, 0, 120]
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    assert [frame.pts_s for frame in frames] == [0, 1, 2, 3, 4]
    info = source.info
    assert (info.name, info.description, info.frame_count) == (folder.name, "5 pictures", 5)
    assert (info.fps, info.size_hw, info.live) == (None, None, False)
    assert info.paths[0] == str(folder / "-dash.png")


@pytest.mark.parametrize("name", ["ü ß%d:x.png", "-dash.png", "a.JPG"])
def test_one_picture_by_its_name(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    source = open_source(name)
    (frame,) = source
    assert frame.name == os.path.splitext(name)[0]
    assert (source.info.description, source.info.frame_count, source.info.paths) == ("1 picture", 1, (name,))


def test_a_glob_takes_what_matches(folder):
    assert [frame.name for frame in open_source(f"{folder}/b*.png")] == ["b9", "b10"]
    assert [frame.name for frame in open_source(f"{folder}/*/c.png")] == ["below/c"]


def test_a_glob_with_two_stars_keeps_the_folders(folder, write_picture):
    write_picture(folder / "below" / "deep" / "c.png", np.zeros((4, 6, 3), np.uint8))
    names = [frame.name for frame in open_source(f"{folder}/**/c.png")]
    assert names == ["below/c", "below/deep/c"]


def test_a_relative_glob(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert [frame.name for frame in open_source("**/c.png")] == ["below/c"]
    assert [frame.name for frame in open_source("./*/c.png")] == ["below/c"]
    monkeypatch.chdir(folder / "below")
    assert [frame.name for frame in open_source("../b9.pn?")] == ["b9"]


def test_a_glob_that_finds_a_picture_in_two_ways_reads_it_once(folder):
    assert [frame.name for frame in open_source(f"{folder}/**/**/c.png")] == ["below/c"]


@pytest.mark.parametrize("relative", [False, True])
def test_a_glob_enters_each_folder_once_whatever_links_lead_back(tmp_path, write_picture, monkeypatch, relative):
    places = ("a/one.png", "a/b/two.png", "a/b/[c]/three.png", "elsewhere/four.png", "a/.hidden/no.png")
    for place in places:
        write_picture(tmp_path / place, np.full((4, 6, 3), 90, np.uint8))
    for number in range(10):  # each doubles the paths that there are
        os.symlink("..", tmp_path / "a" / "b" / f"back{number}")
        os.symlink(tmp_path / "a", tmp_path / "a" / f"again{number}")
    os.symlink(tmp_path / "elsewhere", tmp_path / "a" / "far")
    os.symlink("loop", tmp_path / "a" / "loop")
    monkeypatch.chdir(tmp_path)
    top = "" if relative else f"{tmp_path}/"
    names = {frame.name for frame in open_source(f"{top}a/**/*.png")}
    assert names == {"one", "b/two", "b/[c]/three", "far/four"}
    assert {"a/b/two", "a/b/[c]/three"} <= {frame.name for frame in open_source(f"{top}**/b/**/*.png")}
    assert len(list(open_source(f"{top}a/**"))) == 4


def bound(path):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path)


@pytest.mark.parametrize("make", [os.mkfifo, bound])
def test_what_is_no_file_is_not_waited_for(tmp_path, make, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make("a.png")
    with pytest.raises(SourceError, match=r"a\.png: expected a picture, got something that is no file$"):
        list(open_source("a.png"))
    with pytest.raises(SourceError, match=r"a\.png: expected a picture, got something that is no file$"):
        read_bands(Path("a.png"), Bands(4, 8))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".mp4"])
def test_ten_gigabytes_are_not_read(tmp_path, suffix):
    path = tmp_path / f"large{suffix}"
    with path.open("wb") as file:
        file.write(cv2.imencode(".png", np.zeros((4, 6, 3), np.uint8))[1].tobytes())
        file.truncate(10 << 30)
    with pytest.raises(SourceError, match=r"expected a picture of at most 2048 MiB, got 10240 MiB|expected a video"):
        list(open_source(str(path)))


def test_a_glob_cannot_lead_names_out_of_the_output_folder(folder):
    with pytest.raises(SourceError, match=r"expected a pattern without '..' after its first wildcard"):
        open_source(f"{folder}/*/../*.png")


def test_names_that_differ_only_in_their_suffix_keep_it(tmp_path, write_picture):
    for number, name in enumerate(("x.png", "x.bmp", "x.png.png", "y.png")):
        write_picture(tmp_path / name, np.full((2, 2, 3), number, np.uint8))
    names = [frame.name for frame in open_source(str(tmp_path))]
    assert names == ["x.bmp", "x.png", "x.png.png", "y"]


@pytest.mark.parametrize("content", [{}, {"notes.txt": b"a"}, {"a.mp4": b"a"}])
def test_a_folder_without_pictures(tmp_path, content):
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=r"expected pictures \(.*\.png.*\), got a folder with none$"):
        open_source(str(tmp_path))


def test_a_glob_without_pictures(tmp_path):
    with pytest.raises(SourceError, match=r"got a pattern with none$"):
        open_source(f"{tmp_path}/*.png")


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", forbidden)
    with pytest.raises(SourceError, match=r"cannot be read \(Permission denied\)$"):
        open_source(str(tmp_path))


def test_damaged_pictures_do_not_stop_the_others(folder):
    (folder / "b9.png").write_bytes((folder / "b9.png").read_bytes()[:40])
    frames = []
    with pytest.raises(SourceError, match=r"b9.png: expected a picture, got a file that is none or is damaged$"):
        frames.extend(open_source(str(folder)))
    assert [(frame.name, frame.index) for frame in frames] == [("-dash", 0), ("a", 1), ("b10", 3), ("ü ß%d:x", 4)]
    (folder / "-dash.png").write_bytes(b"")
    with pytest.raises(
        SourceError, match=r"^2 of 5 pictures could not be read, the first: .*-dash.png: .* an empty file$"
    ):
        list(open_source(str(folder)))


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "an empty file"),
        (b"no picture", "a file that is none or is damaged"),
        (b"\x89PNG\r\n\x1a\n", "a file that is none or is damaged"),
        (png(8, 8, 2, 8, b"\0"), "a file that is none or is damaged"),
        (b"\xff\xd8\xff", "a file that is none or is damaged"),
    ],
)
def test_what_is_no_picture(tmp_path, content, got):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=rf"a.png: expected a picture, got {got}$"):
        read_picture(path)


def test_a_picture_that_went_away(tmp_path):
    with pytest.raises(SourceError, match=r"a.png: cannot be read \(No such file or directory\)"):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("side", [60_000, 2**31 - 1])
def test_a_header_that_claims_the_machines_memory(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side, 2, 8, bytes(1000)))
    assert path.stat().st_size < 200
    with pytest.raises(SourceError, match=r"bomb.png: expected a picture"):
        read_picture(path)


def test_the_command_sets_a_limit_that_its_error_names(tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(png(12_000, 12_000, 0, 1, bytes(1501) * 12_000))
    code = "import pathlib, sys, pipeline.__main__; from pipeline.sources.picture_file import read_picture as read\n"
    code += "try: read(pathlib.Path(sys.argv[1]))\nexcept pipeline.SourceError as error: print(error)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENCV")}
    done = subprocess.run(
        [sys.executable, "-c", code, path], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert "expected a picture of at most 134217728 pixels, got a larger one: make it smaller, or set" in done.stdout
    assert done.stderr == ""


PIXELS = np.array([[[10, 60, 200], [90, 30, 20]], [[0, 128, 255], [255, 255, 255]]], np.uint8)


def read_bytes(tmp_path, content, suffix=".png"):
    path = tmp_path / f"p{suffix}"
    path.write_bytes(content)
    image = read_picture(path)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.flags.writeable
    return image


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm"])
def test_colour_comes_as_bgr(tmp_path, suffix):
    np.testing.assert_array_equal(read_bytes(tmp_path, cv2.imencode(suffix, PIXELS)[1].tobytes(), suffix), PIXELS)


def test_what_is_transparent_is_seen_on_white(tmp_path):
    alpha = np.array([[0, 255], [128, 1]], np.uint8)
    given = np.dstack([PIXELS, alpha])
    on_white = PIXELS * (alpha / 255)[..., None] + 255 * (1 - alpha / 255)[..., None]
    read = read_bytes(tmp_path, cv2.imencode(".png", given)[1].tobytes())
    np.testing.assert_allclose(read, on_white, atol=0.51)


def test_sixteen_bits_become_eight(tmp_path):
    given = PIXELS.astype(np.uint16) * 257
    np.testing.assert_array_equal(read_bytes(tmp_path, cv2.imencode(".png", given)[1].tobytes()), PIXELS)


@pytest.mark.parametrize("scale", [1, 257])
def test_grey_becomes_bgr(tmp_path, scale):
    grey = PIXELS[..., 2]
    given = grey if scale == 1 else grey.astype(np.uint16) * scale
    image = read_bytes(tmp_path, cv2.imencode(".png", given)[1].tobytes())
    np.testing.assert_array_equal(image, np.dstack([grey] * 3))


def test_grey_with_alpha(tmp_path):
    image = read_bytes(tmp_path, png(2, 1, 4, 8, bytes([0, 50, 0, 200, 255])))
    np.testing.assert_array_equal(image[0, 1], [200, 200, 200])


def test_one_bit(tmp_path):
    image = read_bytes(tmp_path, png(3, 1, 0, 1, bytes([0, 0b10100000])))
    np.testing.assert_array_equal(image, [[[255] * 3, [0] * 3, [255] * 3]])


@pytest.mark.parametrize(
    ("depth", "row"), [(8, bytes([0, 0, 1, 2])), (2, bytes([0, 0b00011000])), (4, bytes([0, 0x01, 0x20]))]
)
def test_a_palette_is_resolved(tmp_path, depth, row):
    colours = (255, 0, 0), (0, 128, 0), (1, 2, 3)
    image = read_bytes(tmp_path, png(3, 1, 3, depth, row, palette(*colours)))
    np.testing.assert_array_equal(image, [[colour[::-1] for colour in colours]])


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda image: image),
        (2, lambda image: image[:, ::-1]),
        (3, lambda image: image[::-1, ::-1]),
        (4, lambda image: image[::-1]),
        (5, lambda image: image.transpose(1, 0, 2)),
        (6, lambda image: np.rot90(image, -1)),
        (7, lambda image: np.rot90(image, 2).transpose(1, 0, 2)),
        (8, lambda image: np.rot90(image)),
        (0, lambda image: image),
        (9, lambda image: image),
    ],
)
def test_jpeg_is_turned_as_its_exif_orientation_says(tmp_path, orientation, turned):
    stored = np.zeros((32, 48, 3), np.uint8)
    stored[:16, :24], stored[:16, 24:], stored[16:, :24] = (0, 0, 255), (0, 255, 0), (255, 0, 0)
    jpeg = cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    image = read_bytes(tmp_path, with_orientation(jpeg, orientation), ".jpg")
    expected = turned(stored)
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).mean() < 4


@pytest.mark.parametrize("shape", [(1, 1, 3), (31, 17, 3), (1, 500, 3)])
def test_small_and_odd_sizes(tmp_path, shape):
    given = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.testing.assert_array_equal(read_bytes(tmp_path, cv2.imencode(".png", given)[1].tobytes()), given)
