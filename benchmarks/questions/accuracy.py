"""How good are the masks? A bundle on a data set with ground truth: F-measure, S-measure, absolute error, IoU, boundary IoU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks.shared.bundles import read_or_compile
from benchmarks.shared.environment import write_result
from calibration.metrics.saliency import SaliencyMetrics
from calibration.metrics.truth import read_truths, with_void_agreed
from pipeline.command.command_line import OptionParser
from pipeline.engines import open_engine
from pipeline.sources import open_source

COLUMNS = {  # entry of a result: what the table calls it
    "max_f": "max F-measure",
    "max_mean_f": "max of mean F-measure",
    "s_measure": "S-measure",
    "mae": "MAE",
    "iou": "IoU at 0.5",
    "boundary_iou": "boundary IoU at 0.5",
}


EXPLAINED = """
Against ground truth, the mean of all pictures. F-measure, S-measure and IoU: 1 is best. MAE: mean absolute error, 0 is best.
Boundary IoU looks at a band along the edges alone."""


@dataclass(frozen=True, slots=True)
class Options:
    """What ``python -m benchmarks accuracy`` is asked.

    Attributes:
        data: a folder with images/ and masks/ of the same names.
        model: a bundle's folder or a published network's name.
        contract: for a published network.
        precision: for a published network.
        backend: what runs the network.
        json: a file for the result; None: no file.
    """

    data: str
    model: str
    contract: str
    precision: str
    backend: str
    json: str | None


def add_options(parser: OptionParser) -> None:
    """Add what ``python -m benchmarks accuracy`` takes."""
    parser.add_argument(
        "--data", required=True, metavar="DIR", help="a folder with images/ and masks/ of the same names"
    )
    parser.add_argument(
        "--model", default="u2netp", metavar="NAME|DIR", help="a bundle or a published network (default: %(default)s)"
    )
    parser.add_argument("--contract", default="official", help="for a published network (default: %(default)s)")
    parser.add_argument("--precision", default="fp32", help="for a published network (default: %(default)s)")
    parser.add_argument("--backend", default="auto", help="what runs the network (default: %(default)s)")


def measure(options: Options) -> None:
    """Run the benchmark and print its table.

    Raises:
        EdgemaskError: the data set has no pictures, or a picture has no mask of its size.
    """
    data = Path(options.data)
    bundle = read_or_compile(options.model, options.contract, options.precision)
    metrics = SaliencyMetrics()
    truths = read_truths(str(data / "masks"), "binary", "--data")
    with open_source(str(data / "images")) as source, open_engine(bundle, options.backend) as engine:
        for frame in tqdm(source, total=source.info.frame_count, unit=" pictures"):
            mask_hw = engine(frame.as_pixels(engine.pixels)[None])[0]
            metrics.add(*with_void_agreed(mask_hw, truths(frame.name, frame.size_hw)))
        backend = engine.description
    result = metrics.result()
    manifest = bundle.manifest
    contract = manifest.contract["name"]
    print(
        f"{manifest.model}, {manifest.precision}, contract {contract}, {backend}, {result['pictures']} pictures of {data.name}"
    )
    print("| " + " | ".join(COLUMNS.values()) + " |\n" + "|---" * len(COLUMNS) + "|")
    print("| " + " | ".join(f"{result[name]:.4f}" for name in COLUMNS) + " |")
    print(EXPLAINED)
    if options.json:
        write_result(
            Path(options.json),
            "accuracy",
            {
                "data": data.name,
                "model": manifest.model,
                "precision": manifest.precision,
                "contract": contract,
                "network_size_hw": manifest.network_size_hw,
                "backend": backend,
                "table": [result],
                "ratios": {},
            },
        )
