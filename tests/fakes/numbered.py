"""Pictures that carry a number which survives scaling and H.264, so that a recording says which frames it holds."""

import av
import numpy as np

_ROWS = _COLUMNS = 4


def picture(number, size_hw):
    """(H, W, 3) uint8 BGR: sixteen blocks, black or white, the number's bits."""
    bits = (number >> np.arange(_ROWS * _COLUMNS)) & 1
    rows = np.arange(size_hw[0]) * _ROWS // size_hw[0]
    columns = np.arange(size_hw[1]) * _COLUMNS // size_hw[1]
    grey = (bits.reshape(_ROWS, _COLUMNS)[rows][:, columns] * 200 + 25).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def number_of(image):
    """The number of a picture, (H, W) or (H, W, 3)."""
    height, width = image.shape[:2]
    rows = (2 * np.arange(_ROWS) + 1) * height // (2 * _ROWS)
    columns = (2 * np.arange(_COLUMNS) + 1) * width // (2 * _COLUMNS)
    grey = image if image.ndim == 2 else image[..., 1]
    return int(((grey[rows][:, columns] > 125).reshape(-1) << np.arange(_ROWS * _COLUMNS)).sum())


def numbers_in(path):
    """(number, seconds) of each frame that a player shows of a video."""
    with av.open(f"file:{path}") as container:
        return [
            (number_of(frame.to_ndarray(format="gray")), float(frame.pts * frame.time_base))
            for frame in container.decode(video=0)
        ]
