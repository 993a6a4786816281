# SPDX-License-Identifier: Apache-2.0
"""Make the sample clip and pictures from photographs that ship inside scikit-image.

Run it from anywhere: ``python samples/make_samples.py``. Nothing is downloaded. The clip is a slow camera
move over three photographs, with hard cuts, so its subjects really move across the picture and what a network
must find in every frame is known: the still photograph's mask, moved by the same camera.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from skimage import data

CLIP_SIZE_WH = (1280, 720)
CLIP_FPS = 25
# The photographs are about 500 pixels wide: they are enlarged and sharpened once, and the camera moves over the result.
ENLARGEMENT = 4
SHARPENING = 0.6
SHARPENING_SIGMA_PX = 1.0
PICTURES = {"astronaut": "astronaut.jpg", "chelsea": "cat.jpg", "coffee": "coffee.jpg", "rocket": "rocket.jpg"}
JPEG_QUALITY = 92


@dataclass(frozen=True)
class View:
    """What the camera sees: a 16:9 rectangle of the photograph, in the photograph's own pixels.

    Attributes:
        width_px: Width of the rectangle; a smaller one is closer.
        left_px: Distance of its left edge from the photograph's, before the rotation.
        top_px: Distance of its upper edge from the photograph's, before the rotation.
        rotation_deg: Rotation about the rectangle's centre; a positive one turns the picture counter-clockwise.
    """

    width_px: float
    left_px: float
    top_px: float
    rotation_deg: float = 0.0

    def toward(self, other: View, share: float) -> View:
        """The view ``share`` (0 to 1) of the way to ``other``."""

        def between(a: float, b: float) -> float:
            return a + (b - a) * share

        return View(
            between(self.width_px, other.width_px),
            between(self.left_px, other.left_px),
            between(self.top_px, other.top_px),
            between(self.rotation_deg, other.rotation_deg),
        )

    def matrix(self, enlargement: float = 1.0) -> NDArray[np.float64]:
        """The affine transform from the photograph to the clip's frame.

        Args:
            enlargement: How much larger than the photograph the picture to be transformed is.

        Returns:
            (2, 3) float64, from x, y of the enlarged photograph to x, y of the frame.
        """
        frame_width_px, frame_height_px = CLIP_SIZE_WH
        height_px = self.width_px * frame_height_px / frame_width_px
        center_xy = (
            (self.left_px + self.width_px / 2) * enlargement - 0.5,
            (self.top_px + height_px / 2) * enlargement - 0.5,
        )
        scale = frame_width_px / (self.width_px * enlargement)
        matrix = np.asarray(cv2.getRotationMatrix2D(center_xy, self.rotation_deg, scale), dtype=np.float64)
        matrix[:, 2] += ((frame_width_px - 1) / 2 - center_xy[0], (frame_height_px - 1) / 2 - center_xy[1])
        return matrix


@dataclass(frozen=True)
class Shot:
    """One camera move over one photograph, from rest to rest."""

    photograph: str
    start: View
    end: View
    frame_count: int

    def views(self) -> Iterator[View]:
        """The camera's view in each frame, in order."""
        for index in range(self.frame_count):
            time = index / (self.frame_count - 1)
            # Half of a cosine: no jerk at the cuts.
            yield self.start.toward(self.end, 0.5 - 0.5 * float(np.cos(np.pi * time)))


# Chosen so that U²-NetP finds the whole subject in every frame.
SHOTS = (
    Shot("astronaut", View(366, 0, 8), View(416, 78, 8), frame_count=90),
    Shot("coffee", View(600, 0, 60, -5), View(598, 2, 38, 3), frame_count=60),
    Shot("camera", View(480, 0, 78), View(460, 52, 32), frame_count=60),
)


def load_photograph(name: str) -> NDArray[np.uint8]:
    """Read one photograph of ``skimage.data``, as (height, width, 3) uint8, BGR."""
    image = np.asarray(getattr(data, name)(), dtype=np.uint8)
    code = cv2.COLOR_GRAY2BGR if image.ndim == 2 else cv2.COLOR_RGB2BGR
    return np.asarray(cv2.cvtColor(image, code), dtype=np.uint8)


def enlarge(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Enlarge and sharpen a photograph for the camera to move over."""
    large = cv2.resize(image, None, fx=ENLARGEMENT, fy=ENLARGEMENT, interpolation=cv2.INTER_LANCZOS4)
    soft = cv2.GaussianBlur(large, (0, 0), SHARPENING_SIGMA_PX * ENLARGEMENT)
    return np.asarray(cv2.addWeighted(large, 1 + SHARPENING, soft, -SHARPENING, 0), dtype=np.uint8)


def clip_frames() -> Iterator[NDArray[np.uint8]]:
    """The clip's frames, (720, 1280, 3) uint8, BGR, in order; each is the caller's own."""
    for shot in SHOTS:
        photograph = enlarge(load_photograph(shot.photograph))
        for view in shot.views():
            frame = cv2.warpAffine(
                photograph,
                view.matrix(ENLARGEMENT),
                CLIP_SIZE_WH,
                flags=cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REFLECT,
            )
            yield np.asarray(frame, dtype=np.uint8)


def write_clip(path: Path) -> None:
    """Encode the clip as H.264 in MP4, tagged BT.709, limited ("tv") range.

    Args:
        path: The file to write; one that is there is replaced.
    """
    frame_time = Fraction(1, CLIP_FPS)
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=CLIP_FPS)
        stream.width, stream.height = CLIP_SIZE_WH
        stream.pix_fmt = "yuv420p"
        # One thread and no processor-specific choices: the same encoder gives the same bytes on every machine.
        stream.options = {"crf": "21", "preset": "slow", "threads": "1", "x264-params": "cpu-independent=1"}
        context = stream.codec_context
        context.color_primaries = 1  # BT.709, as are the next two
        context.color_trc = 1
        context.colorspace = 1
        context.color_range = 1  # limited
        for index, image in enumerate(clip_frames()):
            frame = av.VideoFrame.from_ndarray(image, format="bgr24").reformat(
                format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
            )
            frame.pts = index
            frame.time_base = frame_time
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_pictures(folder: Path) -> None:
    """Write the photographs as they are, as JPEG files, into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, file_name in PICTURES.items():
        path = folder / file_name
        if not cv2.imwrite(str(path), load_photograph(name), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]):
            raise OSError(f"{path}: expected to write a JPEG file, got a refusal from OpenCV, check the folder")


def main() -> None:
    """Write ``clip.mp4`` and ``pictures/`` into a folder, by default the one this file is in."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write into")
    out: Path = parser.parse_args().out
    write_pictures(out / "pictures")
    write_clip(out / "clip.mp4")
    for path in sorted([out / "clip.mp4", *(out / "pictures").glob("*.jpg")]):
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
