"""python -m benchmarks.readme: writes the documents' figures from ``benchmarks/results/``; with --check says whether they are those."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.command.command_line import OptionParser, run_command
from pipeline.errors import OptionError

ROOT = Path(__file__).parents[1]

# A block may be empty; it ends at the first end.
_BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n)(?:(?!<!-- ).*\n)*(<!-- end -->)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return run_command(lambda: _write_figures(check=_checks(arguments)))


def with_figures(text: str, results: Path) -> str:
    """A document whose marked blocks hold the figures of the results.

    Args:
        text: with blocks ``<!-- figures: NAME --> … <!-- end -->``.
        results: a folder of JSON files.

    Raises:
        OptionError: a block is not known, or its result is not there.
    """

    def block(match: re.Match[str]) -> str:
        make = BLOCKS.get(match[2])
        if make is None:
            raise OptionError(f"figures: expected one of {', '.join(BLOCKS)}, got {match[2]}")
        return match[1] + "".join(f"{line}\n" for line in make(results)) + match[3]

    return _BLOCK.sub(block, text)


def _accuracy(results: Path) -> list[str]:
    (row,) = _read(results, "accuracy_u2netp_official")["table"]
    figures = (row[name] for name in ("max_f", "s_measure", "mae", "iou", "boundary_iou"))
    return [
        "| max F-measure | S-measure | MAE | IoU at 0.5 | boundary IoU at 0.5 |",
        "|---|---|---|---|---|",
        f"| {' | '.join(f'{figure:.4f}' for figure in figures)} |",
    ]


def _good(results: Path) -> list[str]:
    (truth,) = _read(results, "accuracy_u2netp_official")["table"]
    rows = {row["tool"]: row for row in _read(results, "int8_u2netp")["table"]}
    ours, others = rows["ours"], [row for tool, row in rows.items() if tool not in ("fp32", "ours", "ours_for_cpu")]
    work = f"{100 * ours['share_of_work']:.0f} % of the work in INT8"
    return [
        "| U²-NetP on ECSSD | |",
        "|---|---|",
        f"| FP32, max F-measure on {truth['pictures']} pictures (the paper: 0.943 on all 1000) | {truth['max_f']:.4f} |",
        f"| FP32, mean absolute error (the paper: 0.041) | {truth['mae']:.4f} |",
        f"| FP32, IoU with the ground truth at 0.5 | {truth['iou']:.4f} |",
        f"| INT8 ({work}), IoU with the FP32 masks | {ours['iou_mean']:.3f} |",
        f"| the same, max F-measure less FP32's | {ours['max_f_difference']:+.4f} |",
        f"| INT8 of ONNX Runtime, NNCF and ModelOpt, the best of {len(others)} settings, IoU with the FP32 masks "
        f"| {max(row['iou_mean'] for row in others):.3f} |",
    ]


def _int8(results: Path) -> list[str]:
    return _int8_table(_read(results, "int8_u2netp")["table"])


def _int8_carvana(results: Path) -> list[str]:
    return _int8_table(_read(results, "int8_carvana")["table"])


_INT8_COLUMNS = {  # entry of a row: (what the table calls it, how it is written)
    "share_of_work": ("work in INT8", "{:.1%}"),
    "iou_mean": ("IoU with FP32", "{:.4f}"),
    "iou_low": ("lower end", "{:.4f}"),
    "iou_worst": ("worst", "{:.3f}"),
    "max_f": ("max F-measure", "{:.4f}"),
    "max_f_difference": ("difference to FP32", "{:+.4f}"),
    "truth_iou": ("IoU with the truth", "{:.4f}"),
}


def _int8_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    titles = [title for title, _ in _INT8_COLUMNS.values()]
    lines = [f"| | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for row in rows:
        cells = {key: "–" if row[key] is None else text.format(row[key]) for key, (_, text) in _INT8_COLUMNS.items()}
        name = f"{row['label']} {row['version']}".strip()
        if row["tool"] == "ours":
            name, cells["iou_mean"] = f"**{name}**", f"**{cells['iou_mean']}**"
        lines.append(f"| {name} | {' | '.join(cells.values())} |")
    return lines


def _peers_with_openvino(results: Path) -> list[str]:
    ratios = _read(results, "peers_measured_auto")["ratios"]
    others = {
        "rembg, masks": "fps_over_rembg",
        "rembg, cut-outs": "fps_over_rembg_cutouts",
        "`rembg.remove`": "fps_over_rembg_remove",
        "OpenCV, ONNX Runtime, numpy": "fps_over_opencv",
        "OpenCV, OpenVINO (FP32), numpy": "fps_over_openvino_fp32",
        "OpenCV, OpenVINO (its default, BF16), numpy": "fps_over_openvino",
    }
    return [
        "| beside | FPS of edgemask / its |",
        "|---|---|",
        *(f"| {name} | {ratios[key]:.2f} |" for name, key in others.items()),
    ]


def _speed(results: Path) -> list[str]:
    latency, host, soak, start = (_read(results, name) for name in ("latency", "host", "soak", "start"))
    ratios = {**latency["ratios"], **host["ratios"], **soak["ratios"], **start["ratios"]}
    rows = [
        ("pipeline throughput relative to the backend alone: U²-NetP, 720p", "pipeline_over_engine", "{:.3f}"),
        ("the same with a stand-in backend of 10 ms, 1080p", "pipeline_over_engine_sleep10", "{:.3f}"),
        ("drawing the overlay at 1080p, the mask on 20 % of it", "overlay_ms_1080p", "{:.2f} ms"),
        ("supervision's `MaskAnnotator` takes", "overlay_supervision_over_ours", "{:.1f} times as long"),
        ("the plain formula in NumPy takes", "overlay_numpy_over_ours", "{:.0f} times as long"),
        (
            "from the command to the first mask, relative to ONNX Runtime alone",
            "first_mask_over_runtime",
            "{:.2f} times as long",
        ),
        ("`python -m pipeline --help`", "help_s", "{:.2f} s"),
        (f"memory that {soak['frames']:,} frames add after the first 1,000", "soak_growth_mb", "{:.2f} MB"),
    ]
    return ["| on 2 CPU cores | |", "|---|---|"] + [
        f"| {what} | {text.format(ratios[name])} |" for what, name, text in rows
    ]


def _peers(results: Path) -> list[str]:
    table = _read(results, "peers")["table"]
    lines = ["| edgemask compared with | throughput of edgemask, relative to it |", "|---|---|"]
    return lines + [f"| {row['label']} | {row['ours_over']:.2f} |" for row in table if "ours_over" in row]


def _scale(results: Path) -> list[str]:
    lines = ["| frames travel | in flight | frames per second, relative to in the process |", "|---|---|---|"]
    travel = {"raw": "in the messages", "shared": "in shared memory"}
    for row in _read(results, "scale")["table"]["server"]:
        if row["computed"] in travel:
            lines.append(f"| {travel[row['computed']]} | {row['in_flight']} | {row['ratio']:.2f} |")
    return lines


def _sizes(results: Path) -> list[str]:
    lines = ["| `--imgsz` | frames per second | IoU with the masks of 320 | max F-measure |", "|---|---|---|---|"]
    for row in _read(results, "sizes_u2netp")["table"]:
        lines.append(f"| {row['size']} | {row['fps']:.1f} | {row['iou_mean']:.3f} | {row['max_f']:.3f} |")
    return lines


def _flicker(results: Path) -> list[str]:
    rows = {(row["setting"], row["noise"] > 0): row for row in _read(results, "flicker_u2netp")["table"]}
    lines = [
        "| | flicker relative to no smoothing | with noise (σ = 6) | IoU with the FP32 mask, mean and worst |",
        "|---|---|---|---|",
    ]
    for name, setting in (("on", "default"), ("strong", "stronger")):
        row, noisy = rows[setting, False], rows[setting, True]
        iou = f"{row['iou_mean']:.4f}, {row['iou_worst']:.4f}"
        lines.append(f"| `--smooth {name}` | {row['of_off']:.2f} | {noisy['of_off']:.2f} | {iou} |")
    return lines


def _motion(results: Path) -> list[str]:
    lines = [
        "| clip | every mask is moved: IoU, 5th percentile | as it is: frames with a moved mask | their IoU, 5th percentile "
        "| below 0.9 | IoU, as the run tells | computed masks a second that would be enough, as the run tells |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in _read(results, "motion")["table"]:
        every, moved = (_pair(row[name], row[f"{name}_p5"]) for name in ("iou_all", "iou"))
        told = "" if row["told"] is None else f"{row['told']:.3f}"
        below = "" if row["below"] is None else f"{row['below']:.0%}"
        enough = "" if row["enough_fps"] is None else f"{row['enough_fps']:.1f}"
        cells = (row["label"], every, f"{row['moved']:.0%}", moved, below, told, enough)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _pair(mean: float | None, low: float | None) -> str:
    return "" if mean is None or low is None else f"{mean:.3f}, {low:.3f}"


def _networks(results: Path) -> list[str]:
    rows = [row for row in _read(results, "networks")["table"] if "error" not in row]
    variants = [row for row in rows if row["source"].startswith("a small network")]
    lines = ["| network | from | opset | contract found | FP32 | FP16 |", "|---|---|---|---|---|---|"]
    for row in rows:
        if row in variants:
            continue
        figures = [f"{part['mean']:.4f}" if "mean" in (part := row[name]) else "refused" for name in ("fp32", "fp16")]
        if not row["passes"] and "rounded_input" in row:
            figures[1] += f" ({row['rounded_input']:.4f})"
        cells = (row["name"], row["source"], row.get("opset", ""), row["contract"], *figures)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    opsets = [row["opset"] for row in variants if "opset" in row]
    verdicts = Counter(row["contract"] for row in variants)
    lowest = [f"{min(row[name].get('mean', 0) for row in variants):.4f}" for name in ("fp32", "fp16")]
    told = "; ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    names = ", ".join(row["name"] for row in variants if not row["name"].startswith("opset"))
    cells = (f"{len(variants)} variants of a small one", names, f"{min(opsets)} to {max(opsets)}", told)
    lines.append(f"| {' | '.join((*cells, *(f'{figure} or more' for figure in lowest)))} |")
    return lines


BLOCKS: dict[str, Callable[[Path], list[str]]] = {
    "accuracy": _accuracy,
    "good": _good,
    "speed": _speed,
    "peers": _peers,
    "sizes": _sizes,
    "flicker": _flicker,
    "motion": _motion,
    "networks": _networks,
    "scale": _scale,
    "int8": _int8,
    "int8_carvana": _int8_carvana,
    "peers_with_openvino": _peers_with_openvino,
}
DOCUMENTS = (
    "README.md",
    "docs/performance.md",
    "docs/contracts.md",
    "docs/scale-triton.md",
    "docs/quantization.md",
    "docs/experiments.md",
)


def _read(results: Path, name: str) -> dict[str, Any]:
    try:
        entries: dict[str, Any] = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(
            f"{name}.json: expected a result in {results.name}/, got none: run the benchmark with --json"
        ) from error
    return entries


def _checks(arguments: Sequence[str] | None) -> bool:
    parser = OptionParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; status 2 where figures are others")
    return bool(parser.parse_args(arguments).check)


def _write_figures(*, check: bool) -> None:
    for name in DOCUMENTS:
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        made = with_figures(text, ROOT / "benchmarks" / "results")
        if made == text:
            continue
        if check:
            raise OptionError(f"{name}: expected the figures of benchmarks/results/, got others: make readme")
        path.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
