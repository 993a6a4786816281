"""What a picture file says beside its pixels: Pillow and OpenCV write it, and it comes out or is told."""

import io
import sys
from collections import deque

import cv2
import numpy as np
import pytest
from PIL import Image as PillowImage
from PIL import ImageCms, PngImagePlugin

from pipeline.errors import BackendUnavailableError, SourceError, TruncatedError
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.sinks import open_sink
from pipeline.sources import open_source, source_kind
from pipeline.sources.picture_file import read_one, read_picture

H, W = 24, 36


def picture():
    """Bright in the upper left, (H, W, 3) RGB."""
    image = np.full((H, W, 3), 40, np.uint8)
    image[: H // 2, : W // 3] = (200, 180, 90)
    image[: H // 4, W // 2 :, 2] = 120
    return image


# What each EXIF orientation does to the stored picture, as the specification's table says.
TURNS = {
    1: lambda image: image,
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.rot90(image.transpose(1, 0, 2), 2),
    8: np.rot90,
}


def exif(orientation):
    data = PillowImage.Exif()
    data[0x0112] = orientation
    return data


def heif():
    return pytest.importorskip("pillow_heif", reason="HEIC needs: pip install 'edgemask[heic]'")


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp", ".avif"])
def test_all_eight_orientations(tmp_path, suffix, orientation):
    path = tmp_path / f"a{suffix}"
    quality = {} if suffix in (".png", ".tif") else {"quality": 95}
    PillowImage.fromarray(picture()).save(path, exif=exif(orientation), **quality)
    shown = TURNS[orientation](picture())[..., ::-1]
    assert np.abs(read_picture(path).astype(int) - shown).mean() < 4


def test_heic_is_read(tmp_path):
    heif().register_heif_opener()
    large = np.repeat(np.repeat(picture(), 4, 0), 4, 1)
    PillowImage.fromarray(large).save(tmp_path / "a.heic", quality=95)
    assert np.abs(read_picture(tmp_path / "a.heic").astype(int) - large[..., ::-1]).mean() < 4


def test_without_its_package_heic_is_told_with_what_mends_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    with pytest.raises(BackendUnavailableError, match=r"HEIC cannot be decoded here: pip install 'edgemask\[heic\]'"):
        read_picture(tmp_path / "a.heic")


def test_floating_point_is_told(tmp_path):
    PillowImage.fromarray(picture()[..., 0].astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(SourceError, match="floating point"):
        read_picture(tmp_path / "a.tif")


def profile(name):
    """An RGB profile of other primaries than sRGB's, made by exchanging two of its colors."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    if name == "swapped":
        content = bytearray(
            bytes(content).replace(b"rXYZ", b"tXYZ", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"tXYZ", b"gXYZ", 1)
        )
        content = bytearray(bytes(content).replace("sRGB".encode("utf-16-be"), "xRGB".encode("utf-16-be")))
    return bytes(content)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp", ".avif"])
def test_colors_of_another_profile_are_converted(tmp_path, suffix):
    path, given = tmp_path / f"a{suffix}", PillowImage.new("RGB", (W, H), (200, 60, 60))
    given.save(path, icc_profile=profile("swapped"), quality=100)
    read = read_one(path)
    _, g, r = read.image[H // 2, W // 2].astype(int)
    assert g > r + 50, "what the file calls red is this profile's green"
    assert any("color profile" in note for note in read.notes)
    given.save(path, icc_profile=profile("sRGB"), quality=100)
    read = read_one(path)
    assert np.abs(read.image[H // 2, W // 2].astype(int) - (60, 60, 200)).max() < 5
    assert read.notes == ()


def test_a_profile_that_is_damaged_changes_nothing(tmp_path):
    PillowImage.fromarray(picture()).save(tmp_path / "a.png", icc_profile=b"\0" * 200)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), picture()[..., ::-1])


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".avif"])
def test_a_cut_out_is_never_more_opaque_than_its_source(tmp_path, suffix):
    alpha = np.full((H, W), 255, np.uint8)
    alpha[:, : W // 2] = 0
    alpha[: H // 2, W // 2 :] = 100
    rgba = np.dstack([picture(), alpha])
    PillowImage.fromarray(rgba).save(tmp_path / f"a{suffix}", lossless=True, quality=100)
    renderer = Renderer(Look(mode="cutout"), "binary")
    with (
        open_source(str(tmp_path / f"a{suffix}")) as source,
        open_sink(str(tmp_path / "o.png"), source.info, renderer) as out,
    ):
        for frame in source:
            frame.mask = np.full((H, W), 200, np.uint8)
            frame.view = renderer(frame.image, frame.mask)
            out.write(frame)
    made = np.asarray(PillowImage.open(tmp_path / "o.png"))
    np.testing.assert_array_equal(made[..., 3], np.minimum(alpha, 200))
    assert frame.image[:, : W // 2].min() == 255, "what is hidden is seen as white"


@pytest.mark.parametrize("mode", ["P", "PA", "LA", "L", "1", "I;16", "CMYK"])
def test_modes_of_pillow(tmp_path, mode):
    given = PillowImage.fromarray(picture())
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        given = PillowImage.fromarray(picture()[..., 0].astype(np.uint16) * 257)
    elif mode != "PA":
        given = given.convert(mode)
    else:
        given = given.convert("P")
        given.info["transparency"] = 3
    given.save(path)
    image = read_picture(path)
    assert image.shape == (H, W, 3)
    bright, dark = image[: H // 2, : W // 3].mean(), image[H // 2 :].mean()
    assert bright > dark


ANIMATED = {
    ".webp": {"lossless": True},
    ".png": {},
    ".avif": {"quality": 90},
    ".tif": {},
}


@pytest.mark.parametrize("suffix", ANIMATED)
def test_an_animation_is_read_like_a_video(tmp_path, suffix):
    path, durations_ms = tmp_path / f"a{suffix}", [100, 200, 300, 100]
    pages = [PillowImage.new("RGB", (W, H), (40 * number + 20,) * 3) for number in range(4)]
    timed = {} if suffix == ".tif" else {"duration": durations_ms}
    pages[0].save(path, save_all=True, append_images=pages[1:], **timed, **ANIMATED[suffix])
    with open_source(str(path)) as source:
        assert source.info.frame_count == 4
        frames = list(source)
    assert [round(float(frame.image.mean()) / 40 - 0.5) for frame in frames] == [0, 1, 2, 3]
    expected = [0, 1, 2, 3] if suffix == ".tif" else [0, 0.1, 0.3, 0.6]
    assert [frame.pts_s for frame in frames] == pytest.approx(expected, abs=0.01)
    assert len({frame.name for frame in frames}) == 4


def test_the_picture_for_readers_without_animations_is_none_of_it(tmp_path):
    pages = [PillowImage.new("RGB", (W, H), (40 * number + 20,) * 3) for number in range(3)]
    pages[0].save(tmp_path / "a.png", save_all=True, append_images=pages[1:], default_image=True, duration=100)
    with open_source(str(tmp_path / "a.png")) as source:
        assert source.info.frame_count == 2
        assert [round(float(frame.image.mean()) / 40 - 0.5) for frame in source] == [1, 2]


def test_an_animation_that_is_cut_off_gives_what_is_there(tmp_path):
    rng = np.random.default_rng(0)
    pages = [PillowImage.fromarray(rng.integers(0, 256, (H, W, 3), np.uint8)) for _ in range(4)]
    pages[0].save(tmp_path / "a.png", save_all=True, append_images=pages[1:])
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) * 3 // 4])
    seen = []
    with open_source(str(tmp_path / "a.png")) as source, pytest.raises(TruncatedError, match="cut off"):
        deque(map(seen.append, source))
    assert 1 <= len(seen) < 4


def test_in_a_folder_the_first_picture_of_an_animation_is_read_and_the_rest_told(tmp_path, said):
    pages = [PillowImage.new("RGB", (W, H), (40 * number + 20,) * 3) for number in range(3)]
    pages[0].save(tmp_path / "a.webp", save_all=True, append_images=pages[1:])
    pages[1].save(tmp_path / "b.png")
    with open_source(str(tmp_path)) as source:
        assert len(list(source)) == 2
    assert any("a.webp: an animation or document" in line for line in said)


def test_a_file_is_what_its_content_says(tmp_path):
    image = PillowImage.fromarray(picture())
    for name, kind in (("a.jfif", "JPEG"), ("b", "PNG"), ("c.dat", "WEBP"), ("d.mkv.part", "TIFF"), ("e.jpg", "PNG")):
        image.save(tmp_path / name, format=kind)
        assert source_kind(str(tmp_path / name)) == "pictures", name
    (tmp_path / "f.txt").write_text("no picture")
    (tmp_path / "g.mp4").write_bytes(b"\0\0\0\x18ftypisom\0\0\0\0isommp42")
    assert source_kind(str(tmp_path / "g.mp4")) == "video"
    (tmp_path / "h.jpg").write_bytes(b"\0\0\0\x18ftypisom\0\0\0\0isommp42")
    assert source_kind(str(tmp_path / "h.jpg")) == "video"
    (tmp_path / "h.jpg").unlink()
    with open_source(str(tmp_path)) as source:
        assert len(list(source)) == 5
        assert source.info.left_out == "2 files that are no pictures (f.txt, …)"


def test_a_phone_s_tiles_are_one_picture(tmp_path):
    """HEIC in tiles of 512 pixels, as phones write it: the whole picture, not its first tile."""
    heif().register_heif_opener()
    image = np.zeros((700, 900, 3), np.uint8)
    image[350:, 450:] = 220
    PillowImage.fromarray(image).save(tmp_path / "a.heic", quality=90)
    read = read_picture(tmp_path / "a.heic")
    assert read.shape == (700, 900, 3)
    assert read[600, 800].mean() > 200 > 40 > read[100, 100].mean()


def test_a_picture_of_half_the_machine_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(5 << 30)  # takes no room on the disk
    with pytest.raises(SourceError, match="at most 2048 MiB, got 5120 MiB"):
        read_picture(tmp_path / "a.jpg")


def test_more_pixels_than_pillow_likes_are_read_without_a_warning(tmp_path, recwarn):
    before = PillowImage.MAX_IMAGE_PIXELS
    image = np.zeros((9500, 9500), np.uint8)  # 90 megapixels
    cv2.imwrite(str(tmp_path / "a.png"), image)
    assert read_picture(tmp_path / "a.png").shape == (9500, 9500, 3)
    assert not recwarn.list
    assert before == PillowImage.MAX_IMAGE_PIXELS


def test_text_in_a_picture_is_left_alone(tmp_path):
    words = PngImagePlugin.PngInfo()
    words.add_text("Comment", "x" * 100_000, zip=True)
    buffer = io.BytesIO()
    PillowImage.fromarray(picture()).save(buffer, format="PNG", pnginfo=words)
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), picture()[..., ::-1])
