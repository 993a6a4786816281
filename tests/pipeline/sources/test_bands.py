"""Pictures with channels as their files have them, and what is no such picture."""

import io

import cv2
import numpy as np
import pytest

from pipeline.errors import ShapeError, SourceError
from pipeline.frames.frame import Frame
from pipeline.frames.pixels import Bands, bands_of, expected, frames_nhw, frames_shape, input_type, is_pixels
from pipeline.sources import open_source
from pipeline.sources.bands import read_bands

tifffile = pytest.importorskip("tifffile")


def picture(channels, bits, size_hw=(12, 17)):
    return np.random.default_rng(channels).integers(0, 1 << bits, (*size_hw, channels)).astype(f"uint{bits}")


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 4, 5, 13])
def test_what_is_written_is_read(tmp_path, channels, bits):
    image, bands = picture(channels, bits), Bands(channels, bits)
    minisblack = {"photometric": "minisblack"}
    np.save(tmp_path / "last.npy", image)
    np.save(tmp_path / "first.npy", np.moveaxis(image, 2, 0))
    together, apart = ({"planarconfig": how} if channels > 1 else {} for how in ("contig", "separate"))
    tifffile.imwrite(tmp_path / "last.tif", image, **together, **minisblack)
    tifffile.imwrite(tmp_path / "first.tiff", np.moveaxis(image, 2, 0), **apart, **minisblack)
    tifffile.imwrite(tmp_path / "pages.tif", np.moveaxis(image, 2, 0), **minisblack)
    tifffile.imwrite(tmp_path / "deflated.tif", image, compression="zlib", **together, **minisblack)
    if channels == 1:
        np.save(tmp_path / "flat.npy", image[..., 0])
    for path in tmp_path.iterdir():
        read = read_bands(path, bands)
        np.testing.assert_array_equal(read, image, err_msg=path.name)
        assert read.dtype == image.dtype
        assert read.flags.c_contiguous


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_has_red_first(tmp_path, channels):
    image = picture(channels, 16)
    swapped = image[..., [2, 1, 0, 3][:channels]] if channels > 1 else image
    cv2.imwrite(str(tmp_path / "a.png"), swapped)
    np.testing.assert_array_equal(read_bands(tmp_path / "a.png", Bands(channels, 16)), image)


def huge_header():
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<u2", "fortran_order": False, "shape": (1 << 20, 1 << 20, 4)})
    return file.getvalue()


def pickled():
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return file.getvalue()


def saved(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", huge_header(), r"expected at most 2 GiB in memory, got 8\.19e\+03"),
        ("a.npy", pickled(), "expected numbers, got Python objects, which are not loaded"),
        ("a.npy", b"text", "expected an array as numpy.save writes it, got another file"),
        ("a.npy", saved(picture(4, 16))[:-9], "expected an array as numpy.save writes it, got a damaged one"),
        (
            "a.npy",
            saved(picture(3, 16)),
            r"expected 4 channels of 16 bits as the network takes, .* got \(12, 17, 3\) uint16",
        ),
        ("a.npy", saved(picture(4, 8)), r"expected 4 channels of 16 bits .* got \(12, 17, 4\) uint8"),
        ("a.npy", saved(picture(4, 8).astype(np.float32)), r"got \(12, 17, 4\) float32"),
        ("a.tif", b"II*\0\0\0\0\0", "expected a TIFF, got one that cannot be read"),
        ("a.tif", b"", "expected a TIFF, got one that cannot be read"),
        ("a.png", b"text", "expected a picture, got a file that is none or is damaged"),
        ("a.png", b"", "expected a picture, got a file that is none or is damaged"),
    ],
)
def test_what_is_refused_is_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message) as error:
        read_bands(tmp_path / name, Bands(4, 16))
    assert "\n" not in str(error.value)
    with pytest.raises(SourceError, match=r"none: cannot be read|none.npy: cannot be read"):
        read_bands(tmp_path / "none.npy", Bands(4, 16))


def test_a_folder_for_a_network_of_such_channels(tmp_path):
    for index in range(3):
        tifffile.imwrite(tmp_path / f"{index}.tif", picture(4, 16), photometric="minisblack")
    cv2.imwrite(str(tmp_path / "3.jpg"), picture(3, 8))
    np.save(tmp_path / "label.npy", picture(1, 8))
    with open_source(str(tmp_path)) as source:
        source.pixels = "4x16"
        frames = iter(source)
        assert [next(frames).name for _ in range(3)] == ["0", "1", "2"]
        with pytest.raises(SourceError, match=r"3\.jpg: expected 4 channels of 16 bits as the network takes"):
            next(frames)
    with open_source(str(tmp_path / "*.tif")) as source:
        source.pixels = "4x16"
        frames = list(source)
    assert [(frame.format, frame.pixels.dtype, frame.size_hw) for frame in frames] == [
        ("4x16", np.uint16, (12, 17))
    ] * 3


def test_arrays_alone_in_a_folder_are_pictures_of_networks_that_take_them(tmp_path):
    np.save(tmp_path / "a.npy", picture(4, 8))
    with open_source(str(tmp_path)) as source:
        source.pixels = "4x8"
        (frame,) = source
    np.testing.assert_array_equal(frame.pixels, picture(4, 8))
    with (
        open_source(str(tmp_path)) as source,
        pytest.raises(SourceError, match=r"expected an ordinary picture .* got an array"),
    ):
        list(source)


def test_a_frame_of_such_channels():
    image = picture(4, 16)
    frame = Frame(image, 0, 0.0, "x", "x", "4x16")
    assert (frame.size_hw, frame.image.shape, frame.image.dtype) == ((12, 17), (12, 17, 3), np.uint8)
    np.testing.assert_allclose(frame.image, image[..., 2::-1] / image[..., :3].max() * 255, atol=1)
    np.testing.assert_array_equal(frame.as_pixels("4x16"), image)
    assert frame.as_pixels("4x16").dtype == np.int32
    with pytest.raises(
        ShapeError,
        match=r"frame 0 of x: expected an ordinary picture as the network takes, got 4 channels of 16 bits: give",
    ):
        frame.as_pixels("bgr")
    with pytest.raises(
        ShapeError, match="expected 5 channels of 16 bits as the network takes, got 4 channels of 16 bits"
    ):
        frame.as_pixels("5x16")
    ordinary = Frame(picture(3, 8), 0, 0.0, "x", "x")
    with pytest.raises(
        ShapeError, match="expected 4 channels of 8 bits as the network takes, got an ordinary picture: give files"
    ):
        ordinary.as_pixels("4x8")
    np.testing.assert_array_equal(Frame(picture(1, 8), 0, 0.0, "x", "x", "1x8").image, np.repeat(picture(1, 8), 3, 2))
    with pytest.raises(ShapeError, match=r"expected \(H, W, 4\) uint16, got \(12, 17, 4\) uint8"):
        Frame(picture(4, 8), 0, 0.0, "x", "x", "4x16")


def test_names_of_such_frames():
    assert bands_of("4x16") == Bands(4, 16)
    assert (bands_of("bgr"), bands_of("17x8"), bands_of("4x12"), bands_of("0x8")) == (None,) * 4
    assert is_pixels("16x8")
    assert is_pixels("nv12")
    assert not is_pixels("rgb")
    assert not is_pixels(3)
    assert frames_shape("5x8", 2, (6, 7)) == (2, 6, 7, 5)
    assert frames_nhw("5x8", (2, 6, 7, 5)) == (2, 6, 7)
    assert frames_nhw("5x8", (2, 6, 7, 3)) is None
    assert (input_type("5x8"), input_type("5x16"), input_type("bgr")) == (np.uint8, np.int32, np.uint8)
    assert expected("4x16") == "(N, H, W, 4) int32"
