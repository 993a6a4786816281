"""What a bundle is called on an inference server, and how the server says which program it has."""

from __future__ import annotations

import re

from pipeline.bundles.bundle import Bundle, Manifest
from pipeline.errors import BundleError

PROGRAM_SHA256 = "program_sha256."
"""What comes before a version's number in the name of the parameter of a model that holds the sha256 of that version's program."""


def served_name(manifest: Manifest, frame_size_hw: tuple[int, int] | None = None) -> str:
    """The model's name: programs whose inputs differ have different names, so that versions of one name can take each other's place.

    Args:
        manifest: of the bundle.
        frame_size_hw: the fixed (height, width) of the frames; None: that of the program, which may be any.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", manifest.model).strip("._-") or "model"
    name += "" if manifest.pixels == "bgr" else f"-{manifest.pixels}"
    size_hw = frame_size_hw or manifest.frame_size_hw
    return name if size_hw is None else sized_name(name, size_hw)


def sized_name(name: str, size_hw: tuple[int, int]) -> str:
    """The name of the same model for frames of one (height, width): a server joins into batches only frames of one size."""
    return f"{name}-{size_hw[0]}x{size_hw[1]}"


def size_in_name(name: str, of: str) -> tuple[int, int] | None:
    """The (height, width) that a model is for, if its name is that of the model ``of`` for one size."""
    found = re.fullmatch(rf"{re.escape(of)}-(\d{{1,5}})x(\d{{1,5}})", name)
    return None if found is None else (int(found[1]), int(found[2]))


def require_servable(bundle: Bundle) -> None:
    """Refuse a bundle whose program servers cannot compute frame by frame.

    Raises:
        BundleError: it draws, or keeps something between frames.
    """
    if bundle.manifest.composes:
        raise BundleError(
            f"{bundle.folder}: expected a program for Triton that gives masks alone, got one that draws, whose input has no batch and "
            "whose views are three times the bytes: compile it without --compose device"
        )
    if bundle.manifest.contract.get("state"):
        raise BundleError(
            f"{bundle.folder}: expected a program for Triton that takes each frame alone, got one that keeps state between frames: "
            "run it here, with another --backend"
        )
