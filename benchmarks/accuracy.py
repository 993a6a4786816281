"""How good are the masks? A bundle on a data set with ground truth: max F-measure, mean absolute error, IoU."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import py_sod_metrics
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.environment import write_result
from calibration.agreement import iou
from compile.__main__ import main as compile_main
from pipeline.bundle import Bundle, cache_folder
from pipeline.command_line import OptionParser, SaidError
from pipeline.engines import open_engine
from pipeline.errors import OptionError, ShapeError
from pipeline.sources import open_source
from pipeline.sources.pictures import read_picture

BETA_SQUARED = 0.3  # the weight of precision that saliency papers use


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


def measure(options: argparse.Namespace) -> None:
    """Run the benchmark and print its table.

    Raises:
        OptionError: the data set has no pictures or no masks.
    """
    data = Path(options.data)
    bundle = _bundle(options)
    metrics = SaliencyMetrics()
    with open_source(str(data / "images")) as source, open_engine(bundle, options.backend) as engine:
        for frame in tqdm(source, total=source.info.frame_count, unit=" pictures"):
            mask_hw = engine(frame.image[None])[0]
            metrics.add(mask_hw, read_truth(data / "masks" / f"{frame.name}.png"))
        backend = engine.description
    result = metrics.result()
    manifest = bundle.manifest
    contract = manifest.contract["name"]
    print(
        f"{manifest.model}, {manifest.precision}, contract {contract}, {backend}, {result['pictures']} pictures of {data.name}"
    )
    print("| max F-measure | max of mean F-measure | MAE | IoU at 0.5 |\n|---|---|---|---|")
    print(f"| {result['max_f']:.4f} | {result['max_mean_f']:.4f} | {result['mae']:.4f} | {result['iou']:.4f} |")
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


class SaliencyMetrics:
    """Collects the metrics of saliency papers over a data set, with PySODMetrics' curves.

    There are two ways to take the maximum of the F-measure over 256 thresholds. Papers (and U²-Net's) average precision and recall
    over the pictures and take F of the averages; PySODMetrics averages F over the pictures.
    """

    def __init__(self) -> None:
        handlers = {"p": py_sod_metrics.PrecisionHandler, "r": py_sod_metrics.RecallHandler}
        made = {name: handler(with_dynamic=True, with_adaptive=False) for name, handler in handlers.items()}
        made["f"] = py_sod_metrics.FmeasureHandler(beta=BETA_SQUARED, with_dynamic=True, with_adaptive=False)
        self._curves = py_sod_metrics.FmeasureV2(metric_handlers=made)
        self._errors: list[float] = []
        self._ious: list[float] = []

    def add(self, mask_hw: NDArray[np.uint8], truth_hw: NDArray[np.bool_]) -> None:
        """Add one picture.

        Args:
            mask_hw: (H, W) uint8, probability × 255.
            truth_hw: (H, W) bool, True on the subject.

        Raises:
            ShapeError: they differ in size.
        """
        if mask_hw.shape != truth_hw.shape:
            raise ShapeError(f"ground truth: expected {mask_hw.shape} as the picture, got {truth_hw.shape}")
        probability = mask_hw / 255
        # Not stretched to the mask's own extremes, as the package would: that is the contract's business.
        self._curves.step(pred=probability, gt=truth_hw, normalize=False)
        self._errors.append(float(np.abs(probability - truth_hw).mean()))
        self._ious.append(iou(mask_hw, truth_hw.astype(np.uint8) * 255))

    def result(self) -> dict[str, Any]:
        """Number of pictures, both maxima of the F-measure, mean absolute error and mean IoU at 0.5."""
        if not self._errors:
            raise OptionError("--data: expected pictures with masks, got none")
        curves = self._curves.get_results()
        precision, recall = curves["p"]["dynamic"], curves["r"]["dynamic"]
        f_measure = (1 + BETA_SQUARED) * precision * recall / np.maximum(BETA_SQUARED * precision + recall, 1e-9)
        return {
            "pictures": len(self._errors),
            "max_f": round(float(f_measure.max()), 5),
            "max_mean_f": round(float(curves["f"]["dynamic"].max()), 5),
            "mae": round(float(np.mean(self._errors)), 5),
            "iou": round(float(np.mean(self._ious)), 5),
        }


def read_truth(path: Path) -> NDArray[np.bool_]:
    """Read a ground-truth mask: (H, W) bool, True where the picture is above 127.

    Raises:
        SourceError: it is missing or no picture.
    """
    truth: NDArray[np.bool_] = read_picture(path)[:, :, 0] > 127
    return truth


def _bundle(options: argparse.Namespace) -> Bundle:
    if Path(options.model).exists():
        return Bundle.read(options.model)
    folder = cache_folder() / "benchmarks" / f"{options.model}-{options.precision}-{options.contract}"
    arguments = ["--model", options.model, "--contract", options.contract, "--precision", options.precision]
    if compile_main([*arguments, "--output", str(folder)]) != 0:
        raise SaidError(options.model)
    return Bundle.read(folder)
