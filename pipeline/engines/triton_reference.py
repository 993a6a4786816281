"""What a bundle's own program makes of a frame here, for servers to be compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.bundle import Bundle
from pipeline.engines.base import Engine
from pipeline.engines.onnxruntime import OnnxRuntimeEngine
from pipeline.frames.frame import Image
from pipeline.frames.pixels import bands_of, frames_shape, input_type
from pipeline.sources.synthetic import SyntheticSource

_LEAST_SIDE = 64


class Reference:
    """What the bundle's own program makes of a frame, on ONNX Runtime here: what servers are compared with.

    Attributes:
        bundle: that the servers are to compute.
        counts: whether its program counts scores that are not finite.
        one_at_a_time: whether it takes one frame at a time.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._samples: dict[tuple[int, int], tuple[NDArray[np.uint8], Image]] = {}
        with OnnxRuntimeEngine(bundle) as engine:
            self.counts, self.one_at_a_time = engine.counts, engine.one_at_a_time
            self._compute(engine, self._usual_hw())

    def sample(self, size_hw: tuple[int, int] | None) -> tuple[NDArray[np.uint8], Image]:
        """A frame of a (height, width), None for the usual one, as the program takes it, (1, …), and its mask."""
        size_hw = size_hw or self._usual_hw()
        if size_hw not in self._samples:
            with OnnxRuntimeEngine(self.bundle) as engine:
                self._compute(engine, size_hw)
        return self._samples[size_hw]

    def _usual_hw(self) -> tuple[int, int]:
        manifest = self.bundle.manifest
        height, width = manifest.network_size_hw
        return manifest.frame_size_hw or (max(height, _LEAST_SIDE) // 2 * 2, max(width, _LEAST_SIDE) // 2 * 2)

    def _compute(self, engine: Engine, size_hw: tuple[int, int]) -> None:
        pixels = engine.pixels
        if (bands := bands_of(pixels)) is not None:
            values = np.random.default_rng(0).integers(0, 2**bands.bits, frames_shape(pixels, 1, size_hw))
            frames = values.astype(input_type(pixels))
        else:
            picture = next(iter(SyntheticSource(f"test://?size={size_hw[1]}x{size_hw[0]}&frames=1")))
            frames = picture.as_pixels(pixels)[None]
        self._samples[size_hw] = frames, engine(frames)[0]
