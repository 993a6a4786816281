"""Bundles for a benchmark: those of a folder, and networks that are compiled for it into the cache."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from compile.__main__ import main as compile_main
from pipeline.bundles.bundle import Bundle, cache_folder
from pipeline.command.command_line import SaidError
from pipeline.errors import BundleError
from pipeline.version import version


def read_or_compile(model: str, contract: str, precision: str = "fp32", target: str = "onnx") -> Bundle:
    """A bundle's folder as it is, or a published network, compiled in a contract that the benchmark chooses.

    Args:
        model: a folder, or a name such as "u2netp".
        contract: for a name: one that ``python -m compile`` knows, or a file.
        precision: for a name.
        target: likewise.

    Raises:
        EdgemaskError: there is no such bundle, or it cannot be made.
    """
    if Path(model).exists():
        return Bundle.read(model)
    arguments = ["--model", model, "--contract", contract, "--precision", precision, "--target", target]
    return compile_anew(f"{model}-{precision}-{Path(contract).stem}", arguments)


def compile_anew(name: str, arguments: Sequence[str]) -> Bundle:
    """Compile into the cache, in place of what was there, so that what is measured is what this program makes now.

    Args:
        name: of the bundle's folder.
        arguments: of ``python -m compile``, without ``--output``.

    Raises:
        SaidError: it failed, and the user was told.
    """
    folder = cache_folder() / "benchmarks" / name
    if compile_main([*arguments, "--output", str(folder)]) != 0:
        raise SaidError(name)
    return Bundle.read(folder)


def compiled_once(name: str, arguments: Sequence[str]) -> Bundle:
    """The same, but what this version of the program has compiled before is used again."""
    with suppress(BundleError):
        return Bundle.read(cache_folder() / "benchmarks" / version() / name)
    return compile_anew(f"{version()}/{name}", arguments)
