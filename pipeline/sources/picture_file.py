"""A picture file as it is shown: upright, in sRGB's colors, on white where it is transparent.

OpenCV decodes; Pillow says what else the file holds, converts colors by LittleCMS, and decodes what OpenCV cannot or reads in part:
AVIF's and HEIC's mirrors, tiles and turns, and animations.
"""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image as PillowImage

from pipeline.errors import BackendUnavailableError, EdgemaskError, SourceError, TruncatedError
from pipeline.frames.frame import Image
from pipeline.sources.bands import NUMPY_SUFFIX
from pipeline.sources.content import begins_as_heif, check_size
from pipeline.sources.still_colors import StillColors, colors_of, narrowed

if TYPE_CHECKING:
    from PIL import ImageCms

# What OpenCV reads in part: no mirrors, no turns, the first tile; whatever the largest value of a PPM is.
_BY_PILLOW = frozenset(("AVIF", "HEIF", "PPM"))
# Not a phone's JPEG with previews behind it, nor its HEIC.
_SEVERAL = frozenset(("GIF", "WEBP", "PNG", "AVIF", "TIFF"))
_BITS_PER_SAMPLE = 258
_SRGB_GAMMA = 0.45455
_SRGB_XY = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # of white, red, green and blue
_SAME_COLOR, _SAME_SHAPE = 0.01, 0.02
_limit_lock = threading.Lock()
_PAGE_S = 1.0  # pages of a document and pictures without a time


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as it is shown; its arrays are the caller's.

    Attributes:
        image: (H, W, 3) uint8 BGR, contiguous.
        alpha: (H, W) uint8, 255 is opaque; None where all of it is.
        duration_s: how long an animation shows it.
        notes: what was done to it, each a few words for one line.
        of: how many pictures its file has.
    """

    image: Image
    alpha: Image | None = None
    duration_s: float = _PAGE_S
    notes: tuple[str, ...] = ()
    of: int = 1


def read_picture(path: Path) -> Image:
    """Read a picture file as it is shown, the first one where it holds several.

    Returns:
        (H, W, 3) uint8, BGR, contiguous. Owned by the caller.

    Raises:
        SourceError: it is missing, no picture, damaged, or larger than OPENCV_IO_MAX_IMAGE_PIXELS allows.
        BackendUnavailableError: it is HEIC, and what reads it is not here.
    """
    return read_one(path).image


def read_one(path: Path) -> Picture:
    """The same with its transparency; raises as ``read_picture``."""
    content = _read(path)
    with _opened(path, content) as probe:
        picture = replace(_decoded(path, content, probe), of=_count(probe))
    return replace(picture, notes=(*picture.notes, *_left_out(content, probe)))


def read_all(path: Path) -> Iterator[Picture]:
    """Every picture of an animation or document, in order; raises as ``read_picture``."""
    content = _read(path)
    with _opened(path, content) as probe:
        count = _count(probe)
        if probe is None or count == 1:
            yield _decoded(path, content, probe)
            return
        # The picture for readers that know no animations is not a part of it.
        first = 1 if probe.info.get("default_image") else 0
        colors = _bits_of(probe, colors_of(content))
        for index in range(first, count):
            try:
                probe.seek(index)
                picture = _by_pillow(path, probe, colors)
            except (EOFError, OSError, ValueError, SyntaxError) as error:
                raise TruncatedError(
                    f"{path}: cut off or damaged after {index - first} of {count - first} pictures"
                ) from error
            yield picture


def count_pictures(path: Path) -> int:
    """How many pictures an animation or a document has; 1 for any other file, and where nobody can tell."""
    try:
        with _opened(path, _read(path)) as probe:
            count = _count(probe)
            return count - 1 if count > 1 and probe is not None and probe.info.get("default_image") else count
    except EdgemaskError:  # what is wrong with it is said when it is read
        return 1


def _left_out(content: bytes, probe: PillowImage.Image | None) -> tuple[str, ...]:
    """What else a file has that is one picture, in sentences."""
    if probe is None:
        return ()
    said = [*_colors_of_png(probe), *_shape_of_pixels(probe)]
    if probe.format == "MPO":
        said.append("other pictures behind the first (a preview, a gain map or a second eye's): left out")
    if probe.format == "JPEG" and b"\xff\xd9\xff\xd8\xff" in content:
        said.append("another JPEG follows the first and is left out: if it is a video, call it .mjpeg")
    beside = [one for one in ("depth_images", "aux") if probe.info.get(one)]
    if probe.format == "HEIF" and beside:
        said.append("pictures beside it (depth, gain map): left out")
    return tuple(said)


def _colors_of_png(probe: PillowImage.Image) -> Iterator[str]:
    """Colors that a PNG describes by curves and coordinates, where it has no profile."""
    info = probe.info
    if probe.format != "PNG" or "icc_profile" in info or "srgb" in info:
        return
    gamma = info.get("gamma", _SRGB_GAMMA)
    if abs(gamma - _SRGB_GAMMA) > _SAME_COLOR:
        yield f"a gamma of {gamma:.3g} (gAMA): shown as if it were sRGB's"
    if any(abs(one - other) > _SAME_COLOR for one, other in zip(info.get("chromaticity", ()), _SRGB_XY, strict=False)):
        yield "colors of other primaries (cHRM): shown as if they were sRGB's"


def _shape_of_pixels(probe: PillowImage.Image) -> Iterator[str]:
    x, y = map(float, probe.info.get("aspect") or probe.info.get("dpi") or probe.info.get("jfif_density") or (1, 1))
    # An aspect of PNG counts pixels a unit, as dots per inch do.
    if x > 0 and y > 0 and abs(x / y - 1) > _SAME_SHAPE:
        yield f"pixels that are not square (1:{x / y:.3g}): shown as square ones"


def _count(probe: PillowImage.Image | None) -> int:
    if probe is None or probe.format not in _SEVERAL:
        return 1
    return max(1, int(getattr(probe, "n_frames", 1)))


def _read(path: Path) -> bytes:
    if path.suffix.lower() == NUMPY_SUFFIX:
        raise SourceError(f"{path}: expected an ordinary picture as the network takes, got an array")
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # asked first: to open a named pipe is to wait for its writer
            raise SourceError(f"{path}: expected a picture, got something that is no file")
        with path.open("rb") as file:
            check_size(path, os.fstat(file.fileno()))
            return file.read()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from error


@contextmanager
def _opened(path: Path, content: bytes) -> Iterator[PillowImage.Image | None]:
    """What Pillow says of a file, not yet decoded; None where it knows no such format."""
    is_heif = begins_as_heif(content[:64])
    if is_heif:
        _register_heif(path)
    probe = None
    # Pillow's own limit is lower than OpenCV's, which is told. One thread at a time changes it.
    with _limit_lock, warnings.catch_warnings():
        before, PillowImage.MAX_IMAGE_PIXELS = PillowImage.MAX_IMAGE_PIXELS, None
        try:
            probe = PillowImage.open(io.BytesIO(content)) if content else None
        except Exception as error:
            if is_heif:
                raise SourceError(
                    f"{path}: expected a picture, got a file that cannot be decoded ({_first_line(error)})"
                ) from error
        finally:
            PillowImage.MAX_IMAGE_PIXELS = before
    if probe is None:
        yield None
        return
    with probe:
        if probe.width * probe.height > _most_pixels():
            raise _too_large(path)
        yield probe


def _register_heif(path: Path) -> None:
    try:
        import pillow_heif
    except ImportError as error:
        raise BackendUnavailableError(f"{path}: HEIC cannot be decoded here: pip install 'edgemask[heic]'") from error
    pillow_heif.register_heif_opener(thumbnails=False)


def _decoded(path: Path, content: bytes, probe: PillowImage.Image | None) -> Picture:
    colors = _bits_of(probe, colors_of(content))
    is_pillows = probe is not None and (probe.format in _BY_PILLOW or probe.mode in ("CMYK", "LAB"))
    if probe is not None and is_pillows:
        return _by_pillow(path, probe, colors)
    if probe is None:
        return Picture(_by_opencv(path, content))
    try:
        image = _by_opencv(path, content)
    except SourceError:
        if probe.format in ("JPEG", "PNG"):  # damaged: Pillow would say no more
            raise
        return _by_pillow(path, probe, colors)
    profile = probe.info.get("icc_profile")
    alpha = None
    if _is_transparent(probe):
        from PIL import ImageOps

        alpha = np.asarray(ImageOps.exif_transpose(probe).convert("RGBA").getchannel("A"), np.uint8)
        if alpha.shape != image.shape[:2]:
            alpha = None
    return _shown(image, alpha, profile, colors)


def _by_opencv(path: Path, content: bytes) -> Image:
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    except cv2.error as error:
        if "MAX_IMAGE" in str(error):
            raise _too_large(path) from error
        raise SourceError(f"{path}: expected a picture, got a file that cannot be decoded ({error.err})") from error
    if image is None:
        got = "a file that is none or is damaged" if content else "an empty file"
        raise SourceError(f"{path}: expected a picture, got {got}")
    return np.ascontiguousarray(image, dtype=np.uint8)


def _by_pillow(path: Path, probe: PillowImage.Image, colors: StillColors) -> Picture:
    if probe.mode == "F" or (probe.mode == "I" and probe.format != "PPM"):
        got = "one in floating point" if probe.mode == "F" else "one of 32 bits, whose brightest value nobody knows"
        raise SourceError(
            f"{path}: expected a picture of whole numbers of 8 or 16 bits, got {got}: save it with 8 or 16 bits a color"
        )
    # Only now, as all below: few pictures need more of Pillow than what it says of them.
    from PIL import ImageCms, ImageOps

    try:
        upright = ImageOps.exif_transpose(probe)
        profile = probe.info.get("icc_profile")
        alpha = None
        if _is_transparent(probe):
            alpha = np.asarray(upright.convert("RGBA").getchannel("A"), np.uint8)
        if upright.mode == "CMYK" and profile:
            rgb, profile = _in_srgb(upright, profile), None
        elif upright.mode == "LAB":
            rgb, profile = _in_srgb(upright, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()), None
        elif upright.mode.startswith("I"):  # Pillow brings those of PPM to 16 bits, whatever their largest value is
            rgb = PillowImage.fromarray((np.asarray(upright) >> 8).astype(np.uint8)).convert("RGB")
        else:
            rgb = upright.convert("RGB")
    except (OSError, ValueError, SyntaxError, ImageCms.PyCMSError) as error:
        raise SourceError(
            f"{path}: expected a picture, got a file that cannot be decoded ({_first_line(error)})"
        ) from error
    image = np.asarray(cv2.cvtColor(np.asarray(rgb), cv2.COLOR_RGB2BGR), np.uint8)
    picture = _shown(image, alpha, profile, colors)
    duration_ms = probe.info.get("duration")  # some formats tell it with the pixels
    if duration_ms is None:
        return picture
    # Browsers show a picture whose time is 0 for a tenth of a second.
    return replace(picture, duration_s=float(duration_ms) / 1000 or 0.1)


def _bits_of(probe: PillowImage.Image | None, colors: StillColors) -> StillColors:
    """With the bits of a color where Pillow knows them."""
    if probe is None or colors.bits is not None:
        return colors
    tags = getattr(probe, "tag_v2", None)  # of TIFF
    if tags is not None:
        return colors._replace(bits=max(tags.get(_BITS_PER_SAMPLE, (8,))))
    return colors._replace(bits=16 if probe.mode.startswith("I") else None)


def _is_transparent(probe: PillowImage.Image) -> bool:
    return probe.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in probe.info


def _shown(image: Image, alpha: Image | None, profile: bytes | None, colors: StillColors) -> Picture:
    """Colors as sRGB's, and white below what is transparent. A profile counts for more than numbers of colors."""
    notes = []
    if colors.bits is not None and colors.bits > 8:
        notes.append(f"{colors.bits} bits a color: made 8")
    if not profile:
        image, done = narrowed(image, colors.primaries, colors.transfer)
        notes.extend(done)
    transform = _transform(profile) if profile else None
    if transform is not None:
        notes.append("another color profile than sRGB: converted")
    if alpha is not None and int(alpha.min()) == 255:
        alpha = None
    if alpha is not None:
        notes.append("transparent in part: seen on white, and no cut-out shows more of it")
    # In place, some rows at a time: what is made on the way takes several times as much memory.
    for rows in _strips(image) if transform is not None or alpha is not None else ():
        strip = image[rows]
        if transform is not None:
            from PIL import ImageCms

            rgb = PillowImage.fromarray(np.ascontiguousarray(strip[..., ::-1]))
            strip[...] = np.asarray(ImageCms.applyTransform(rgb, transform))[..., ::-1]
        if alpha is not None:
            weight = alpha[rows, :, None].astype(np.uint16)
            strip[...] = (strip * weight + 255 * (255 - weight) + 127) // 255
    return Picture(image, alpha, notes=tuple(notes))


def _strips(image: Image) -> Iterator[slice]:
    """Its rows, as many at a time as have a million pixels."""
    height, width = image.shape[:2]
    step = max(1, (1 << 20) // width)
    yield from (slice(top, top + step) for top in range(0, height, step))


@lru_cache(maxsize=8)
def _transform(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """From an RGB profile to sRGB; None where it is sRGB already, of other colors, or damaged."""
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != "RGB" or "srgb" in (source.profile.profile_description or "").lower():
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    except (OSError, ImageCms.PyCMSError):
        return None


def _in_srgb(image: PillowImage.Image, profile: bytes) -> PillowImage.Image:
    from PIL import ImageCms

    srgb = ImageCms.createProfile("sRGB")
    try:
        converted = ImageCms.profileToProfile(
            image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), srgb, outputMode="RGB"
        )
    except (OSError, ImageCms.PyCMSError):
        converted = None
    return converted or image.convert("RGB")


def _most_pixels() -> int:
    wanted = os.environ.get("OPENCV_IO_MAX_IMAGE_PIXELS", "")
    return int(wanted) if wanted.isdecimal() else 1 << 30


def _too_large(path: Path) -> SourceError:
    return SourceError(
        f"{path}: expected a picture of at most {_most_pixels()} pixels, got a larger one: "
        "make it smaller, or set OPENCV_IO_MAX_IMAGE_PIXELS"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
