"""Rows of the GPU benchmark: each is kept as soon as it is measured, what fails is a row too, and a table shows them."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Setup:
    """What every part is given.

    Attributes:
        data: the folder that ``benchmarks/gpu.sh prepare`` wrote.
        device: "cuda" or "cpu".
        quick: small frames and few runs, to try the code.
    """

    data: Path
    device: str
    quick: bool


_WIDTH = 118
_ERROR_LENGTH = 260


class Rows:
    """Rows with "part" and "what", and either what was measured or "error".

    Args:
        path: a file that gets each row as one line of JSON at once, so that a crash loses none; None for no file.

    Attributes:
        rows: all of them so far.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.rows: list[dict[str, Any]] = []
        self._path = path

    @contextmanager
    def item(self, part: str, what: str, **known: Any) -> Iterator[dict[str, Any]]:
        """Measure one thing: the body fills the dictionary that it gets; if it fails, the row says why, and all goes on."""
        row: dict[str, Any] = {"part": part, "what": what, **known}
        try:
            yield row
        except Exception as error:  # noqa: BLE001 - one failure is a row and not the end of the others
            row["error"] = one_line(error)
        self.rows.append(row)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows that a ``Rows`` wrote to a file; a line that was cut off by a crash is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def one_line(error: BaseException) -> str:
    """An exception as one line: what it says, in full, behind its class."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def ratios(rows: Sequence[Row]) -> dict[str, float]:
    """What a ratio says better than milliseconds: the pipeline's rate by the engine's alone, for each engine and end."""
    return {
        f"pipeline/engine, {row['what']}": row["ratio"] for row in rows if row["part"] == "pipeline" and "ratio" in row
    }


def table(rows: Sequence[Row]) -> list[str]:
    """The rows for a terminal: some 40 lines, none longer than 118 characters; of an error its first words."""
    lines = [
        line
        for show in (_machine, _decoding, _copies, _program, _tensorrt, _pipeline, _run, _errors)
        for line in show(rows)
    ]
    return [part for line in lines for part in _wrapped(line)]


def _wrapped(line: str) -> list[str]:
    return (
        [line] if len(line) <= _WIDTH else textwrap.wrap(line, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    )


def _machine(rows: Sequence[Row]) -> Iterator[str]:
    for row in _good(rows, "machine"):
        values = ", ".join(f"{name} {value}" for name, value in row.items() if name not in ("part", "what", "process"))
        yield f"{row['what']}: {values}"


def _decoding(rows: Sequence[Row]) -> Iterator[str]:
    for row in _good(rows, "decoding"):
        parts = [f"{row['fps']:.1f} FPS"] if "fps" in row else []
        parts += [f"NVDEC {row['cuda_fps']:.1f} FPS, CPU {row['cpu_fps']:.1f}"] if "cuda_fps" in row else []
        parts += (
            [f"from the GPU {row['stay_fps']:.1f} FPS, through the CPU {row['down_fps']:.1f}"]
            if "stay_fps" in row
            else []
        )
        parts += [f"PSNR {row['psnr_worst_db']:.2f} dB at the worst"] if "psnr_worst_db" in row else []
        parts += [f"stayed {row['stayed']} of {row['frames']}"] if "stayed" in row else []
        parts += [f"{row['p50_us']:.1f} µs"] if "p50_us" in row else []
        parts += [f"IoU {row['iou_mean']:.5f}, worst {row['iou_worst']:.5f}"] if "iou_mean" in row else []
        parts += [f"max {row['max_difference']}"] if "max_difference" in row else []
        yield f"decoding, {row['what']}: {', '.join(parts)}"


def _run(rows: Sequence[Row]) -> Iterator[str]:
    for row in _good(rows, "run"):
        parts = [f"{row['fps']:.1f} FPS"] if "fps" in row else []
        parts += [f"without {row['fps_without']:.1f}, ratio {row['ratio']:.3f}"] if "ratio" in row else []
        parts += [f"{row['audits']} audits, {row['skipped']} skipped"] if "audits" in row else []
        parts += [f"took {row['took']}; {row['told']}"] if "took" in row else []
        if "longest_gap_ms" in row:
            parts += [f"{'taken' if row['taken'] else 'NOT TAKEN'}, opened in {row['opened_s']:.2f} s"]
            parts += [f"longest gap {row['longest_gap_ms']:.1f} ms, usual {row['usual_gap_ms']:.1f}"]
        yield f"run, {row['what']}: {', '.join(parts)}"


def _copies(rows: Sequence[Row]) -> Iterator[str]:
    for row in _good(rows, "copies"):
        yield f"copies, {row['what']}: up {row['up_gb_per_s']:.1f} GB/s, down {row['down_gb_per_s']:.1f} GB/s"


def _program(rows: Sequence[Row]) -> Iterator[str]:
    found = _good(rows, "frame program")
    sizes = list(dict.fromkeys(row["size"] for row in found))
    if not found:
        return
    yield f"{'frame program':<44}" + "".join(f"{size:>10} p50   p95 ms     IoU   max" for size in sizes)
    for what in dict.fromkeys(row["what"] for row in found):
        cells = ""
        for size in sizes:
            row = next((row for row in found if (row["what"], row["size"]) == (what, size)), None)
            cells += (
                f"{'-':>34}"
                if row is None
                else f"{row['p50_ms']:11.3f} {row['p95_ms']:8.3f} {row['iou_mean']:7.4f} {row['max_difference']:5d}"
            )
        yield f"{what:<44}{cells}"


def _tensorrt(rows: Sequence[Row]) -> Iterator[str]:
    for row in _good(rows, "tensorrt-rtx"):
        parts = [f"validity {row['validity']}"] if "validity" in row else []
        parts += [f"{row['p50_ms']:.3f} ms, p95 {row['p95_ms']:.3f}"] if "p50_ms" in row else []
        parts += [f"IoU {row['iou_mean']:.4f}, max {row['max_difference']}"] if "iou_mean" in row else []
        parts += [f"start {row['first_start_s']:.2f} s"] if "first_start_s" in row else []
        parts += [f"again {row['second_start_s']:.2f} s"] if "second_start_s" in row else []
        yield f"TensorRT-RTX, {row['what']}: {', '.join(parts) or 'built'}"


def _pipeline(rows: Sequence[Row]) -> Iterator[str]:
    for row in _good(rows, "pipeline"):
        if "ratio" in row:
            slowest = max(row["stages_p50_ms"].items(), key=lambda stage: stage[1])
            yield (
                f"pipeline, {row['what']}: {row['pipeline_fps']:.1f} FPS, engine alone {row['engine_fps']:.1f}, "
                f"ratio {row['ratio']:.3f}, slowest {slowest[0]} {slowest[1]:.1f} ms{_drawn(row)}"
            )


def _drawn(row: Row) -> str:
    """What the GPU drew, where it told."""
    if "frames_per_joule" not in row:
        return ""
    throttled = f", throttled by {' and '.join(row['throttled_by'])}" if row["throttled_by"] else ""
    return f", {row['frames_per_joule']:.3g} frames per joule at {row['mean_w']:.0f} W{throttled}"


def _errors(rows: Sequence[Row]) -> Iterator[str]:
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if "error" in row:
            found.setdefault((row["part"], row["error"]), []).append(row["what"])
    for (part, error), (what, *more) in found.items():
        text = f"FAILED {part}, {what}{f' and {len(more)} more' if more else ''}: {error}"
        yield text if len(text) <= _ERROR_LENGTH else text[: _ERROR_LENGTH - 1] + "…"


def _good(rows: Sequence[Row], part: str) -> list[Row]:
    return [row for row in rows if row["part"] == part and row["what"] != "all of it" and "error" not in row]


def main(path: str) -> None:
    """Print the table of a result that ``python -m benchmarks gpu --json`` wrote."""
    print("\n".join(table(json.loads(Path(path).read_text(encoding="utf-8"))["table"])))


if __name__ == "__main__":
    main(sys.argv[1])
