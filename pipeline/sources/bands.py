"""Pictures with channels as their files have them, up to 16 and of 8 or 16 bits: TIFF, NumPy's .npy, and what OpenCV reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BackendUnavailableError, SourceError
from pipeline.frames.frame import describe
from pipeline.frames.pixels import Bands

MOST_BYTES = 2 << 30
"""Of a picture in memory: what a damaged header promises is not allocated."""

TIFF_SUFFIXES = (".tif", ".tiff")
NUMPY_SUFFIX = ".npy"


def read_bands(path: Path, bands: Bands) -> NDArray[Any]:
    """Read a picture with all of its channels, in the file's order and upright as it lies there.

    Args:
        path: a TIFF, of one page or with a page for each channel; ``.npy``; or a picture that OpenCV reads, whose channels are red,
            green, blue and alpha.
        bands: what the network takes.

    Returns:
        (H, W, C) uint8 or uint16, contiguous. Owned by the caller.

    Raises:
        SourceError: it cannot be read, is larger than ``MOST_BYTES``, or has other channels.
        BackendUnavailableError: tifffile is not here.
    """
    suffix = path.suffix.lower()
    read = _read_npy if suffix == NUMPY_SUFFIX else _read_tiff if suffix in TIFF_SUFFIXES else _read_other
    if path.exists() and not path.is_file():  # asked first: to open a named pipe is to wait for its writer
        raise SourceError(f"{path}: expected a picture, got something that is no file")
    try:
        with path.open("rb") as file:
            picture = read(file, path)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error
    if picture.ndim == 2:
        picture = picture[..., None]
    elif picture.ndim == 3 and picture.shape[2] != bands.channels and picture.shape[0] == bands.channels:
        picture = np.moveaxis(picture, 0, 2)
    if picture.ndim != 3 or picture.shape[2] != bands.channels or picture.dtype != bands.stored or picture.size == 0:
        raise SourceError(
            f"{path}: expected {bands} as the network takes, (H, W, {bands.channels}) {bands.stored}, got {describe(picture)}"
        )
    return np.ascontiguousarray(picture)


def _read_npy(file: BinaryIO, path: Path) -> NDArray[Any]:
    try:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
    except ValueError as error:
        raise SourceError(
            f"{path}: expected an array as numpy.save writes it, got another file ({_line(error)})"
        ) from error
    if dtype.hasobject:
        raise SourceError(f"{path}: expected numbers, got Python objects, which are not loaded")
    _check_size(path, shape, dtype)
    file.seek(0)
    try:
        picture: NDArray[Any] = np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise SourceError(
            f"{path}: expected an array as numpy.save writes it, got a damaged one ({_line(error)})"
        ) from error
    return picture


def _read_tiff(file: BinaryIO, path: Path) -> NDArray[Any]:
    try:
        import tifffile
    except ImportError as error:
        raise BackendUnavailableError(
            f"{path}: TIFFs of any channels need tifffile, which is not here: pip install 'edgemask[tiff]'"
        ) from error
    try:
        with tifffile.TiffFile(file) as tiff:
            series = tiff.series[0]
            _check_size(path, series.shape, series.dtype)
            picture: NDArray[Any] = series.asarray()
    except SourceError:
        raise
    except Exception as error:  # what a damaged file makes of its tags, and compressions that need imagecodecs
        raise SourceError(f"{path}: expected a TIFF, got one that cannot be read ({_line(error)})") from error
    return picture.squeeze() if picture.ndim > 3 else picture


def _read_other(file: BinaryIO, path: Path) -> NDArray[Any]:
    content = np.frombuffer(file.read(), np.uint8)
    try:
        picture = cv2.imdecode(content, cv2.IMREAD_UNCHANGED) if content.size else None
    except cv2.error as error:
        raise SourceError(f"{path}: expected a picture, got a file that cannot be decoded ({error.err})") from error
    if picture is None:
        raise SourceError(f"{path}: expected a picture, got a file that is none or is damaged")
    if picture.ndim == 3 and picture.shape[2] >= 3:
        picture = picture[..., [2, 1, 0, *range(3, picture.shape[2])]]
    return np.asarray(picture)


def _check_size(path: Path, shape: tuple[int, ...], dtype: Any) -> None:
    size_bytes = int(np.prod([int(side) for side in shape], dtype=object)) * np.dtype(dtype).itemsize
    if size_bytes > MOST_BYTES:
        raise SourceError(
            f"{path}: expected at most {MOST_BYTES >> 30} GiB in memory, got {size_bytes / (1 << 30):.3g}: cut it into parts"
        )


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
