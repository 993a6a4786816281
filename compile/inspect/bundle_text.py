"""What a bundle says of itself, and its files, as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compile.inspect.report import FileReport, Report
from compile.inspect.table import LISTED, clean, field, listed, number_text, plural, size_text, table
from pipeline.bundles.bundle import DRIFT_NAME, MANIFEST_NAME, REFERENCE_NAME, Manifest
from pipeline.frames.pixels import bands_of

_SUM_DIGITS = 12


def bundle_lines(report: Report, *, all_layers: bool, width: int) -> Iterator[str]:
    """What the manifest says, and the files; ``all_layers`` shows every name in a list."""
    limit = None if all_layers else LISTED
    yield f"Bundle {clean(report.folder)}"
    manifest = report.manifest
    noun = "class" if len(manifest.classes) == 1 else "classes"
    yield from field(
        "model", f"{manifest.model}, {len(manifest.classes)} {noun}: {listed(manifest.classes, limit)}", width
    )
    weights = manifest.weights
    kinds = ", ".join(str(weights[key]) for key in ("family", "architecture") if key in weights)
    told = [str(weights.get("file", "unknown")), f"({kinds})" if kinds else "", _short(weights.get("sha256"))]
    yield from field("weights", " ".join(part for part in told if part), width)
    frames = "any size" if manifest.frame_size_hw is None else _size(manifest.frame_size_hw)
    if manifest.tiles is not None:
        frames = f"any size, in tiles of {frames} that overlap by {manifest.tiles.overlap}"
    bands = bands_of(manifest.pixels)
    frames += ", NV12" if manifest.pixels == "nv12" else "" if bands is None else f", {bands}"
    yield from field(
        "frames", f"{frames}; {_size(manifest.network_size_hw)} inside the network (height × width)", width
    )
    yield from field("contract", str(manifest.contract.get("name", "unknown")), width)
    yield from field("precision", _precision(manifest.precision, manifest.layers, limit), width)
    yield from field("agreement", agreement_text(manifest.verification), width)
    yield from field("reference", _reference(manifest), width)
    yield from field("drift", _drift(manifest), width)
    tools = ", ".join(f"{name} {version}" for name, version in manifest.tools.items())
    yield from field("created", manifest.created + (f" with {tools}" if tools else ""), width)
    yield ""
    yield "Files"
    yield from table(("name", ">size", "state"), [_file_row(file) for file in report.files], width)


def _reference(manifest: Manifest) -> str:
    if manifest.precision == "fp32":
        return "the program itself, in FP32"
    if REFERENCE_NAME in manifest.files:
        return f"{REFERENCE_NAME}, the same program in FP32"
    return "none: no program in FP32 to compare a run with"


def _drift(manifest: Manifest) -> str:
    if DRIFT_NAME not in manifest.files:
        return "none: no figures of the frames that it was verified on, for --drift"
    return f"{DRIFT_NAME}, figures of the frames that it was calibrated or verified on"


def _precision(precision: str, layers: Mapping[str, str], limit: int | None) -> str:
    others: dict[str, list[str]] = {}
    for name, other in layers.items():
        others.setdefault(str(other), []).append(name)
    kept = [f"{other} in {plural(len(names), 'layer')}: {listed(names, limit)}" for other, names in others.items()]
    return "; ".join([precision, *kept])


def agreement_text(verification: Mapping[str, Any]) -> str:
    """How far masks agree with the reference's, as ``compile.proof.verify`` found."""
    if not verification:
        return "not checked"
    get = verification.get
    interval = (
        f" ({number_text(get('iou_low'), 4)} to {number_text(get('iou_high'), 4)})" if "iou_low" in verification else ""
    )
    worst = (
        f"worst {number_text(get('iou_worst'), 4)} ({get('worst_frame')})"
        if "iou_worst" in verification
        else "no worst"
    )
    return (
        f"IoU {number_text(get('iou_mean'), 4)}{interval}, {worst}, "
        f"MAE {number_text(get('mae'), 5)} on {get('frames')} {get('source')}, against {get('against')}, "
        f"run by {get('runtime')}" + _gate(get("gate"))
    )


def _gate(gate: Any) -> str:
    if not isinstance(gate, Mapping):
        return ""
    return f"; the gate asked for {number_text(gate.get('mean'), 4)}, worst {number_text(gate.get('worst'), 4)}"


def _file_row(file: FileReport) -> tuple[str, str, str]:
    size = "–" if file.size_bytes is None else size_text(file.size_bytes)
    return file.name, size, state_text(file)


def state_text(file: FileReport) -> str:
    """Whether a file fits its sha256."""
    if file.state == "damaged":
        return f"DAMAGED: expected sha256 {_short(file.expected)}, got {_short(file.sha256)}"
    if file.state == "unlisted":
        return "–" if file.name == MANIFEST_NAME else "not in the manifest"
    words = {
        "fits": "fits its sha256",
        "missing": "MISSING",
        "unreadable": "UNREADABLE",
        "outside": "OUTSIDE the bundle, not read",
    }
    return words[file.state]


def _size(size_hw: Sequence[int]) -> str:
    return "×".join(str(side) for side in size_hw)


def _short(sha256: Any) -> str:
    return f"{str(sha256)[:_SUM_DIGITS]}…" if sha256 is not None else ""
