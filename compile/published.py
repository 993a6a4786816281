"""python -m compile.published: the bundles that are part of the package, made anew from the published weights.

The run half gives masks with them without PyTorch and without a download. A CPU takes FP32, which says what OpenVINO may compute in
BF16; a GPU takes FP16. The one in FP16 has no
program in FP32 beside it: the other bundle is that program, and a second copy would add 4.7 MB to a package of 8 MB.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from compile.__main__ import main as compile_bundle
from pipeline.builds.model_name import PUBLISHED

BUNDLES = {"u2netp": ("fp32", "openvino"), "u2netp-fp16": ("fp16", "onnx")}
"""Name of each bundle, and its precision and target; the network is that of the name's first part."""


def make(folder: Path) -> int:
    """Compile all of them into a folder; gives the exit status."""
    for name, (precision, target) in BUNDLES.items():
        model = name.removesuffix(f"-{precision}")
        how = ["--precision", precision, "--target", target, "--no-reference"]
        status = compile_bundle(["--model", model, *how, "--output", str(folder / name)])
        if status != 0:
            return status
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: a folder, or nothing for the one in the package."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    return make(Path(given[0]) if given else PUBLISHED)


if __name__ == "__main__":
    sys.exit(main())
