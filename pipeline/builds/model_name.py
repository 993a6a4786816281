"""``--model``: a bundle's folder, or the name of a published network: part of the package, or compiled into the cache."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.builds.build_half import compile_in_process
from pipeline.bundles.bundle import Bundle, cache_folder
from pipeline.bundles.file_lock import one_maker
from pipeline.engines import ENGINES, is_here, usable_runtime
from pipeline.errors import BackendUnavailableError, BuildError, BundleError
from pipeline.machine.processor import has_bf16
from pipeline.terminal import logger_of

log = logger_of(__name__)

PUBLISHED = Path(__file__).parents[1] / "published"
"""Bundles that are part of the package, NAME for a CPU and NAME-fp16 for a GPU: they need no PyTorch and no download."""


def open_model(model: str, *, on_gpu: bool = False, quiet: bool = False) -> Bundle:
    """Read a bundle, or make it first; what is about to be compiled is logged.

    Where OpenVINO is here and the processor has BF16, it is compiled with what ``--target openvino`` adds. What was compiled without
    that is taken as it is, and the log says how to have it compiled anew.

    Args:
        model: a folder, or a name such as "u2netp".
        on_gpu: compile for the GPU of this machine, if one can be used: in FP16, as far as PyTorch is here to compile with.
        quiet: show nothing of the compilation itself.

    Raises:
        BundleError: there is no such bundle.
        BuildError: it cannot be made.
    """
    if os.path.exists(model) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", model):
        return Bundle.read(model)
    if (PUBLISHED / model).is_dir():
        half = PUBLISHED / f"{model}-fp16"
        return Bundle.read(half if on_gpu and half.is_dir() and _has_usable_gpu() else PUBLISHED / model)
    from pipeline.version import version

    folder = cache_folder() / "bundles" / version()
    half = folder / f"{model}.fp16"  # a name has no dot
    if on_gpu and _has_usable_gpu() and (half.is_dir() or importlib.util.find_spec("torch")):
        try:
            return _compiled(half, model, ("--precision", "fp16"), quiet=quiet)
        except BuildError as error:
            log.info(f"not fp16: {error}")
    plain, marked = folder / model, folder / f"{model}.openvino"
    if not (is_here(ENGINES["openvino"]) and has_bf16(Path("/"))):
        return _compiled(marked if marked.is_dir() and not plain.is_dir() else plain, model, (), quiet=quiet)
    if plain.is_dir() and not marked.is_dir():
        log.info(
            f"{model}: {plain} was compiled without OpenVINO, and does not say which layers BF16 would spoil: remove it to have it "
            "compiled again with them, which takes minutes"
        )
        return _compiled(plain, model, (), quiet=quiet)
    return _compiled(marked, model, ("--target", "openvino"), quiet=quiet)


def _compiled(folder: Path, model: str, options: Sequence[str], *, quiet: bool) -> Bundle:
    if folder.is_dir():
        try:
            return Bundle.read(folder)
        except BundleError:
            pass  # told below, unless another process is making it anew
    with one_maker(folder, cache_folder() / "locks") as inherited:
        try:
            return Bundle.read(folder)
        except BundleError as error:
            log.info(f"{error}: done now" if folder.is_dir() else f"{model}: compiling once into {folder}")
        compile_in_process(["--model", model, *options, "--output", str(folder)], inherited, quiet=quiet)
        return Bundle.read(folder)


def _has_usable_gpu() -> bool:
    try:
        return usable_runtime() is not None
    except BackendUnavailableError:
        return False
