"""What a calibration set looks like: its pictures on one sheet, and in words what they cover."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from calibration.sets.selection import BRIGHTNESS_BANDS, Candidate, Seen, Split, SplitName, brightness_band
from pipeline.frames.frame import Image, SourceInfo
from pipeline.sources.picture_file import read_picture

_WIDTH = 1920
_FEWEST_COLUMNS = 4
_HEADER = 64
_MARGIN = 12
_BORDER = 4
_CAPTION = 22
_PAPER = (30, 26, 24)
_INK = (225, 225, 225)
# Blue and orange are told apart by every kind of color vision.
_COLORS: dict[SplitName, tuple[int, int, int]] = {"calibration": (214, 140, 60), "verification": (40, 150, 245)}
_BAR = 30


@dataclass(frozen=True, slots=True)
class SheetPicture:
    """A picture of the sheet: its file, its split, its scene's number and its time stamp (None: it has none)."""

    path: Path
    split: SplitName
    scene: int
    pts_s: float | None


def draw_sheet(title: str, pictures: Sequence[SheetPicture]) -> Image:
    """Draw all pictures as thumbnails, with the color of their split and the number of their scene.

    Args:
        title: the first line; only its ASCII characters are shown.
        pictures: one or more; drawn in their order, row by row.

    Returns:
        (H, 1920, 3) uint8 BGR; owned by the caller.

    Raises:
        SourceError: a picture cannot be read.
    """
    columns = max(_FEWEST_COLUMNS, math.ceil(math.sqrt(len(pictures) * 1.2)))
    cell_width = (_WIDTH - _MARGIN) // columns
    box_hw = round((cell_width - _MARGIN) * 0.66), cell_width - _MARGIN
    cell_height = box_hw[0] + _CAPTION + _MARGIN
    rows = math.ceil(len(pictures) / columns)
    sheet: Image = np.full((_HEADER + rows * cell_height + _MARGIN, _WIDTH, 3), _PAPER, np.uint8)
    _header(sheet, title, Counter(picture.split for picture in pictures))
    for number, picture in enumerate(pictures):
        top = _HEADER + number // columns * cell_height
        left = _MARGIN + number % columns * cell_width
        _cell(sheet[top : top + box_hw[0] + _CAPTION, left : left + box_hw[1]], box_hw, picture)
    return sheet


def coverage_report(info: SourceInfo, seen: Seen, chosen: Split, wanted: int) -> str:
    """What a set covers and what not, in lines for a terminal.

    Args:
        info: the source.
        seen: what was seen of it.
        chosen: the set.
        wanted: how many frames were asked for.
    """
    frames = [*chosen.calibration, *chosen.verification]
    scenes = {split: len({frame.scene for frame in part}) for split, part in _parts(chosen)}
    every = len({frame.scene for frame in frames})
    lines = [
        f"{info.name}: {info.description}",
        f"{_count(seen.frames, 'frame')} read, {_count(seen.duplicates, 'near-duplicate')} and "
        f"{_count(seen.blank, 'blank frame')} dropped, {len(frames)} chosen from {_count(every, 'scene')}",
        "",
    ]
    lines += [
        f"{split:<14}{_count(len(part), 'frame'):>12}  {_count(scenes[split], 'scene'):>12}"
        for split, part in _parts(chosen)
    ]
    lines += ["", f"{'brightness':<14}{'read':>9}{'calibration':>14}{'verification':>14}"]
    bands = {split: Counter(brightness_band(frame.brightness) for frame in part) for split, part in _parts(chosen)}
    total = {name: sum(counts[name] for counts in bands.values()) for name, _ in BRIGHTNESS_BANDS}
    for name, _ in BRIGHTNESS_BANDS:
        bar = "█" * math.ceil(_BAR * total[name] / max(total.values()))
        counts = f"{seen.brightness[name]:>9}{bands['calibration'][name]:>14}{bands['verification'][name]:>14}"
        lines.append(f"{name:<14}{counts}  {bar}".rstrip())
    lines += ["", *(f"note: {line}" for line in _gaps(total, bands["verification"], chosen, len(frames), wanted))]
    return "\n".join(lines).rstrip() + "\n"


def _gaps(total: dict[str, int], verified: Counter[str], chosen: Split, got: int, wanted: int) -> list[str]:
    lines = []
    if missing := [name for name, count in total.items() if not count]:
        lines.append(f"not covered: {', '.join(missing)} frames")
    if unverified := [name for name, count in total.items() if count and not verified[name]]:
        lines.append(f"not verified: {', '.join(unverified)} frames")
    if got < wanted:
        lines.append(f"{got} of {wanted} frames: the source shows no more that differ")
    if chosen.by == "time":
        lines.append("one scene: its end is for verification, which is weaker than another scene")
    return lines


def _parts(chosen: Split) -> tuple[tuple[SplitName, list[Candidate]], tuple[SplitName, list[Candidate]]]:
    return ("calibration", chosen.calibration), ("verification", chosen.verification)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _header(sheet: Image, title: str, counts: Counter[SplitName]) -> None:
    right = _WIDTH - _MARGIN
    for split, color in reversed(_COLORS.items()):
        text = f"{counts[split]} {split}"
        right -= _text_width(text, 0.7)
        _write(sheet, text, (right, 42), 0.7, _INK)
        right -= 34
        cv2.rectangle(sheet, (right, 25), (right + 22, 45), color, cv2.FILLED)
        right -= 30
    plain = "".join(character if " " <= character <= "~" else "?" for character in title)
    while plain and _text_width(plain, 0.8) > right - _MARGIN:
        plain = plain[:-1]
    _write(sheet, plain, (_MARGIN, 43), 0.8, _INK)


def _cell(cell: Image, box_hw: tuple[int, int], picture: SheetPicture) -> None:
    color = _COLORS[picture.split]
    height, width = box_hw
    cv2.rectangle(cell, (0, 0), (width - 1, height + _CAPTION - 1), color, cv2.FILLED)
    inner = cell[_BORDER : height - 1, _BORDER : width - _BORDER]
    inner[:] = _PAPER
    image = read_picture(picture.path)
    scale = min(inner.shape[0] / image.shape[0], inner.shape[1] / image.shape[1])
    size_wh = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    thumbnail = cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (inner.shape[0] - size_wh[1]) // 2, (inner.shape[1] - size_wh[0]) // 2
    inner[top : top + size_wh[1], left : left + size_wh[0]] = thumbnail
    time = "" if picture.pts_s is None else f"{int(picture.pts_s // 60)}:{picture.pts_s % 60:04.1f}"
    scale_text = 0.45
    wide = _text_width(f"scene {picture.scene}  {time}", scale_text) + 2 * _BORDER <= width
    baseline = height + _CAPTION - 7
    _write(
        cell, f"scene {picture.scene}" if wide else str(picture.scene), (_BORDER + 1, baseline), scale_text, (0, 0, 0)
    )
    if time and width >= 90:
        _write(cell, time, (width - _BORDER - _text_width(time, scale_text), baseline), scale_text, (0, 0, 0))


def _text_width(text: str, scale: float) -> int:
    return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0])


def _write(image: Image, text: str, place_xy: tuple[int, int], scale: float, color: tuple[int, int, int]) -> None:
    cv2.putText(image, text, place_xy, cv2.FONT_HERSHEY_SIMPLEX, scale, color, 1, cv2.LINE_AA)
