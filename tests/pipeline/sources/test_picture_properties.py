"""What a picture file says beside its pixels: Pillow and OpenCV write it, and it comes out or is told."""

import io
import struct
import sys
import zlib
from collections import deque

import av
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
from pipeline.sources.still_colors import colors_of

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


def test_a_large_picture_is_converted_as_a_small_one(tmp_path):
    """Some rows at a time, which nobody must see."""
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (1203, 2001, 4), dtype=np.uint8)
    PillowImage.fromarray(rgba).save(tmp_path / "a.png", icc_profile=profile("swapped"), compress_level=1)
    read = read_one(tmp_path / "a.png")
    transform = ImageCms.buildTransform(io.BytesIO(profile("swapped")), ImageCms.createProfile("sRGB"), "RGB", "RGB")
    rgb = np.asarray(ImageCms.applyTransform(PillowImage.fromarray(rgba[..., :3]), transform), np.uint32)
    weight = rgba[..., 3:].astype(np.uint32)
    np.testing.assert_array_equal(read.image[..., ::-1], (rgb * weight + 255 * (255 - weight) + 127) // 255)
    np.testing.assert_array_equal(read.alpha, rgba[..., 3])
    assert read.image.flags.c_contiguous


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


def write_avif(path, rgb, tags, pix_fmt="yuv444p10le", codec="libsvtav1"):
    """An AVIF of FFmpeg's, whose colors have numbers: primaries, transfer, matrix, range."""
    with av.open(str(path), "w", format="avif") as out:
        stream = out.add_stream(codec, rate=1, options={"crf": "5"})
        stream.height, stream.width = rgb.shape[:2]
        stream.pix_fmt = pix_fmt
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = tags
        frame = av.VideoFrame.from_ndarray(rgb, format="rgb48le" if rgb.dtype == np.uint16 else "rgb24")
        frame = frame.reformat(format=pix_fmt, dst_colorspace=tags[2], dst_color_range=tags[3])
        frame.color_primaries, frame.color_trc, frame.colorspace, frame.color_range = tags
        frame.pts = 0
        for packet in (*stream.encode(frame), *stream.encode()):
            out.mux(packet)


def ramps():
    """(64, 96, 3) RGB whose colors are all inside sRGB, also as Display P3's."""
    y, x = np.mgrid[:64, :96]
    return np.dstack([100 + x // 2, 100 + y // 2, 150 - x // 4]).astype(np.uint8)


def from_p3(rgb):
    """Display P3 to sRGB as the standards' numbers have it."""
    matrix = np.array([[1.22494, -0.22494, 0], [-0.042057, 1.042057, 0], [-0.019638, -0.078636, 1.098274]])
    value = rgb / 255
    linear = np.einsum(
        "dc,hwc->hwd", matrix, np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    )
    return 255 * np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clip(0) ** (1 / 2.4) - 0.055)


@pytest.fixture
def quiet_encoder(monkeypatch):
    monkeypatch.setenv("SVT_LOG", "1")


def test_display_p3_of_an_avif_is_converted_as_the_standards_say(tmp_path, quiet_encoder):
    write_avif(tmp_path / "a.avif", ramps(), (12, 13, 1, 2), "yuv420p10le")
    read = read_one(tmp_path / "a.avif")
    stored = np.asarray(PillowImage.open(tmp_path / "a.avif"))
    assert np.abs(read.image[..., ::-1] - from_p3(stored)).mean() < 1
    assert np.abs(stored.astype(int) - from_p3(stored)).mean() > 1.5, "the conversion is to be seen"
    assert read.notes == ("10 bits a color: made 8", "wide colors (P3): brought to BT.709")


def test_high_dynamic_range_of_an_avif_is_tone_mapped(tmp_path, quiet_encoder):
    """A gray ramp of PQ: 203 cd/m² is white's place (ITU-R BT.2408), so that what is below it is darkened little and all stays gray."""
    code = np.repeat(np.linspace(0, 65535, 128).astype(np.uint16)[None, :, None], 64, 0).repeat(3, 2)
    write_avif(tmp_path / "a.avif", np.ascontiguousarray(code), (9, 16, 9, 2), "yuv420p10le")
    read = read_one(tmp_path / "a.avif")
    gray = read.image.astype(int).mean(axis=0)
    stored = np.asarray(PillowImage.open(tmp_path / "a.avif")).astype(int).mean(axis=(0, 2))
    assert np.ptp(gray, axis=1).mean() < 10  # PQ makes much of the little that the encoder adds
    assert (np.diff(gray.mean(axis=1)) > -1.5).all()
    assert gray[-1].min() > 240, "the brightest stays white"
    assert np.abs(gray.mean(axis=1) - stored).mean() > 10, "PQ shown as it is would be flat"
    assert "high dynamic range (PQ): brought to BT.709" in read.notes


def test_a_png_s_numbers_of_colors_are_read(tmp_path):
    path = tmp_path / "a.png"
    PillowImage.fromarray(ramps()).save(path)
    content = path.read_bytes()
    body = b"cICP" + bytes((12, 13, 0, 1))
    path.write_bytes(content[:33] + struct.pack(">I", 4) + body + struct.pack(">I", zlib.crc32(body)) + content[33:])
    assert np.abs(read_picture(path)[..., ::-1] - from_p3(ramps())).mean() < 1


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_bits_of_heic_are_told_and_its_colors_read(tmp_path, bits):
    pillow_heif = heif()
    wide = ramps().astype(np.uint16) * 257
    image = pillow_heif.from_bytes("RGB;16", (96, 64), wide.tobytes()) if bits > 8 else None
    pillow_heif.register_heif_opener()
    if image is None:
        PillowImage.fromarray(ramps()).save(tmp_path / "a.heic", quality=95)
    else:
        pillow_heif.options.SAVE_HDR_TO_12_BIT = bits == 12
        image.save(
            tmp_path / "a.heic", quality=95, color_primaries=12, transfer_characteristics=13, matrix_coefficients=1
        )
        pillow_heif.options.SAVE_HDR_TO_12_BIT = False
    read = read_one(tmp_path / "a.heic")
    if bits == 8:
        assert read.notes == ()
        assert np.abs(read.image[..., ::-1].astype(int) - ramps()).mean() < 3
    else:
        assert read.notes == (f"{bits} bits a color: made 8", "wide colors (P3): brought to BT.709")
        assert np.abs(read.image[..., ::-1] - from_p3(ramps())).mean() < 3


def test_a_profile_counts_for_more_than_numbers(tmp_path):
    path = tmp_path / "a.avif"
    PillowImage.fromarray(ramps()).save(path, icc_profile=profile("swapped"), quality=100)
    content = path.read_bytes()
    assert colors_of(content).bits == 8
    assert not any("BT.709" in note for note in read_one(path).notes)


@pytest.mark.parametrize("cut", [20, 60, 150, 250])
def test_colors_of_a_damaged_file_are_none_or_those(tmp_path, cut):
    PillowImage.fromarray(ramps()).save(tmp_path / "a.avif")
    content = (tmp_path / "a.avif").read_bytes()
    whole, part = colors_of(content), colors_of(content[:cut])
    assert all(one in (None, other) for one, other in zip(part, whole, strict=True))


def test_sixteen_bits_are_told(tmp_path):
    deep = ramps().astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "a.png"), deep)
    cv2.imwrite(str(tmp_path / "a.tif"), deep)
    for name in ("a.png", "a.tif"):
        assert read_one(tmp_path / name).notes == ("16 bits a color: made 8",), name


def test_pictures_behind_the_first_are_told(tmp_path):
    first, second = (PillowImage.fromarray(picture()) for _ in range(2))
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    assert any("other pictures behind the first" in note for note in read_one(tmp_path / "a.jpg").notes)


EVERYDAY = {
    "a.tga": {},
    "a.ico": {"sizes": [(W, H)]},
    "a.qoi": {},
    "a.pcx": {},
    "a.sgi": {},
    "a.dds": {},
    "a.jp2": {},
    "a.ppm": {},
    "a.bmp": {},
    "lzw.tif": {"compression": "tiff_lzw"},
    "zstd.tif": {"compression": "zstd"},
    "packed.tif": {"compression": "packbits"},
}


@pytest.mark.parametrize("name", EVERYDAY)
def test_formats_are_read_as_pillow_reads_them(tmp_path, name):
    path = tmp_path / name
    PillowImage.fromarray(picture()).save(path, **EVERYDAY[name])
    assert source_kind(str(path)) == "pictures"
    with PillowImage.open(path) as opened:
        shown = np.asarray(opened.convert("RGB"))
    np.testing.assert_array_equal(read_picture(path), shown[..., ::-1])


@pytest.mark.parametrize("largest", [100, 255, 1023, 65535])
def test_a_ppm_counts_to_its_own_largest_value(tmp_path, largest):
    values = np.round(picture() / 255 * largest).astype(">u2" if largest > 255 else np.uint8)
    gray = np.ascontiguousarray(values[..., 0])
    (tmp_path / "a.pgm").write_bytes(f"P5 {W} {H} {largest}\n".encode() + gray.tobytes())
    assert np.abs(read_picture(tmp_path / "a.pgm")[..., 0].astype(int) - picture()[..., 0]).max() <= 2


def test_lab_is_converted_to_the_colors_that_it_was_made_of(tmp_path):
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    ImageCms.profileToProfile(PillowImage.fromarray(picture()), srgb, lab, outputMode="LAB").save(tmp_path / "a.tif")
    assert np.abs(read_picture(tmp_path / "a.tif").astype(int) - picture()[..., ::-1]).mean() < 2


def test_32_bits_are_refused(tmp_path):
    PillowImage.fromarray(np.full((H, W), 1 << 20, np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(SourceError, match="got one of 32 bits, whose brightest value nobody knows"):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        (b"gAMA", struct.pack(">I", 100_000), "a gamma of 1 (gAMA)"),
        (b"gAMA", struct.pack(">I", 45_455), None),
        (b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000), "other primaries (cHRM)"),
        (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000), None),
        (b"pHYs", struct.pack(">IIB", 2, 1, 0), "pixels that are not square (1:2)"),
        (b"pHYs", struct.pack(">IIB", 2835, 2835, 1), None),
    ],
)
def test_what_a_png_says_beside_its_pixels_is_told(tmp_path, kind, body, words):
    PillowImage.fromarray(picture()).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    (tmp_path / "a.png").write_bytes(content[:33] + chunk + content[33:])
    notes = read_one(tmp_path / "a.png").notes
    assert notes == () if words is None else any(words in note for note in notes)


def test_a_fax_s_pixels_are_told(tmp_path):
    PillowImage.fromarray(picture()).convert("1").save(tmp_path / "a.tif", compression="group4", dpi=(204, 98))
    assert any("pixels that are not square" in note for note in read_one(tmp_path / "a.tif").notes)
