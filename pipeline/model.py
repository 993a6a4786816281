"""A model as Python programs use it: a bundle or the name of one, and masks for pictures, videos and cameras."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.builds.build_half import rebuild_plan
from pipeline.builds.model_name import open_model
from pipeline.bundles.plan import BUILT_FROM_PROGRAM
from pipeline.engines import open_engine
from pipeline.engines.server_options import ServerOptions
from pipeline.errors import OptionError, ShapeError
from pipeline.flow.stream import masked_frames
from pipeline.frames.frame import Frame, Image, describe
from pipeline.frames.nv12 import to_nv12
from pipeline.frames.pixels import bands_of, input_type
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.results.regions import MAX_REGIONS, MIN_SHARE, regions
from pipeline.shapes.region import Region
from pipeline.sources.base import Source


class Model:
    """Masks of pictures, videos and cameras by one network.

        model = Model("u2netp")
        mask = model(image)

    Used by one thread at a time. Its memory and its device are given back by ``close``, at the end of a ``with`` block, or when
    nothing refers to it any more.

    Args:
        model: a bundle's folder, or the name of a published network such as "u2netp", which is compiled on first use if the package
            does not carry it.
        backend: what runs it: "auto" takes the GPU where there is one and the CPU otherwise; or one of
            ``edgemask run --help``'s backends.
        rebuild: build a TensorRT plan for this GPU, once, where the bundle has none.
        servers: that compute, for the backend "triton"; with ``goes_on`` for cameras, whose frames then have empty masks and are
            ``stale`` while no server is there.

    Attributes:
        bundle: what it runs.
        classes: the names of what it finds: ("subject",) for one class, else the background first.
        description: backend and device, such as "ONNX Runtime 1.32, CPU".

    Raises:
        BundleError: there is no such bundle, or it is damaged.
        BackendUnavailableError: the backend's packages or its device are not here.
        BuildError: the network or its plan cannot be made here.
    """

    def __init__(
        self,
        model: str | Path = "u2netp",
        backend: str = "auto",
        *,
        rebuild: bool = True,
        servers: ServerOptions | None = None,
    ) -> None:
        on_gpu = rebuild and backend in ("auto", *BUILT_FROM_PROGRAM)
        self.bundle = open_model(str(model), on_gpu=on_gpu, quiet=True)
        self._engine = open_engine(
            self.bundle, backend, rebuild=partial(rebuild_plan, quiet=True) if rebuild else None, servers=servers
        )
        self.classes = self.bundle.manifest.classes
        self.description = self._engine.description
        self._renderer = Renderer(Look(), self.bundle.manifest.task)
        self._drawn: dict[str, Any] = {}
        self._streaming = False

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        manifest = self.bundle.manifest
        return f"Model({manifest.model!r}, {manifest.precision}, {self.description})"

    def __call__(self, image: Image) -> Image:
        """The mask of a picture.

        Args:
            image: (H, W, 3) uint8 BGR, as OpenCV reads it; or several of one size, (N, H, W, 3). For a network of other channels those,
                (H, W, C) uint8, or uint16 where it takes 16 bits. Not changed.

        Returns:
            (H, W) uint8, or (N, H, W): probability × 255 for one class, else the index of the class. The caller's own.

        Raises:
            ShapeError: the picture has another shape or dtype, or not the size that the model was compiled for.
        """
        self._check_idle()
        bands = bands_of(self._engine.pixels)
        channels, stored = (3, np.uint8) if bands is None else (bands.channels, bands.stored)
        fits = isinstance(image, np.ndarray) and image.ndim in (3, 4) and image.shape[-1] == channels
        if not fits or (bands is not None and image.dtype != stored):
            got = describe(image) if isinstance(image, np.ndarray) else type(image).__name__
            wanted = "uint8 BGR" if bands is None else f"{stored}, {bands} as the network takes"
            raise ShapeError(f"image: expected (H, W, {channels}) or (N, H, W, {channels}) {wanted}, got {got}")
        frames_nhwc = image if image.ndim == 4 else image[None]
        if bands is not None:
            frames_nhwc = frames_nhwc.astype(input_type(bands.pixels), copy=False)
        if self._engine.pixels == "nv12":
            frames_nhwc = np.stack([to_nv12(frame) for frame in frames_nhwc])
        frames_nhwc = np.ascontiguousarray(frames_nhwc)
        if len(frames_nhwc) > 1 and self._engine.one_at_a_time:
            masks_nhw = np.concatenate([self._engine(frame[None]) for frame in frames_nhwc])
        else:
            masks_nhw = self._engine(frames_nhwc)
        return masks_nhw if image.ndim == 4 else masks_nhw[0]

    def stream(
        self, source: Source | Sequence[Source], *, max_frames: int | None = None, drop_oldest: bool | None = None
    ) -> Iterator[Frame]:
        """Frames of a source with their masks; decoding, inference and the caller's own work overlap.

        Args:
            source: from ``open_source``; several share the model in turn, and ``frame.source`` names the one a frame is of.
            max_frames: end a source after so many.
            drop_oldest: give the model the newest frame and drop older ones; None: for cameras and streams.

        Yields:
            Frames with ``mask`` set, in the order of each source.

        Raises:
            SourceError: a source breaks off, after the frames before it.
        """
        self._check_idle()
        sources = [source] if isinstance(source, Source) else list(source)
        self._streaming = True
        try:
            yield from masked_frames(sources, self._engine, max_frames=max_frames, drop_oldest=drop_oldest)
        finally:
            self._streaming = False

    def draw(self, frame: Frame | Image, mask: Image | None = None, **look: Any) -> Image:
        """A picture with its mask over it.

        Args:
            frame: a frame of ``stream``, or a picture (H, W, 3) uint8 BGR with ``mask``. Not changed.
            mask: (H, W) uint8 of this model; None: the frame's own.
            look: how it is shown, as ``Look`` takes it: ``mode="blur"``, ``alpha=0.5``, ``threshold=0.5`` …; a background picture is
                not to be changed afterwards.

        Returns:
            (H, W, 3) uint8 BGR; in mode "side" (H, 2W, 3). The caller's own.

        Raises:
            OptionError: there is no such mode, or a value is out of range.
            ShapeError: picture and mask do not fit each other, or there is no mask.
        """
        unknown = look.keys() - {field.name for field in fields(Look)}
        if unknown:
            names = ", ".join(field.name for field in fields(Look))
            raise OptionError(f"draw: expected some of {names}, got {', '.join(sorted(unknown))}")
        image = frame.image if isinstance(frame, Frame) else frame
        if mask is None and isinstance(frame, Frame):
            mask = frame.mask
        if mask is None:
            raise ShapeError("draw: expected a frame with a mask, or a picture and its mask, got no mask")
        # A look that stays is not made anew: the renderer keeps tables and the scaled background of the last one.
        if look.keys() != self._drawn.keys() or any(value is not self._drawn[name] for name, value in look.items()):
            self._renderer.look, self._drawn = Look(**look), look
        return self._renderer(image, mask)

    def regions(
        self, mask: Image, *, threshold: float = 0.5, min_share: float = MIN_SHARE, max_regions: int = MAX_REGIONS
    ) -> list[Region]:
        """The connected parts of a mask, each with its box, outline, run lengths (COCO) and label line (YOLO).

        Args:
            mask: (H, W) uint8 of this model; not changed.
            threshold: the probability from which a pixel of a binary mask is inside, 0 to 1.
            min_share: parts that cover less of the frame, 0 to 1, are left out.
            max_regions: of each class, the largest.

        Returns:
            By class, of each the largest first. The background has none.

        Raises:
            ShapeError: the mask has another shape or dtype.
            OptionError: a value is out of range.
        """
        task = self.bundle.manifest.task
        return regions(
            mask, task=task, classes=self.classes, threshold=threshold, min_share=min_share, max_regions=max_regions
        )

    def renderer(self, **look: Any) -> Renderer:
        """What ``open_sink`` needs for results whose content depends on how masks are shown, such as a folder of masks."""
        return Renderer(Look(**look), self.bundle.manifest.task)

    def close(self) -> None:
        """Give back memory and device; safe to call twice."""
        self._engine.close()

    def _check_idle(self) -> None:
        if self._streaming:
            raise RuntimeError("a stream of this model is running: end it first, or open another Model")
