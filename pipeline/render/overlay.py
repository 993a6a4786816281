"""A frame and its mask become the picture that people see.

Most modes are one blend, ``base + (over - base) × weight``, in 8-bit integers. The result differs from the same formula in real
numbers by at most 1 of 255.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pipeline.bundles.bundle import Task
from pipeline.errors import OptionError
from pipeline.frames.frame import Image
from pipeline.render.drawing import Drawing, Memory, checked
from pipeline.render.look import Look
from pipeline.render.modes import MODES, RenderMode
from pipeline.render.view_memory import ViewMemory


class Renderer:
    """Draws masks over frames: ``view = renderer(image, mask)``.

    Attributes:
        look: what to draw; may be replaced between two frames:
            ``renderer.look = dataclasses.replace(renderer.look, alpha=0.7)``.
        task: "binary" (mask = probability × 255) or "classes" (mask = class index, 0 = background).
    """

    def __init__(self, look: Look, task: Task) -> None:
        if task not in ("binary", "classes"):
            raise OptionError(f"task: expected binary or classes, got {task!r}")
        self.look = look
        self.task = task
        self._modes: dict[str, Callable[[Drawing], None]] = {}
        self._memory = Memory()
        self._views = ViewMemory()

    def __call__(self, image_hwc: Image, mask_hw: Image) -> Image:
        """Draw one frame.

        Args:
            image_hwc: (H, W, 3) uint8 BGR; not changed.
            mask_hw: (H, W) uint8 as `task` says; not changed.

        Returns:
            (H, W, 3) uint8 BGR, in mode "side" (H, 2W, 3): a new array that is the caller's. Its memory is used again when
            nothing refers to it any more.

        Raises:
            ShapeError: an array has another shape or dtype.
        """
        image, mask = checked(image_hwc, mask_hw)
        look = self.look  # one for the whole frame, whoever replaces it meanwhile
        height, width = mask.shape
        mode = MODES[look.mode]
        view = self._views.take((height, width * mode.frames_wide, 3))
        self._draw(mode)(Drawing(view, image, mask, look, self.task, self._memory))
        return view

    def _draw(self, mode: RenderMode) -> Callable[[Drawing], None]:
        if mode.name not in self._modes:
            self._modes[mode.name] = MODES.load(mode, f"--render {mode.name}: cannot be drawn here")
        return self._modes[mode.name]


def picture_of(image_hwc: Image, mask_hw: Image, view: Image, renderer: Renderer) -> Image:
    """What a picture file of a frame holds.

    Returns:
        (H, W), (H, W, 3) or (H, W, 4) uint8: the view (BGR), or what the mode makes in its place, such as the mask or a cut-out.
    """
    mode = MODES[renderer.look.mode]
    if not mode.picture:
        return view
    make = MODES.load(replace(mode, opens=mode.picture), f"--render {mode.name}: cannot be drawn here")
    picture: Image = make(image_hwc, mask_hw, renderer.task)
    return picture
