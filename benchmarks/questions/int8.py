"""How much of the trained network's masks does INT8 keep? Ours, and what other tools make of the same network by default.

The other tools get the network alone, as ONNX or as a PyTorch module, and what the frame program gives it for the same calibration
pictures. What they make goes back into the same frame program, and all run on ONNX Runtime as the file says, on the same pictures.
"""

from __future__ import annotations

import copy
import glob
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.peers.int8_tools import PEERS, Inputs, int8_share
from benchmarks.shared.environment import write_result
from benchmarks.shared.watched_compile import Search, compile_watched
from calibration.inference_form import Scores
from calibration.metrics.agreement import boundary_iou, iou, mean_absolute_error
from calibration.metrics.saliency import SaliencyMetrics
from calibration.metrics.truth import Truth, read_truths, with_void_agreed
from calibration.sets.frames import HashedFrames, open_calibration
from compile.networks.zoo import fetch
from compile.program.foreign import wrap
from compile.program.layered_program import with_channels_first
from compile.program.network import Network
from compile.program.onnx_export import export_module
from compile.program.open_network import open_network
from compile.proof.verify import Masks, mean_interval, program_masks
from pipeline.bundles.bundle import Bundle, cache_folder, file_sha256
from pipeline.command.command_line import OptionParser
from pipeline.errors import OptionError
from pipeline.sources import open_source

COLUMNS = {  # entry of a row: (what the table calls it, how it is written)
    "share_of_work": ("work in INT8", "{:.1%}"),
    "iou_mean": ("IoU against FP32", "{:.4f}"),
    "iou_low": ("lower end", "{:.4f}"),
    "iou_worst": ("worst", "{:.4f}"),
    "mae": ("MAE", "{:.4f}"),
    "boundary_iou": ("boundary IoU", "{:.4f}"),
    "max_f": ("max F-measure", "{:.4f}"),
    "max_f_difference": ("less FP32's", "{:+.4f}"),
    "truth_iou": ("IoU with the truth", "{:.4f}"),
}

# In a smaller subject a few pixels decide the IoU.
_SMALLEST_SUBJECT = 0.01
_INSTALL = "pip install 'edgemask[peers]'"


EXPLAINED = """
IoU, MAE and boundary IoU: with the masks of the trained network in FP32, so that its own row has 1, 0 and 1; lower end: of the 95 %
interval of the mean IoU; worst: the picture with least IoU. max F-measure: with ground truth; less FP32's:
what INT8 takes or gives of it. IoU with the truth: the mean of the pictures'."""


@dataclass(frozen=True, slots=True)
class Options:
    """What ``python -m benchmarks int8`` is asked.

    Attributes:
        data: a folder with images/ and masks/ of the same names.
        model: a published network's name.
        weights: a checkpoint in its place, or any network as ONNX or ``.pt2``.
        bundle: ours, compiled before; None: compiled now.
        contract: of the network.
        calib: pictures to calibrate on.
        calib_size: at most so many of them.
        verify: pictures to measure on.
        plot: a PNG file for the plot; None: no plot.
        json: a file for the result; None: no file.
    """

    data: str
    model: str
    weights: str | None
    bundle: str | None
    contract: str
    calib: str | None
    calib_size: int
    verify: str | None
    plot: str | None
    json: str | None


def add_options(parser: OptionParser) -> None:
    """Add what ``python -m benchmarks int8`` takes."""
    parser.add_argument(
        "--data", required=True, metavar="DIR", help="a folder with images/ and masks/ of the same names"
    )
    parser.add_argument("--model", default="u2netp", metavar="NAME", help="a published network (default: %(default)s)")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="a checkpoint, or any network as .onnx or .pt2 with its --contract, in place of --model",
    )
    parser.add_argument(
        "--bundle",
        metavar="DIR",
        help="an INT8 bundle that was compiled before (default: compile one now, which takes minutes)",
    )
    parser.add_argument("--contract", default="stream", help="contract of the network (default: %(default)s)")
    parser.add_argument(
        "--calib", metavar="SOURCE", help="pictures to calibrate on (default: those of DIR/images whose names end in 0)"
    )
    parser.add_argument(
        "--calib-size", type=int, default=64, metavar="N", help="calibration pictures, at most (default: %(default)s)"
    )
    parser.add_argument("--verify", metavar="SOURCE", help="pictures to measure on (default: the others)")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the IoU of every picture, sorted, one line per tool")


def measure(options: Options) -> None:
    """Run the benchmark and print its table.

    Raises:
        EdgemaskError: the data set has no pictures, a picture has no mask, or the bundle is not of the same network in INT8.
    """
    data = Path(options.data)
    calib, verify = _sources(data, options.calib, options.verify)
    weights = Path(options.weights) if options.weights else fetch(options.model, cache_folder() / "weights")
    search: Search | None = None
    if options.bundle:
        bundle = _int8_bundle(Bundle.read(options.bundle))
    else:
        bundle, search = _compile(options, calib)
    trained = _network(weights, options.contract, bundle)
    inputs, sha256 = _network_inputs(trained, calib, options.calib_size)
    same_pictures = sha256 == bundle.manifest.calibration.get("sha256")
    tools = _tools(trained, bundle, inputs)
    truths = read_truths(str(data / "masks"), "binary", "--data")
    with open_source(verify) as source:
        for frame in tqdm(source, total=source.info.frame_count, unit=" pictures"):
            truth_hw = truths(frame.name, frame.size_hw)
            reference_hw = trained.reference(frame.image[None]).masks_nhw[0]
            for tool in tools:
                tool.add(frame.image, frame.name, reference_hw, truth_hw)
    rows = [tool.row(tools[0]) for tool in tools]
    print(
        f"{bundle.manifest.model}, contract {trained.contract.name}, calibrated on {len(inputs)} pictures, "
        f"measured on {len(tools[0].ious)} others of {data.name}"
    )
    print("\n".join(_table(rows)))
    print(EXPLAINED)
    if search is not None:
        print("\n".join(_cost(search)))
    if not same_pictures:
        print(f"note: the bundle was calibrated on other pictures ({bundle.manifest.calibration.get('source')})")
    if options.plot:
        from benchmarks.shared.plots import lines, write_plot

        title = f"Masks of {bundle.manifest.model} in INT8, by tool"
        of_x = "pictures, the worst first (%)"
        write_plot(options.plot, lines(title, of_x, "IoU with the FP32 mask", {"": _sorted_ious(tools[1:])}))
    if options.json:
        write_result(
            Path(options.json),
            "int8",
            {
                "data": data.name,
                "model": bundle.manifest.model,
                "contract": trained.contract.name,
                "network_size_hw": trained.contract.imgsz,
                "pictures": {"calibration": len(inputs), "measured": len(tools[0].ious)},
                "bundle_has_the_same_calibration_pictures": same_pictures,
                "search": None if search is None else search.as_dict(),
                "table": rows,
                "ratios": _ratios(rows),
            },
        )


@dataclass
class _Tool:
    """A row of the table: what makes its masks, and what they were like so far; or what it needs to be there."""

    key: str
    label: str
    version: str = ""
    share_of_work: float | None = None
    masks: Masks | None = None
    missing: str = ""
    ious: list[tuple[float, str, bool]] = field(default_factory=list)  # of a picture: IoU, name, has a subject
    maes: list[float] = field(default_factory=list)
    boundary_ious: list[float] = field(default_factory=list)
    truth_ious: list[float] = field(default_factory=list)
    metrics: SaliencyMetrics = field(default_factory=SaliencyMetrics)

    def add(self, image: NDArray[np.uint8], name: str, reference_hw: NDArray[np.uint8], truth_hw: Truth) -> None:
        if self.masks is None:
            return
        mask_hw = reference_hw if self.key == "fp32" else self.masks(image[None])[0]
        has_subject = float((reference_hw >= 127.5).mean()) >= _SMALLEST_SUBJECT
        self.ious.append((iou(mask_hw, reference_hw), name, has_subject))
        self.maes.append(mean_absolute_error(mask_hw, reference_hw))
        self.boundary_ious.append(boundary_iou(mask_hw, reference_hw))
        agreed_hw, subject_hw = with_void_agreed(mask_hw, truth_hw)
        self.metrics.add(agreed_hw, subject_hw)
        self.truth_ious.append(iou(agreed_hw, 255 * subject_hw.astype(np.uint8)))

    def row(self, reference: _Tool) -> dict[str, Any]:
        named = {"tool": self.key, "label": self.label, "version": self.version}
        if self.masks is None:
            return {**named, "missing": self.missing}
        max_f = self.metrics.result()["max_f"]
        ious = [value for value, _, _ in self.ious]
        worst, picture = min(
            ((value, name) for value, name, has_subject in self.ious if has_subject), default=(None, "")
        )
        return {
            **named,
            "share_of_work": None if self.share_of_work is None else round(self.share_of_work, 5),
            "iou_mean": round(float(np.mean(ious)), 5),
            "iou_low": round(mean_interval(ious)[0], 5),
            "iou_worst": None if worst is None else round(worst, 5),
            "worst_picture": picture,
            "mae": round(float(np.mean(self.maes)), 5),
            "boundary_iou": round(float(np.mean(self.boundary_ious)), 5),
            "max_f": max_f,
            "max_f_difference": round(max_f - reference.metrics.result()["max_f"], 5),
            "truth_iou": round(float(np.mean(self.truth_ious)), 5),
        }


def _tools(trained: Network, bundle: Bundle, inputs: Inputs) -> list[_Tool]:
    """The trained network, ours, and what each of the other tools makes of it."""
    return [
        _Tool(
            "fp32",
            "the trained network, FP32",
            share_of_work=0.0,
            masks=lambda frames: trained.reference(frames).masks_nhw,
        ),
        _Tool(
            "ours",
            "edgemask",
            share_of_work=bundle.manifest.calibration.get("share_of_work"),
            masks=program_masks(bundle.program_path.read_bytes())[0],
        ),
        *_quantised(trained, inputs),
    ]


def _quantised(trained: Network, inputs: Inputs) -> Iterator[_Tool]:
    """What each of the other tools makes of the network, in the frame program."""
    program = trained.module("fp32", ())
    network, contract = Scores(program.network).eval(), with_channels_first(trained.contract)
    # An activation at the network's end was cut off: the tools get what is in front of it, as our search does.
    if program.after.ends_in == "sigmoid":
        contract = replace(contract, activation="sigmoid")
    with tempfile.TemporaryDirectory(prefix="edgemask.") as folder:
        exported = Path(folder) / "network.onnx"
        example = torch.zeros(1, *inputs.shape[1:])
        onnx.save(export_module(network, (example,), (None,), ("input",), ("scores",)), str(exported))
        for key, peer in PEERS.items():
            quantised = Path(folder) / f"{key}.onnx"
            try:
                with _to_stderr(peer.label):
                    peer.quantise(copy.deepcopy(network), exported, inputs, quantised)
            except ImportError as error:
                reason = f"needs packages that are not here ({error}): {_INSTALL}"
                yield _Tool(key, peer.label, missing=reason)
                continue
            model = onnx.load(str(quantised))
            masks, _ = program_masks(wrap(model, contract, None, channels=trained.class_count).SerializeToString())
            yield _Tool(key, peer.label, metadata.version(peer.package), int8_share(model), masks)


@contextmanager
def _to_stderr(label: str) -> Iterator[None]:
    # The table goes to standard output; the tools talk.
    print(f"quantising: {label}", file=sys.stderr)
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield


def _sources(data: Path, calib: str | None, verify: str | None) -> tuple[str, str]:
    """Where the pictures to calibrate and to measure on are."""
    for folder in (data / "images", data / "masks"):
        if not folder.is_dir():
            raise OptionError(f"--data {data}: expected a folder with images/ and masks/, got none in {folder}")
    images = glob.escape(str(data / "images"))
    calib, verify = calib or f"{images}/*0.*", verify or f"{images}/*[!0].*"
    with open_calibration(calib, 1) as first, open_source(verify) as second:
        both = set(first.info.paths) & set(second.info.paths)
    if both:
        raise OptionError(f"--verify: expected other pictures than --calib, got {len(both)} in both ({min(both)})")
    return calib, verify


def _compile(options: Options, calib: str) -> tuple[Bundle, Search]:
    """Compile ours; what it searches on are calibration pictures too, so that it sees none of those that are measured."""
    name = Path(options.weights).stem if options.weights else options.model
    network = ["--weights", options.weights] if options.weights else ["--model", options.model]
    arguments = ["--contract", options.contract, "--precision", "int8", "--strict", "--min-iou", "0"]
    arguments += ["--calib", calib, "--calib-size", str(options.calib_size), "--verify", calib]
    return compile_watched(f"{name}-int8-{Path(options.contract).stem}", [*network, *arguments])


def _int8_bundle(bundle: Bundle) -> Bundle:
    if bundle.manifest.precision != "int8":
        raise OptionError(
            f"--bundle {bundle.folder}: expected a bundle in INT8, got {bundle.manifest.precision}: "
            "compile one with --precision int8 --strict"
        )
    return bundle


def _network(weights: Path, contract: str, bundle: Bundle) -> Network:
    """The trained network that a bundle was made of.

    Raises:
        OptionError: the bundle is of another network or contract, or the network is not for masks with one class.
    """
    manifest = bundle.manifest
    if file_sha256(weights) != manifest.weights.get("sha256"):
        raise OptionError(
            f"--bundle {bundle.folder}: expected one of {weights.name}, got one of {manifest.weights.get('file')}: "
            "name its network with --model or --weights"
        )
    trained = open_network(weights, contract, imgsz=manifest.network_size_hw)
    if json.loads(json.dumps(trained.contract.as_dict())) != manifest.contract:
        raise OptionError(
            f"--bundle {bundle.folder}: expected contract {trained.contract.name}, got {manifest.contract.get('name')}: "
            "name the bundle's with --contract"
        )
    if trained.class_count != 1:
        raise OptionError(f"{weights.name}: expected a network of one class, got {trained.class_count}")
    return trained


def _network_inputs(trained: Network, calib: str, count: int) -> tuple[Inputs, str]:
    """What the frame program gives the network for the calibration pictures, and the pictures' sha256."""
    before = trained.module("fp32", ()).before.eval()
    with open_calibration(calib, count) as source, torch.inference_mode():
        frames = HashedFrames(source)
        inputs = [before(torch.from_numpy(np.ascontiguousarray(frame.image[None]))).numpy() for frame in frames]
    return np.concatenate(inputs), frames.sha256


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "| | " + " | ".join(title for title, _ in COLUMNS.values()) + " |"
    yield "|---" * (len(COLUMNS) + 1) + "|"
    for row in rows:
        if "missing" in row:
            yield f"| {row['label']} | {row['missing']} |" + " |" * (len(COLUMNS) - 1)
            continue
        cells = {
            name: "–" if row[name] is None else pattern.format(row[name]) for name, (_, pattern) in COLUMNS.items()
        }
        if row["worst_picture"]:
            cells["iou_worst"] += f" ({row['worst_picture']})"
        yield f"| {' '.join((row['label'], row['version'])).strip()} | " + " | ".join(cells.values()) + " |"


def _cost(search: Search) -> Iterator[str]:
    yield (
        f"ours: {search.calibration_s:.0f} s of calibration and {search.search_s:.0f} s of search, "
        f"at most {search.peak_memory_mb:.0f} MB of memory"
    )
    for share, told_s, really_s in search.told:
        yield f"at {share:.0%} it said {told_s:.0f} s left: really {really_s:.0f} s"


def _ratios(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Our IoU by that of each tool, and what each tool loses of the masks by what we lose; none where it would be by nothing."""
    ious = {row["tool"]: row["iou_mean"] for row in rows if "missing" not in row}
    ours = ious["ours"]
    peers = {key: value for key, value in ious.items() if key in PEERS}
    by_iou = {f"ours_iou_over_{key}": round(ours / value, 4) for key, value in peers.items() if value >= 0.01}
    by_loss = {f"{key}_loss_over_ours": round((1 - value) / (1 - ours), 4) for key, value in peers.items() if ours < 1}
    return by_iou | by_loss


def _sorted_ious(tools: Sequence[_Tool]) -> dict[str, list[tuple[float, float]]]:
    """The IoU of each tool's pictures, the worst first, over their share in percent."""
    lines = {}
    for tool in tools:
        values = sorted(value for value, _, _ in tool.ious)
        if values:
            lines[tool.label] = [(100 * index / max(1, len(values) - 1), value) for index, value in enumerate(values)]
    return lines
