"""How masks are shown: one file a mode, which says what it is; imported when it is drawn with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.quick_dataclass import dataclass
from pipeline.registry import Registry, Row

if TYPE_CHECKING:
    from pipeline.render.look import Color

WHITE: Color = (255, 255, 255)
"""What most modes that need a background take when none is given."""


@dataclass(frozen=True, kw_only=True)
class RenderMode(Row):
    """A render mode; ``opens`` is called with a ``pipeline.render.drawing.Drawing``, and draws its view.

    Attributes:
        frames_wide: how many frames wide the view is.
        background: what is behind the subject where none is given, (b, g, r).
        on_device: a bundle that was compiled with ``--compose device`` draws it.
        picture: a function in the same file that makes what a picture file holds in this mode: ``(image, mask, task)`` to
            (H, W), (H, W, 3) or (H, W, 4) uint8; empty: the view.
        exact: what it makes are class numbers, which a lossy format would change.
    """

    opens: str = "draw"
    frames_wide: int = 1
    background: Color = WHITE
    on_device: bool = False
    picture: str = ""
    exact: bool = False

    def cells(self) -> dict[str, str]:
        """Name and help: no mode needs what others do not."""
        return {"Name": f"`{self.name}`", "What it shows": self.help}


MODES = Registry(RenderMode, "edgemask.render_modes", "pipeline.render.modes")
