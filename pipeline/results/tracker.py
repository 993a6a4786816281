"""Regions keep their number from frame to frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2

from pipeline.shapes.region import Region

MIN_IOU = 0.2
"""Regions of two frames are the same thing from this IoU on."""

GAP_S = 1.0
"""A region that is away for longer has a new number when it comes back."""

_VELOCITY_WEIGHT = 0.5


@dataclass(slots=True)
class _Track:
    """A region that is followed: where it was last, and how fast its box moves in pixels per second."""

    id: int
    region: Region
    seen_s: float
    velocity_xy: tuple[float, float] = (0.0, 0.0)


class Tracker:
    """Follows the regions of one source.

    Regions of one class do not overlap, so that of those with an IoU above 0.5 each has one partner at most, and the largest
    IoU first is the best assignment for nearly all others. The IoU is that of the pixels, where a region was or where it would be
    had it moved on as before, whichever is larger.
    """

    def __init__(self) -> None:
        self._tracks: list[_Track] = []
        self._last_id = 0

    def update(self, regions: Sequence[Region], now_s: float) -> list[Region]:
        """The regions of the next frame with their numbers.

        Args:
            regions: of all classes; those of one class do not overlap.
            now_s: the frame's time in seconds. Where it goes back, all begins anew.
        """
        self._tracks = [
            track
            for track in self._tracks
            if 0 <= now_s - track.seen_s <= GAP_S and (not regions or track.region.size_hw == regions[0].size_hw)
        ]
        pairs = [
            (iou, track.id, number, track)
            for track in self._tracks
            for number, region in enumerate(regions)
            if region.number == track.region.number and (iou := _iou(track, region, now_s)) >= MIN_IOU
        ]
        found: dict[int, _Track] = {}
        taken: set[int] = set()
        for _, track_id, number, track in sorted(pairs, key=lambda pair: (-pair[0], pair[1])):
            if number not in found and track_id not in taken:
                found[number] = track
                taken.add(track_id)
        return [self._followed(found.get(number), region, now_s) for number, region in enumerate(regions)]

    def _followed(self, track: _Track | None, region: Region, now_s: float) -> Region:
        if track is None:
            self._last_id += 1
            track = _Track(self._last_id, region, now_s)
            self._tracks.append(track)
        elif (past_s := now_s - track.seen_s) > 0:
            old, new = _center(track.region), _center(region)
            vx, vy = ((new[axis] - old[axis]) / past_s for axis in (0, 1))
            was_x, was_y = track.velocity_xy
            track.velocity_xy = was_x + _VELOCITY_WEIGHT * (vx - was_x), was_y + _VELOCITY_WEIGHT * (vy - was_y)
        track.region, track.seen_s = region, now_s
        return replace(region, id=track.id)


def _center(region: Region) -> tuple[float, float]:
    left, top, width, height = region.xywh
    return left + width / 2, top + height / 2


def _iou(track: _Track, region: Region, now_s: float) -> float:
    past_s = now_s - track.seen_s
    moved = round(track.velocity_xy[0] * past_s), round(track.velocity_xy[1] * past_s)
    both = max(_overlap(track.region, shift, region) for shift in {(0, 0), moved})
    return both / (track.region.pixels + region.pixels - both)


def _overlap(one: Region, shift_xy: tuple[int, int], other: Region) -> int:
    """How many pixels two regions share, the first one shifted."""
    ax, ay, aw, ah = one.xywh
    ax, ay = ax + shift_xy[0], ay + shift_xy[1]
    bx, by, bw, bh = other.xywh
    left, top = max(ax, bx), max(ay, by)
    right, bottom = min(ax + aw, bx + bw), min(ay + ah, by + bh)
    if right <= left or bottom <= top:
        return 0
    a = one.inside[top - ay : bottom - ay, left - ax : right - ax]
    b = other.inside[top - by : bottom - by, left - bx : right - bx]
    return cv2.countNonZero(cv2.bitwise_and(a, b))
