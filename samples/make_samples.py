# SPDX-License-Identifier: Apache-2.0
"""Make the sample clip and pictures from photographs that ship inside scikit-image; nothing is downloaded."""

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
# The astronaut's outline, in pixels of the photograph: head and shoulders, down to where the flag and helmet begin.
ASTRONAUT_OUTLINE_XY = (
    (285, 38), (275, 30), (251, 19), (237, 16), (226, 16), (213, 21), (206, 21), (195, 26), (183, 38), (171, 44),
    (157, 57), (153, 66), (153, 85), (155, 100), (158, 106), (168, 117), (175, 129), (182, 134), (183, 146),
    (176, 149), (160, 149), (146, 154), (136, 161), (123, 176), (118, 185), (113, 188), (114, 199), (112, 204),
    (89, 227), (76, 235), (62, 250), (52, 270), (43, 284), (40, 300), (34, 320), (28, 350), (361, 350), (359, 327),
    (356, 308), (352, 292), (345, 271), (340, 262), (330, 253), (321, 244), (303, 232), (301, 223), (295, 211),
    (288, 201), (269, 182), (255, 172), (256, 164), (263, 151), (266, 139), (275, 134), (291, 116), (296, 108),
    (300, 96), (301, 83), (296, 58),
)  # fmt: skip
OUTLINE_SOFTNESS_PX = 0.8
BACKDROP_BLUR_PX = 5.0
# BT.709, limited range: rows Y, Cb, Cr of B, G, R and 1.
BGR_TO_YUV = np.array(((0.0722, 0.7152, 0.2126), (0.9278, -0.7152, -0.2126), (-0.0722, -0.7152, 0.7874)))
BGR_TO_YUV *= np.array(((219.0,), (224 / 1.8556,), (224 / 1.5748,))) / 255
BGR_TO_YUV = np.hstack((BGR_TO_YUV, ((16,), (128,), (128,))))
PICTURES = {"astronaut": "astronaut.jpg", "chelsea": "cat.jpg", "coffee": "coffee.jpg", "rocket": "rocket.jpg"}
JPEG_QUALITY = 92

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class View:
    """What the camera sees: a 16:9 rectangle in a photograph's own pixels; the picture turns counter-clockwise."""

    width_px: float
    center_x_px: float
    center_y_px: float
    rotation_deg: float = 0.0

    def toward(self, other: View, share: float) -> View:
        """The view ``share`` (0 to 1) of the way to ``other``."""
        return View(*(a + (b - a) * share for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def matrix(self, enlargement: float = 1.0) -> NDArray[np.float64]:
        """The (2, 3) affine transform from x, y of the photograph, enlarged so many times, to x, y of a clip frame."""
        # Pixel centers are at whole numbers, so a picture's own corner is at (-0.5, -0.5).
        x_px, y_px = self.center_x_px * enlargement - 0.5, self.center_y_px * enlargement - 0.5
        scale = CLIP_SIZE_WH[0] / (self.width_px * enlargement)
        matrix = np.asarray(cv2.getRotationMatrix2D((x_px, y_px), self.rotation_deg, scale), dtype=np.float64)
        matrix[:, 2] += ((CLIP_SIZE_WH[0] - 1) / 2 - x_px, (CLIP_SIZE_WH[1] - 1) / 2 - y_px)
        return matrix


@dataclass(frozen=True)
class Layer:
    """A picture that the camera passes over from ``start`` to ``end``; only its ``alpha`` covers what is below."""

    picture: Image
    start: View
    end: View
    alpha: Image | None = None

    def over(self, below: Image | None, share: float) -> Image:
        """The layer, ``share`` (0 to 1) of the way through its move, over a frame."""
        matrix = self.start.toward(self.end, share).matrix(ENLARGEMENT)
        # A turned view's corners may be a few pixels outside the photograph.
        above = cv2.warpAffine(self.picture, matrix, CLIP_SIZE_WH, borderMode=cv2.BORDER_REFLECT)
        if below is None or self.alpha is None:
            return np.asarray(above, dtype=np.uint8)
        weight = cv2.warpAffine(self.alpha, matrix, CLIP_SIZE_WH).astype(np.float32) / 255
        return np.asarray(np.rint(cv2.blendLinear(above, below, weight, 1 - weight)), dtype=np.uint8)


def load_photograph(name: str) -> Image:
    """Read one photograph of ``skimage.data``, as (height, width, 3) uint8, BGR."""
    return np.asarray(cv2.cvtColor(getattr(data, name)(), cv2.COLOR_RGB2BGR), dtype=np.uint8)


def enlarge(image: Image) -> Image:
    """Enlarge and sharpen a photograph for the camera to move over."""
    large = cv2.resize(image, None, fx=ENLARGEMENT, fy=ENLARGEMENT, interpolation=cv2.INTER_LANCZOS4)
    soft = cv2.GaussianBlur(large, (0, 0), SHARPENING_SIGMA_PX * ENLARGEMENT)
    return np.asarray(cv2.addWeighted(large, 1 + SHARPENING, soft, -SHARPENING, 0), dtype=np.uint8)


def outline_mask(size_hw: tuple[int, int], enlargement: int, grow_px: int = 0) -> Image:
    """The inside of the astronaut's outline: 255 there, 0 elsewhere, (height, width) uint8."""
    mask = np.zeros((size_hw[0] * enlargement, size_hw[1] * enlargement), np.uint8)
    cv2.fillPoly(mask, [np.array(ASTRONAUT_OUTLINE_XY, np.int32) * enlargement], 255)
    return np.asarray(cv2.dilate(mask, np.ones((2 * grow_px + 1, 2 * grow_px + 1), np.uint8)), dtype=np.uint8)


def empty_backdrop(photograph: Image) -> Image:
    """The enlarged studio without the astronaut, out of focus: the hole takes the wall's colors, the nearest most."""
    known = (outline_mask(photograph.shape[:2], 1, grow_px=6) == 0).astype(np.float32)[..., None]
    known[300:] = 0  # the suit, the helmet and the table
    wall = known.copy()
    wall[:, :105] = wall[:, 350:] = 0  # the flag and the shuttle do not color the hole
    filled = (photograph * wall).sum((0, 1)) / wall.sum()
    for sigma_px in (128, 64, 32, 16, 8):
        weight = cv2.GaussianBlur(wall, (0, 0), sigma_px)[..., None]
        near = cv2.GaussianBlur(photograph * wall, (0, 0), sigma_px) / np.maximum(weight, 1e-6)
        filled = filled + (near - filled) * np.clip(4 * weight, 0, 1)
    filled = photograph * known + filled * (1 - known)
    large = cv2.resize(filled, None, fx=ENLARGEMENT, fy=ENLARGEMENT, interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.rint(cv2.GaussianBlur(large, (0, 0), BACKDROP_BLUR_PX * ENLARGEMENT)), dtype=np.uint8)


def astronaut_layers() -> list[Layer]:
    """The camera goes past the astronaut, and further past her than past the studio behind: the depth of a scene."""
    photograph = load_photograph("astronaut")
    alpha = outline_mask(photograph.shape[:2], ENLARGEMENT)
    alpha = np.asarray(cv2.GaussianBlur(alpha, (0, 0), OUTLINE_SOFTNESS_PX * ENLARGEMENT), dtype=np.uint8)
    return [
        Layer(empty_backdrop(photograph), View(440, 225, 130), View(440, 287, 130)),
        Layer(enlarge(photograph), View(580, 90, 168, -2), View(550, 325, 164, 2), alpha),
    ]


def coffee_layers() -> list[Layer]:
    """The camera turns and drifts over a cup on a table."""
    return [Layer(enlarge(load_photograph("coffee")), View(600, 300, 227, -3), View(598, 300, 216, 3))]


SHOTS = ((astronaut_layers, 125), (coffee_layers, 75))  # and how many frames each has


def clip_frames() -> Iterator[Image]:
    """The clip's frames, (720, 1280, 3) uint8, BGR, in order; each is the caller's own."""
    for layers, frame_count in SHOTS:
        shot = layers()
        for index in range(frame_count):
            # Half a cosine, from rest to rest: no jerk at the cut.
            share = 0.5 - 0.5 * float(np.cos(np.pi * index / (frame_count - 1)))
            frame = shot[0].over(None, share)
            for layer in shot[1:]:
                frame = layer.over(frame, share)
            yield frame


def to_yuv420p(image: Image) -> Image:
    """A BGR frame as (height * 3 / 2, width) uint8: the Y, Cb and Cr planes, one under the other."""
    # In numpy, because libswscale's default conversion rounds down: it darkens by two levels.
    yuv = cv2.transform(image.astype(np.float32), BGR_TO_YUV)
    # A color sample lies on every second pixel of a row, and between two rows.
    chroma = cv2.sepFilter2D(yuv[..., 1:], -1, np.array((0.25, 0.5, 0.25)), np.ones(1))[:, ::2]
    planes = (yuv[..., 0], *cv2.split((chroma[::2] + chroma[1::2]) / 2))
    joined = np.concatenate([plane.ravel() for plane in planes]).reshape(-1, image.shape[1])
    return np.asarray(np.rint(joined), dtype=np.uint8)


def write_clip(path: Path) -> None:
    """Encode the clip as H.264 in MP4, tagged BT.709 with limited ("tv") range; a file that is there is replaced."""
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=CLIP_FPS)
        stream.width, stream.height = CLIP_SIZE_WH
        stream.pix_fmt = "yuv420p"
        # What x264 writes depends on its number of threads, and that on the machine.
        stream.options = {"crf": "21", "preset": "slow", "threads": "1", "x264-params": "cpu-independent=1"}
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = 1  # BT.709
        context.color_range = 1  # limited
        for index, image in enumerate(clip_frames()):
            frame = av.VideoFrame.from_ndarray(to_yuv420p(image), format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, CLIP_FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def main() -> None:
    """Write ``clip.mp4`` and ``pictures/`` into a folder, by default the one this file is in."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write into")
    out: Path = parser.parse_args().out
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    for name, file_name in PICTURES.items():
        path = out / "pictures" / file_name
        if not cv2.imwrite(str(path), load_photograph(name), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]):
            raise OSError(f"{path}: expected to write a JPEG file, got a refusal from OpenCV, check the folder")
    write_clip(out / "clip.mp4")


if __name__ == "__main__":
    main()
