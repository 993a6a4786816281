"""Whether the engine of another bundle may take over in a run: whether the bundle fits, and its masks are what they should be."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TypeVar

import numpy as np

from pipeline.bundles.bundle import GATE_MEAN_IOU, GATE_WORST_IOU, Bundle, Manifest
from pipeline.engines.base import Engine
from pipeline.engines.reference import is_reference, open_reference
from pipeline.errors import BundleError
from pipeline.frames.frame import Frame, Image, SourceInfo
from pipeline.frames.pixels import bands_of
from pipeline.machine.memory import charged_to_nobody
from pipeline.masks.agreement import agreement

T = TypeVar("T")

# Where nothing tells what a network's masks should be: another training may well differ so much, and a broken network more.
_NOT_ABSURD = 0.5
# How much nicer than the run the FP32 program is: it gets a tenth of a core that others want too, and all of an idle one.
_NICER, _NICEST = 10, 19


def check_fit(manifest: Manifest, before: Manifest, infos: Sequence[SourceInfo]) -> None:
    """Refuse a bundle whose masks outputs would not understand, or whose frames the sources cannot give.

    Args:
        manifest: of the bundle that is to take over.
        before: of the one that runs.
        infos: the sources.

    Raises:
        BundleError: another task or other classes, other pixels, or another size.
    """
    if (manifest.task, manifest.classes) != (before.task, before.classes):
        raise BundleError(
            f"expected the classes of the model that runs ({before.task}: {', '.join(before.classes)}), got "
            f"{manifest.task}: {', '.join(manifest.classes)}: start the run again for those"
        )
    if bands_of(manifest.pixels) != bands_of(before.pixels):
        raise BundleError(f"expected {before.pixels} pixels as the sources give, got {manifest.pixels}")
    wanted = manifest.frame_size_hw if manifest.tiles is None else None
    for info in infos:
        if None not in (wanted, info.size_hw) and wanted != info.size_hw:
            sizes = ["×".join(map(str, size_hw)) for size_hw in (info.size_hw or (), wanted or ())]
            raise BundleError(
                f"expected a program for frames of {info.name}, {sizes[0]} (height × width), got one for {sizes[1]}"
            )


def judge(engine: Engine, frames: Sequence[Frame], infos: Sequence[SourceInfo]) -> str:
    """Compute frames of the run with an engine, which warms it, and compare its masks with those of its bundle's FP32 program.

    Where that program is what the engine runs, or there is none or nothing to run it on, the comparison is with the masks that the run
    has had, and asks only that they are not absurd.

    Args:
        engine: of a bundle that fits, opened; nothing is in flight in it.
        frames: with the masks that the run's engine has given; not changed. None have come yet: a black one warms it.
        infos: the sources.

    Returns:
        What was found, for the user.

    Raises:
        BundleError: scores are not finite, or masks agree too little.
        EdgemaskError: the engine cannot compute such frames.
    """
    if not frames:
        for size_hw in {info.size_hw for info in infos if info.size_hw}:
            if bands_of(engine.pixels) is None:
                _mask(engine, Frame(np.zeros((*size_hw, 3), np.uint8), 0, 0.0, "", ""))
        return "not compared, for no frame has come yet"
    masks = [_mask(engine, frame) for frame in frames]
    manifest = engine.bundle.manifest
    why = _not_comparable(engine)
    if why:
        least_mean, least_worst, what = _NOT_ABSURD, 0.0, f"the masks before it ({why})"
        wanted = [frame.mask for frame in frames if frame.mask is not None]
    else:
        least_mean = manifest.gate.get("mean", GATE_MEAN_IOU)
        least_worst = manifest.gate.get("worst", GATE_WORST_IOU)
        what = "its own FP32 program"
        wanted = _behind(partial(_in_fp32, engine.bundle, frames))
    agreed = [agreement(mask, other, manifest.task) for mask, other in zip(masks, wanted, strict=True)]
    mean, worst = float(np.mean(agreed)), min(agreed)
    if mean < least_mean or worst < least_worst:
        raise BundleError(
            f"expected masks that agree with {what} by IoU {least_mean:g} on average and {least_worst:g} at worst, got {mean:.4f} and "
            f"{worst:.4f} on {len(frames)} frames of this run: compile the bundle again, with --calib or --verify of such frames"
        )
    return f"IoU {mean:.4f} with {what}, worst {worst:.4f} of {len(frames)} frames"


def _mask(engine: Engine, frame: Frame) -> Image:
    """(H, W) uint8: a frame's mask, as of the first frame of a source."""
    engine.submit(np.ascontiguousarray(frame.as_pixels(engine.pixels)[None]))
    masks_nhw, _, not_finite = engine.collect_all()
    if not_finite is not None and not_finite.any():
        raise BundleError(
            f"expected finite scores, got {int(not_finite.sum())} that are NaN or infinite in a frame of this run: check the "
            "weights, or compile with --precision fp32"
        )
    return np.array(masks_nhw[0])


def _not_comparable(engine: Engine) -> str:
    """Why nothing tells what an engine's masks should be; empty where its bundle's FP32 program does."""
    bundle = engine.bundle
    if bundle.reference_path is None:
        return "the bundle has no FP32 program"
    if is_reference(engine):
        return "the FP32 program is what runs"
    if find_spec("onnxruntime") is None:
        return "there is no ONNX Runtime here for the FP32 program"
    return ""


def _in_fp32(bundle: Bundle, frames: Sequence[Frame]) -> list[Image]:
    """The masks of a bundle's program in FP32."""
    with open_reference(bundle) as engine:
        return [_mask(engine, frame) for frame in frames]


def _behind(work: Callable[[], T]) -> T:
    """Do some work on a thread that others go before; the threads that it starts likewise."""
    done: list[T] = []
    failed: list[BaseException] = []

    def do() -> None:
        try:
            if hasattr(os, "setpriority"):
                thread = threading.get_native_id()
                nice = os.getpriority(os.PRIO_PROCESS, thread) + _NICER
                os.setpriority(os.PRIO_PROCESS, thread, min(nice, _NICEST))
            with charged_to_nobody():
                done.append(work())
        except BaseException as error:  # noqa: BLE001 - raised by who waits
            failed.append(error)

    thread = threading.Thread(target=do, name="reference", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
