"""What a render mode's pictures become in a video: views in H.264, or the pictures themselves where codec and container can."""

from __future__ import annotations

from pathlib import Path

from pipeline.frames.frame import Frame, SourceInfo
from pipeline.render.overlay import Renderer
from pipeline.sinks.h264 import Encoder, Picture, encodes_on_gpu, picture_of
from pipeline.sinks.pictures import content_of

# At its own speed VP9 takes ten times as long as H.264. Opacity is encoded with the settings of the colors, and must be near.
_VP9 = {"deadline": "realtime", "cpu-used": "6", "row-mt": "1", "b": "0", "crf": "24"}
_VP9_CLEAR = {**_VP9, "crf": "0", "qmin": "0", "qmax": "1"}
_PRORES = {"profile": "4444", "alpha_bits": "16"}
# A checksum for each slice; so many of them whatever the number of cores, and every picture can be read alone.
_FFV1 = {"level": "3", "slices": "4", "slicecrc": "1", "g": "1"}
_VIEWS = {".webm": Encoder("libvpx-vp9", _VP9, "VP9")}
_EXACT = {
    ("cutout", ".mov"): Encoder("prores_ks", _PRORES, "ProRes 4444 with transparency", "yuva444p10le"),
    ("cutout", ".webm"): Encoder("libvpx-vp9", _VP9_CLEAR, "VP9 with transparency", "yuva420p"),
    ("mask", ".mkv"): Encoder("ffv1", _FFV1, "FFV1, the masks' own values in gray", "gray"),
}


class Encoding:
    """How the pictures of one video are made and encoded.

    Args:
        renderer: tells the render mode; what it was at first stays.
        path: of the video; its suffix names the container.

    Attributes:
        encoder: None for H.264.
        note: what the video does not keep of its pictures, for one line; empty if nothing.
    """

    def __init__(self, renderer: Renderer, path: Path) -> None:
        self._renderer = renderer
        mode, suffix = renderer.look.mode, path.suffix.lower()
        exact = _EXACT.get((mode, suffix))
        self._is_exact = exact is not None
        self.encoder = exact or _VIEWS.get(suffix)
        self.note = ""
        if mode == "cutout" and exact is None:
            others = " and ".join(suffix for mode, suffix in _EXACT if mode == "cutout")
            self.note = f"it has no transparency, the subject is on its background; {others} have"

    def picture(self, frame: Frame) -> Picture:
        """What of a frame is encoded: its view, in BGR or NV12; a cut-out, (H, W, 4) BGR and opacity; or its mask, (H, W)."""
        view = frame.lying_view
        if view is None:
            raise ValueError(f"{frame!r} has no view")
        return content_of(frame, self._renderer) if self._is_exact else picture_of(view)

    def leaves_views(self, wanted: str, info: SourceInfo, *, live: bool) -> bool:
        """Whether views that lie on a GPU are encoded there; for the arguments see `encodes_on_gpu`."""
        return self.encoder is None and encodes_on_gpu(wanted, info.size_hw, live=live)
