"""What benchmarks/gpu.sh carries to a GPU machine: U²-NetP as bundles and weights, and the sample clip at 1080p, twice over."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from compile.__main__ import main as compile_main
from compile.networks.zoo import fetch
from pipeline.bundles.bundle import cache_folder
from pipeline.command.command_line import SaidError, run_command
from pipeline.errors import EdgemaskError, ModelError, OptionError
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.sinks import open_sink
from pipeline.sources import open_source

MODEL = "u2netp"
SAMPLES = Path(__file__).parents[2] / "samples"
CLIP_SIZE_WH = (1920, 1080)
MOST_BYTES = 40_000_000
BUNDLES = {
    "bundle-fp32": ("--precision", "fp32"),
    "bundle-fp16": ("--precision", "fp16"),
    "bundle-nv12": ("--precision", "fp16", "--pixels", "nv12", "--compose", "device", "--no-reference"),
}
"""What is compiled: the one for NV12 is for frames that a GPU decodes (--decode cuda)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    return run_command(lambda: prepare(Path(given[0] if given else ".gpu")), (EdgemaskError, ModelError))


def prepare(folder: Path) -> None:
    """Write everything into a folder.

    Raises:
        EdgemaskError: a network cannot be compiled, or the clip cannot be written.
        OptionError: it all became too large to carry.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = fetch(MODEL, cache_folder() / "weights")
    written = [folder / weights.name, folder / "clip.mp4"]
    shutil.copyfile(weights, written[0])
    write_clip(SAMPLES / "clip.mp4", written[1])
    for name, options in BUNDLES.items():
        bundle = folder / name
        if compile_main(["--model", MODEL, *options, "--output", str(bundle)]) != 0:
            raise SaidError(MODEL)
        written += bundle.iterdir()
    written += copy_nvml(folder)
    size_bytes = sum(path.stat().st_size for path in written)
    if size_bytes > MOST_BYTES:
        raise OptionError(
            f"{folder}: expected at most {MOST_BYTES / 1e6:.0f} MB to carry, got {size_bytes / 1e6:.1f} MB"
        )
    print(f"{folder}: {size_bytes / 1e6:.1f} MB: {', '.join(path.name for path in written)}")


def copy_nvml(folder: Path) -> list[Path]:
    """Copy the module that reads the GPU's energy, which is one file, to ``site`` in a folder, where it is installed here."""
    found = importlib.util.find_spec("pynvml")
    if found is None or found.origin is None:
        print("the GPU's energy will not be measured: pip install 'edgemask[energy]', and prepare again")
        return []
    copied = folder / "site" / "pynvml.py"
    copied.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(found.origin, copied)
    return [copied]


def write_clip(clip: Path, path: Path, size_wh: tuple[int, int] = CLIP_SIZE_WH, rounds: int = 2) -> None:
    """Write a video at another size, several times over, so that its rate can be measured.

    Raises:
        EdgemaskError: it cannot be read or written.
    """
    with open_source(str(clip)) as source:
        info = source.info
    sink = open_sink(str(path), replace(info, paths=()), Renderer(Look(), "binary"))
    try:
        written = 0
        for _ in range(rounds):
            with open_source(str(clip)) as source:
                for frame in source:
                    frame.view = np.asarray(cv2.resize(frame.image, size_wh, interpolation=cv2.INTER_CUBIC), np.uint8)
                    frame.pts_s = float(written / (info.fps or Fraction(25)))
                    sink.write(frame)
                    written += 1
        sink.close()
    except BaseException:
        sink.discard()
        raise


if __name__ == "__main__":
    sys.exit(main())
