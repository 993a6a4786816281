"""What the last audits say together: the mean agreement, how sure it is, and whether it is below the bundle's gate."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from pipeline.bundles.bundle import GATE_MEAN_IOU, GATE_WORST_IOU, Manifest
from pipeline.frames.audited import Audited
from pipeline.redaction import redact

WINDOW = 100
"""So many audits count, the last ones."""

FEWEST = 3
"""With fewer nothing is told."""

WELL = 20
"""So many audits in a row have to say that all is well again."""

# Of fewer frames nobody knows how far they spread; and where no frames were proven, of fewer audits.
_FEWEST_PROVEN = 8
_ENOUGH = 20
_BY_CHANCE = 0.001
_DRAWINGS = 10_000
_Z = 1.959964  # 97.5 % of the normal distribution


@dataclass(frozen=True, slots=True)
class Gate:
    """What a bundle's masks have to reach, and what they reached when it was compiled.

    Attributes:
        mean: the lower end of the mean IoU's 95 % interval must.
        worst: a single frame must.
        proven: IoU of the frames with a clear subject that it was verified on; empty where the bundle does not say.
    """

    mean: float = GATE_MEAN_IOU
    worst: float = GATE_WORST_IOU
    proven: tuple[float, ...] = ()

    @classmethod
    def of(cls, manifest: Manifest) -> Gate:
        """Of a bundle: the "gate" of its verification, or the default of ``compile``, but no more than the bundle reached itself.

        What was proven is what its plan reached on its GPU, where that was checked; of several plans, the one that reached least.
        """
        verification = manifest.verification
        mean = manifest.gate.get("mean", min([GATE_MEAN_IOU, *_shares([verification.get("iou_low")])]))
        worst = manifest.gate.get("worst", min([GATE_WORST_IOU, mean, *_shares([verification.get("iou_worst")])]))
        of_plans = [found for entry in manifest.engines if (found := _proven(entry.verification))]
        return cls(mean, worst, min(of_plans, key=np.mean) if of_plans else _proven(verification))

    def reach(self, count: int) -> float:
        """What the mean of so many audits reaches 999 times of 1000, if they are like the proven frames: below it is no chance."""
        if self.proven:
            return _least_means(self.proven)[min(count, WINDOW) - 1]
        return self.worst if count < _ENOUGH else self.mean


@cache
def _least_means(values: tuple[float, ...]) -> tuple[float, ...]:
    """For 1 to ``WINDOW`` audits: by drawing audits and proven frames, for these too are a few of many."""
    seen, numbers = np.asarray(values), np.random.default_rng(0)
    proven = seen[numbers.integers(0, len(seen), (_DRAWINGS, len(seen)))].mean(axis=1, keepdims=True)
    audits = np.cumsum(seen[numbers.integers(0, len(seen), (_DRAWINGS, WINDOW))], axis=1) / np.arange(1, WINDOW + 1)
    return tuple((seen.mean() + np.quantile(audits - proven, _BY_CHANCE, axis=0)).tolist())


def lower_end(values: Sequence[float]) -> float:
    """The lower end of the 95 % interval of the mean by Student's t, 0 to 1; 0 of a single value, of which nobody knows.

    It is wide where there are few values, as a bootstrap over them is not, and costs a few microseconds.
    """
    count = len(values)
    if count < 2:
        return 0.0
    spread = float(np.std(values, ddof=1)) / math.sqrt(count)
    return min(1.0, max(0.0, float(np.mean(values)) - _student(count - 1) * spread))


@cache
def _student(freedom: int) -> float:
    """97.5 % of Student's distribution, within 0.004: exact for 1 and 2, then Fisher's expansion about the normal one."""
    if freedom == 1:
        return math.tan(0.475 * math.pi)
    if freedom == 2:
        return 0.95 / math.sqrt(2 * 0.975 * 0.025)
    z = _Z
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(sum(term / freedom**power for power, term in enumerate(terms)))


class Verdict:
    """Keeps the last audits; any thread may add and ask.

    Args:
        gate: what they are held against.

    Attributes:
        below: the agreement is below the gate.
    """

    def __init__(self, gate: Gate) -> None:
        self.below = False
        self._gate = gate
        self._lock = threading.Lock()
        self._last: deque[tuple[float, Audited]] = deque(maxlen=WINDOW)
        self._total = self._unclear = 0
        self._well = 0  # audits in a row, while it is below
        self._told_less = False

    def add(self, audited: Audited) -> str:
        """Take one audit.

        Returns:
            What is to be told now, in one line; empty if nothing has changed.
        """
        with self._lock:
            self._total += 1
            if not audited.judged:
                self._unclear += 1
                return ""
            self._last.append((time.monotonic(), audited))
            return self._judge()

    def _judge(self) -> str:
        values = [audited.iou for _, audited in self._last]
        count, mean, low, gate = len(values), float(np.mean(values)), lower_end(values), self._gate
        is_less = count >= FEWEST and mean < gate.reach(count)
        is_low = is_less and low < gate.mean
        if self.below:
            self._well = 0 if is_low else self._well + 1
            if self._well < WELL:
                return ""
            self.below, self._well = False, 0
            return (
                f"audit: the masks agree with the program in FP32 again: mean IoU {mean:.4f} (95 % interval from {low:.4f}) of the "
                f"last {count} audits"
            )
        if is_less and not is_low and gate.proven and not self._told_less:
            self._told_less = True
            return (
                f"audit: the masks agree less with the program in FP32 than when the bundle was verified: mean IoU {mean:.4f} of "
                f"{count} audits, of the frames then {np.mean(gate.proven):.4f}; its gate, {gate.mean:.4f}, still holds"
            )
        if not is_low:
            return ""
        self.below = True
        worst = min((audited for _, audited in self._last), key=lambda audited: audited.iou)
        where = f"frame {worst.index} of {redact(worst.source)}"
        return (
            f"audit: the masks do not agree with the program in FP32: expected a mean IoU whose 95 % interval begins at "
            f"{gate.mean:.4f} or more, got {mean:.4f} (from {low:.4f}) of {count} audits, worst {worst.iou:.4f} ({where}): "
            "compile the bundle again, and verify it on such pictures with --verify"
        )

    def state(self) -> dict[str, Any]:
        """The numbers, as JSON has them; None where there is no audit yet.

        Returns:
            count (audits that count, at most 100), total, unclear (of all, those without a clear subject, which do not count), mean,
            low (the lower end of its 95 % interval), mae, worst, worst_s (seconds ago), worst_source, gate, below, empties (where one
            mask is empty and the other is not), values (IoU, the oldest first).
        """
        with self._lock:
            last, state = list(self._last), {"total": self._total, "unclear": self._unclear, "below": self.below}
        values = [audited.iou for _, audited in last]
        when_s, worst = min(last, key=lambda entry: entry[1].iou) if last else (0.0, None)
        return state | {
            "count": len(last),
            "mean": round(float(np.mean(values)), 6) if last else None,
            "low": round(lower_end(values), 6) if last else None,
            "mae": round(float(np.mean([audited.mae for _, audited in last])), 6) if last else None,
            "worst": None if worst is None else round(worst.iou, 6),
            "worst_s": None if worst is None else round(time.monotonic() - when_s, 1),
            "worst_source": None if worst is None else worst.source,
            "gate": self._gate.mean,
            "empties": sum(audited.empty for _, audited in last),
            "values": [round(value, 6) for value in values],
        }


def _proven(verification: Mapping[str, Any]) -> tuple[float, ...]:
    """The IoU of each frame with a clear subject; none where too few frames, or all to the last pixel, agree: it was FP32 itself."""
    frames = verification.get("per_frame")
    rows = [row for row in frames if isinstance(row, dict)] if isinstance(frames, list | tuple) else []
    found = _shares([row.get("iou") for row in rows if row.get("left_out") is None])
    return tuple(found) if len(found) >= _FEWEST_PROVEN and min(found) < 1 else ()


def _is_share(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and 0 <= value <= 1


def _shares(values: Sequence[Any]) -> list[float]:
    return [float(value) for value in values if _is_share(value)]
