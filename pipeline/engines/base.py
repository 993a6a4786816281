"""What every engine is: frames in, masks out, a few of them in flight; views beside the masks where the program composes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.bundle import LOOK_VALUES, Bundle
from pipeline.errors import EdgemaskError, ShapeError
from pipeline.frames.frame import describe
from pipeline.frames.on_device import FramesOnDevice
from pipeline.frames.pixels import Pixels, expected, frames_nhw, frames_shape, input_type


class Computed(NamedTuple):
    """What an engine makes of a submission; owned by the caller.

    Attributes:
        masks_nhw: (N, H, W) uint8: probability × 255, or class index.
        views: if it came with a look, else None: as the bundle's ``views`` says (N, H, W, 3) uint8 BGR, or NV12, (N, H·3/2, W) uint8 or
            on the GPU.
        not_finite: (N,) int32: how many of a frame's scores are NaN or infinite, so that its mask is wrong there; None where
            the bundle's program does not count them, as programs of old did not.
    """

    masks_nhw: NDArray[np.uint8]
    views: NDArray[np.uint8] | FramesOnDevice | None = None
    not_finite: NDArray[np.int32] | None = None


class State:
    """What a recurrent program keeps between the frames of one source, as its engine has it; zeros at first.

    Attributes:
        values: the engine's own; None before the first frame.
    """

    __slots__ = ("__weakref__", "values")

    def __init__(self) -> None:
        self.values: Any = None


class Engine(ABC):
    """Runs a bundle's frame program. Used by one thread at a time; close it, or use it in a ``with`` block.

    A backend writes ``_submit``, ``_collect`` and ``_close``; shapes and dtypes are checked here, once. One that runs programs that
    compose says so in ``takes_looks``, and writes ``_submit_with_look`` too; one that takes frames on the GPU says so in
    ``takes_device``, and gets them in both.

    Attributes:
        bundle: what it runs.
        on_gpu: whether what is composed saves the host work.
        takes_looks: whether the backend runs programs that compose.
        keeps_state: whether the program is recurrent: who submits frames of a source gives the source's ``State`` with them.
        one_at_a_time: whether the program takes one frame at a time.
        takes_device: whether it takes frames that lie on the GPU from there; others get them as an array.
        leaves_views: have views in NV12 left on the GPU, for who encodes them there: set by who reads them. One that takes no frames
            there does not leave any.
        counts: whether the program counts scores that are not finite.
        is_reference: whether it is what others are compared with: ONNX Runtime on a processor, on the program as it lies.
        in_flight: how many submissions may wait before the first must be collected; 1 on a CPU.
        batch: how many frames of one size are worth submitting together; 1 on a CPU, which gains nothing by it.
        description: backend and device for the user, such as "ONNX Runtime 1.32, CPU".
        advice: why another program would be faster here, and how to get it, in one line; empty: none is known to be.
    """

    in_flight = 1
    batch = 1
    description = ""
    advice = ""
    on_gpu = False
    takes_looks = False
    takes_device = False
    leaves_views = False
    counts = False
    keeps_state = False
    one_at_a_time = False
    is_reference = False

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._submitted: deque[tuple[tuple[int, int, int], bool]] = deque()  # (N, H, W), with a look
        self._closed = False
        self._state = State()  # of the submission that is being made

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Compute the masks of some frames of one size.

        Args:
            frames: (N, H, W, 3) uint8, BGR; or what else the bundle's ``pixels`` says (``pipeline.frames.pixels``). Not changed.

        Returns:
            (N, H, W) uint8: probability × 255, or class index. Owned by the caller.

        Raises:
            ShapeError: the frames do not fit what was compiled.
        """
        if self._submitted:
            raise RuntimeError("submissions are in flight: collect them before a call")
        self.submit(frames)
        return self.collect()

    @property
    def frame_size_hw(self) -> tuple[int, int] | None:
        """(height, width) of the frames that it takes; None for any."""
        return self.bundle.manifest.frame_size_hw

    @property
    def pixels(self) -> Pixels:
        """How its frames lie in memory."""
        return self.bundle.manifest.pixels

    @property
    def composes(self) -> bool:
        """Whether it gives views beside masks to who asks with a look."""
        return self.takes_looks and self.bundle.manifest.composes

    def renew(self) -> None:  # noqa: B027 - most stay what they are
        """Called by who submits, before they look at what the next frames are to be: an engine may become another one here alone."""

    def new_state(self) -> State:
        """A state to begin a source with."""
        return State()

    def submit(
        self,
        frames: NDArray[np.uint8] | FramesOnDevice,
        look: NDArray[np.float32] | None = None,
        state: State | None = None,
    ) -> None:
        """Start on some frames.

        Args:
            frames: as for a call, unchanged until they are collected; or on the GPU, if the engine takes them there.
            look: (6,) float32, see ``pipeline.bundles.bundle.LOOK_VALUES``, for views in this look, if the engine composes;
                None: masks alone.
            state: of the source that the frames are of, which is moved on; None: as a first frame. For an engine that keeps none it
                is not looked at.

        Raises:
            ShapeError: the frames do not fit what was compiled.
        """
        if self._closed:
            raise RuntimeError("the engine is closed")
        if len(self._submitted) >= self.in_flight:
            raise RuntimeError(f"{self.in_flight} submissions are in flight already: collect one first")
        nhw = frames_nhw(self.pixels, frames.shape)
        if nhw is None or frames.dtype != input_type(self.pixels) or frames.size == 0:
            raise ShapeError(f"frames: expected {expected(self.pixels)}, got {describe(frames)}")
        if isinstance(frames, FramesOnDevice) and not self.takes_device:
            raise RuntimeError("the engine takes no frames on the GPU: submit an array")
        count, height, width = nhw
        if count > 1 and self.one_at_a_time:
            raise ShapeError(f"frames: expected one at a time, as the network takes them, got {count}")
        fixed = self.frame_size_hw
        if fixed is not None and (height, width) != fixed:
            raise ShapeError(
                f"frames: expected {fixed[0]}×{fixed[1]} (height × width), got {height}×{width}: "
                f"compile with --frame {height}x{width}, or without --frame for any size"
            )
        self._state = State() if state is None else state
        if look is None:
            self._submit(frames)  # type: ignore[arg-type]  # who takes no others was asked
        else:
            if not self.composes:
                raise RuntimeError("the engine does not compose: submit without a look")
            if look.shape != (len(LOOK_VALUES),) or look.dtype != np.float32:
                raise ShapeError(f"look: expected ({len(LOOK_VALUES)},) float32, got {describe(look)}")
            self._submit_with_look(frames, look)  # type: ignore[arg-type]
        self._submitted.append(((count, height, width), look is not None))

    def collect(self) -> NDArray[np.uint8]:
        """Wait for the oldest submission.

        Returns:
            (N, H, W) uint8. Owned by the caller.
        """
        return self.collect_all().masks_nhw

    def collect_all(self) -> Computed:
        """Wait for the oldest submission; gives everything that was computed."""
        if self._closed:
            raise RuntimeError("the engine is closed")
        if not self._submitted:
            raise RuntimeError("nothing was submitted")
        expected, with_look = self._submitted.popleft()
        computed = self._collect()
        masks_nhw, views, not_finite = computed
        if masks_nhw.shape != expected or masks_nhw.dtype != np.uint8:
            raise ShapeError(f"masks of {self.description}: expected {expected} uint8, got {describe(masks_nhw)}")
        if with_look:
            drawn = frames_shape(self.bundle.manifest.views, expected[0], expected[1:])
            if views is None or views.shape != drawn or views.dtype != np.uint8:
                got = "none" if views is None else describe(views)
                raise ShapeError(f"views of {self.description}: expected {drawn} uint8, got {got}")
        if not_finite is not None and (not_finite.shape != expected[:1] or not_finite.dtype != np.int32):
            raise ShapeError(f"counts of {self.description}: expected {expected[:1]} int32, got {describe(not_finite)}")
        return computed

    def drain(self) -> None:
        """Wait for what is in flight and forget it, so that the engine can be called again; errors of it are forgotten too."""
        while self._submitted and not self._closed:
            with suppress(EdgemaskError):
                self.collect_all()

    def try_out(self) -> None:  # noqa: B027 - a processor can
        """Find out before there are frames whether the device can run the program: its memory may be taken.

        Raises:
            BackendUnavailableError: it cannot.
            PlanError: it cannot, for the plan's fault.
        """

    def close(self) -> None:
        """Give back memory and device; safe to call twice."""
        if not self._closed:
            self._closed = True
            self._close()

    @abstractmethod
    def _submit(self, frames: NDArray[np.uint8]) -> None: ...

    @abstractmethod
    def _collect(self) -> Computed: ...

    @abstractmethod
    def _close(self) -> None: ...

    def _submit_with_look(self, frames: NDArray[np.uint8], look: NDArray[np.float32]) -> None:
        raise NotImplementedError
