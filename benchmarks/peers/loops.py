"""The loop that tutorials show, written with OpenCV: read, resize, normalize, network, resize, draw, write; four times.

Other networks' runtimes stand in the same loop, and another tool's drawing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.peers.commands import INSTALL
from benchmarks.peers.runs import Clock, Job, Run
from pipeline.engines.openvino_library import load_openvino
from pipeline.errors import BackendUnavailableError
from pipeline.frames.frame import Image

Blob = NDArray[np.float32]
Network = Callable[[Blob], Blob]
"""(1, 3, h, w), normalised, to (1, 1, h, w) probabilities."""
Draw = Callable[[Image, Image], Image]
"""(frame, mask) to the view."""

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as the network's authors published
_ALPHA, _LEVEL = 0.5, 128
_COLOUR_BGR = (0, 255, 0)


def opencv_onnxruntime(job: Job, folder: Path) -> Run:
    """ONNX Runtime, and numpy for the overlay."""
    return run_loop(job, folder, _onnxruntime(job), numpy_overlay)


def supervision(job: Job, folder: Path) -> Run:
    """ONNX Runtime, and supervision's ``MaskAnnotator`` for the overlay."""
    return run_loop(job, folder, _onnxruntime(job), _mask_annotator())


def opencv_dnn(job: Job, folder: Path) -> Run:
    """OpenCV's own runtime for networks."""
    network = cv2.dnn.readNetFromONNX(str(job.network))
    outputs = network.getUnconnectedOutLayersNames()

    def forward(blob: Blob) -> Blob:
        network.setInput(blob)
        return np.asarray(network.forward(outputs)[0], np.float32)

    return run_loop(job, folder, forward, numpy_overlay)


def openvino(job: Job, folder: Path, precision: str | None = None) -> Run:
    """OpenVINO on the CPU; it computes in BF16 by default where the processor can, or as it is told."""
    try:
        core = load_openvino().Core()
    except ImportError as error:
        raise BackendUnavailableError(f"openvino is not here: {INSTALL}") from error
    config = {} if precision is None else {"INFERENCE_PRECISION_HINT": precision}
    compiled = core.compile_model(str(job.network), "CPU", config)
    return run_loop(job, folder, lambda blob: np.asarray(compiled(blob)[0], np.float32), numpy_overlay)


def _onnxruntime(job: Job) -> Network:
    session = onnxruntime.InferenceSession(str(job.network), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda blob: np.asarray(session.run(None, {name: blob})[0], np.float32)


def _mask_annotator() -> Draw:
    try:
        sv: Any = importlib.import_module("supervision")
    except ImportError as error:
        raise BackendUnavailableError(f"supervision is not here: {INSTALL}") from error
    annotator = sv.MaskAnnotator(color=sv.Color(*_COLOUR_BGR[::-1]), opacity=_ALPHA)

    def draw(image: Image, mask: Image) -> Image:
        masks_nhw = (mask >= _LEVEL)[np.newaxis]
        boxes = sv.mask_to_xyxy(masks_nhw).astype(np.float32)
        detections = sv.Detections(xyxy=boxes, mask=masks_nhw, class_id=np.zeros(1, int))
        return np.asarray(annotator.annotate(image, detections), np.uint8)

    return draw


def numpy_overlay(image: Image, mask: Image) -> Image:
    """(H, W, 3) uint8 BGR: a color over the pixels of the mask, in floating point."""
    weight = _ALPHA * (mask >= _LEVEL)[..., np.newaxis]
    view: Image = (image * (1 - weight) + np.array(_COLOUR_BGR) * weight).astype(np.uint8)
    return view


def run_loop(job: Job, folder: Path, network: Network, draw: Draw) -> Run:
    """Bring the frames of the clip through a network and into a video; the network has run once before the clock does."""
    (height, width), (network_height, network_width) = job.size_hw, job.bundle.manifest.network_size_hw
    network(np.zeros((1, 3, network_height, network_width), np.float32))
    masks: list[Image] = []
    clock = Clock()
    capture = cv2.VideoCapture(str(job.clip))
    # No H.264: OpenCV's wheels have no encoder for it.
    fourcc = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(folder / "video.mp4"), fourcc, float(job.fps), (width, height))
    for _ in range(job.frames):
        read, image = capture.read()
        if not read:
            break
        rgb = cv2.resize(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), (network_width, network_height)).astype(np.float32)
        normalised = (rgb / max(float(rgb.max()), 1e-6) - np.array(_MEAN)) / np.array(_STD)
        blob = np.ascontiguousarray(normalised.transpose(2, 0, 1)[np.newaxis], np.float32)
        scores = network(blob)[0, 0]
        stretched = (scores - scores.min()) / max(float(scores.max() - scores.min()), 1e-6)
        mask = (cv2.resize(stretched, (width, height)) * 255).astype(np.uint8)
        writer.write(draw(np.asarray(image, np.uint8), mask))
        clock.tick()
        masks.append(mask)
    capture.release()
    writer.release()
    return clock.run(masks, folder)
