"""Frames as a run tells its watchers of them: computed, with the engine's own mask."""

import numpy as np

from pipeline.frames.frame import Frame


def noise(seed, shape=(24, 32, 3), dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def computed(index, pixels=None, mask=None, source="door", kind="bgr", **facts):
    """A frame as a run tells of it."""
    pixels = noise(index) if pixels is None else pixels
    frame = Frame(pixels, index, index / 25, source, f"{index:06d}", kind, **facts)
    frame.mask = np.full(frame.size_hw, 200, np.uint8) if mask is None else mask
    return frame


FACTS = {
    "schema": 1,
    "events": [],
    "note": "",
    "engine": {"description": "test", "in_flight": 1},
    "bundles": {},
    "options": {},
}
"""The least that a recording says beside its frames."""
