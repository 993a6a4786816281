"""Which contract reproduces the masks of examples, and what they leave open.

A candidate is a way in (resize, order of colors, scaling) and a way out (activation, channel). The network runs once for each distinct
input; all ways out are tried on the scores that it gives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from calibration.metrics.agreement import iou, mean_absolute_error
from compile.contract.examples import Example
from compile.contract.found import HONORED, Fact, Found
from compile.contract.scaling import SCALINGS, scaled, scaling_of
from compile.contract.trial import Trial
from compile.networks.contract import Channels, Contract
from compile.program.program import FrameToInput, ScoresToMask
from pipeline.bundles.bundle import Task
from pipeline.errors import CompileError

REPRODUCED = 0.9
"""From this mean IoU on a candidate is said to reproduce the masks; masks that people drew are not reached so by the best networks."""

WRONG = 0.6
"""Below this mean IoU nothing is concluded from the best candidate."""

LEAST_APART, MOST_APART = 0.002, 0.03
"""Mean agreement by which two candidates can be told apart at least, for resizes of other libraries do as much; and in any case."""

SAME_MASKS = 0.995
"""Mean IoU of two candidates' masks with each other, from which on it matters little which one is taken."""

# All candidates are tried on one example; on the next, and then on the others, those alone that are so near the best.
_NEAR = (0.3, 0.1, 0.1)
_FEWEST = 12
_MOST_SUBJECTS = 32
# How far probabilities may leave 0 to 1.
_SLACK = 0.01
# What belongs together, by what people call it.
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "filter": ("filter",),
    "fit": ("fit", "pad"),
    "channels": ("channels",),
    "scaling": ("divide_by", "mean", "std"),
    "output": ("activation", "stretch", "subject", "multilabel"),
}
_SHOWN, _LISTED = 8, 2


@dataclass(frozen=True)
class Tried:
    """A candidate on the examples.

    Attributes:
        contract: it.
        ious: one for each example.
        agreements: the same, or of soft masks the mean of IoU and 1 - mean absolute error: what candidates are compared by.
        place: among the ways in and out, the most usual first.
    """

    contract: Contract
    ious: tuple[float, ...]
    agreements: tuple[float, ...]
    place: tuple[int, int]

    @property
    def mean(self) -> float:
        """Mean IoU."""
        return float(np.mean(self.ious))

    @property
    def agreement(self) -> float:
        """Mean agreement."""
        return float(np.mean(self.agreements))


@dataclass(frozen=True)
class Result:
    """What the examples tell.

    Attributes:
        found: the contract that is taken.
        taken: the candidate that it is.
        best: candidates that were tried on all examples, the best first.
        tied: those that cannot be told from the best one, ``taken`` among them.
        doubts: what stays open, a sentence each.
        count: how many candidates were tried, and how often the network ran.
    """

    found: Found
    taken: Tried
    best: Sequence[Tried]
    tied: Sequence[Tried]
    doubts: tuple[str, ...]
    count: tuple[int, int]


def search(found: Found, trial: Trial, examples: Sequence[Example]) -> Result:
    """Try candidates on examples.

    Args:
        found: the contract without examples; its size, layout and output stay, and it decides among what cannot be told apart.
        trial: of the same network.
        examples: at least one.

    Raises:
        CompileError: the masks are of another kind than the network's.
    """
    task, masks = _read_masks(trial, examples)
    is_soft = task == "binary" and any(len(np.unique(mask)) > 16 for mask in masks)
    ways_in, ways_out = list(_ways_in(found)), list(_ways_out(found.contract, trial, task))
    # The examples first that have both subject and background.
    order = sorted(range(len(examples)), key=lambda index: -_variety(masks[index]))
    rounds = (order[:1], order[1:2], order[2:])
    bench = _Bench(trial, task, is_soft, ways_in, ways_out)
    wanted = {(before, after) for before in range(len(ways_in)) for after in range(len(ways_out))}
    count = len(wanted)
    for indices, margin in zip(rounds, _NEAR, strict=True):
        for index in indices:
            bench.add(examples[index], masks[index], wanted)
        best = sorted(wanted, key=lambda pair: -float(np.mean([a for _, a in bench.results[pair]])))
        top = float(np.mean([a for _, a in bench.results[best[0]]]))
        near = sum(float(np.mean([a for _, a in bench.results[pair]])) >= top - margin for pair in best)
        wanted = set(best[: max(near, _FEWEST)])
    tried = [_tried(bench, pair) for pair in best]
    tied = [one for one in tried if _is_tied(tried[0], one)]
    taken = min(tied, key=lambda one: (_changes(one.contract, found), -round(one.agreement / LEAST_APART), one.place))
    told, doubts = _conclude(found, taken, tied, bench, examples)
    return Result(told, taken, tried, tied, doubts, (count, bench.runs))


class _Bench:
    """Runs ways in and out on examples, and keeps what they reach."""

    def __init__(
        self, trial: Trial, task: Task, is_soft: bool, ways_in: Sequence[Contract], ways_out: Sequence[Contract]
    ) -> None:
        self._trial, self._task, self._is_soft = trial, task, is_soft
        self.ways_in, self.ways_out = ways_in, ways_out
        self.results: dict[tuple[int, int], list[tuple[float, float]]] = {}
        self.runs = 0

    def contract(self, pair: tuple[int, int]) -> Contract:
        """The candidate of a way in and a way out."""
        out = self.ways_out[pair[1]]
        return replace(self.ways_in[pair[0]], **{key: getattr(out, key) for key in _GROUPS["output"] if key in HONORED})

    def add(self, example: Example, mask_hw: NDArray[np.uint8], wanted: set[tuple[int, int]]) -> None:
        """Try some pairs on one more example; distinct inputs run once."""
        frames = torch.from_numpy(np.ascontiguousarray(example.picture[None]))
        by_input: dict[bytes, list[int]] = {}
        for before in sorted({before for before, _ in wanted}):
            by_input.setdefault(hashlib.sha256(self._input(before, frames).tobytes()).digest(), []).append(before)
        for same in by_input.values():
            scores = torch.from_numpy(np.ascontiguousarray(self._trial.run(self._input(same[0], frames))))
            self.runs += 1
            for pair in sorted(pair for pair in wanted if pair[0] in same):
                got = masks_of(self.contract(pair), scores, frames)
                reached = iou(got, mask_hw, self._task)
                agreement = reached
                if self._is_soft:
                    agreement = (reached + 1 - mean_absolute_error(got, mask_hw, self._task)) / 2
                self.results.setdefault(pair, []).append((reached, agreement))

    def mask(self, contract: Contract, example: Example) -> NDArray[np.uint8]:
        """What a candidate gives for an example."""
        frames = torch.from_numpy(np.ascontiguousarray(example.picture[None]))
        scores = self._trial.run(_input_of(contract, frames))
        return masks_of(contract, torch.from_numpy(np.ascontiguousarray(scores)), frames)

    def alike(self, one: Contract, other: Contract, examples: Sequence[Example]) -> float:
        """Mean IoU of two candidates' masks with each other."""
        return float(np.mean([iou(self.mask(one, each), self.mask(other, each), self._task) for each in examples]))

    def _input(self, before: int, frames: Tensor) -> NDArray[np.float32]:
        return _input_of(self.ways_in[before], frames)


def _input_of(contract: Contract, frames: Tensor) -> NDArray[np.float32]:
    with torch.inference_mode():
        x: NDArray[np.float32] = FrameToInput(replace(contract, layout="nchw")).eval()(frames).numpy()
    return x


def masks_of(contract: Contract, scores: Tensor, frames: Tensor) -> NDArray[np.uint8]:
    """A candidate's mask, (H, W) uint8, from (1, C, h, w) scores or classes."""
    size_hw = (int(frames.shape[1]), int(frames.shape[2]))
    if not scores.is_floating_point():
        index = F.interpolate(scores.float(), size_hw, mode="nearest")
        return np.asarray(index[0, 0].numpy(), np.uint8)
    arranged: dict[str, Any] = {"layout": "nchw", "output_layout": "nchw"}
    if getattr(contract, "upsample", "classes") is None:
        arranged["upsample"] = "scores" if tuple(scores.shape[2:]) < contract.imgsz else "classes"
    with torch.inference_mode():
        masks, _ = ScoresToMask(replace(contract, **arranged)).eval()(scores, frames)
    return np.asarray(masks[0].numpy(), np.uint8)


def _ways_in(found: Found) -> Iterator[Contract]:
    """Contracts that differ in how frames go in, the one that was found first."""
    base, facts = found.contract, found.facts
    fits: list[dict[str, Any]] = [{}]
    if "fit" in HONORED:
        fits = [
            {"fit": "stretch"},
            {"fit": "letterbox", "pad": 114.0},
            {"fit": "letterbox", "pad": 0.0},
            {"fit": "cover"},
        ]
    orders: tuple[Channels, ...] = ("rgb", "bgr") if base.channels in ("rgb", "bgr") else (base.channels,)
    fixed = facts["divide_by"].is_in_graph
    seen: list[Contract] = []
    for fit in fits:
        for filter_ in ("area", "bilinear"):
            for order in orders:
                turned = replace(base, **fit, filter=filter_, channels=order)
                if order != base.channels:
                    turned = replace(turned, mean=base.mean[::-1], std=base.std[::-1])
                usual = () if fixed else SCALINGS
                for contract in (turned, *(scaled(turned, scaling) for scaling in usual)):
                    if contract not in seen:
                        seen.append(contract)
    return iter(seen)


def _ways_out(base: Contract, trial: Trial, task: Task) -> Iterator[Contract]:
    """Contracts that differ in how masks come out."""
    count = trial.shape[1]
    ways: list[dict[str, Any]] = [{}]
    if not trial.is_whole and count == 1:
        # None takes probabilities alone.
        activations = ("sigmoid", "none") if trial.low >= -_SLACK else ("sigmoid",)
        activations = ("none",) if trial.ends == "sigmoid" else activations
        ways = [{"activation": one, "stretch": stretch} for one in activations for stretch in (False, True)]
    elif not trial.is_whole:
        subjects: list[int | None] = list(range(min(count, _MOST_SUBJECTS))) if task == "binary" else [None]
        ways = [{"subject": subject, "stretch": False, **way} for subject in subjects for way in _of_channels(trial)]
    for way in ways:
        yield replace(base, **{key: value for key, value in way.items() if key in HONORED})


def _of_channels(trial: Trial) -> list[dict[str, Any]]:
    """Which activations several channels may have."""
    ready = trial.ends in ("sigmoid", "softmax") or (trial.low >= -_SLACK and trial.high <= 1 + _SLACK)
    ways: list[dict[str, Any]] = [{"activation": "none" if ready else "softmax"}]
    if "multilabel" in HONORED:
        ways = [{**way, "multilabel": False} for way in ways]
        ways.append({"activation": "none" if ready else "sigmoid", "multilabel": True})
    return ways


def _read_masks(trial: Trial, examples: Sequence[Example]) -> tuple[Task, list[NDArray[np.uint8]]]:
    """The examples' masks as the frame program gives them: probability × 255, or class indices."""
    values = set(np.unique(np.concatenate([np.unique(example.mask_hw) for example in examples])).tolist())
    masks = [example.mask_hw for example in examples]
    count = trial.shape[1]
    if len(values) < 2:
        raise CompileError(f"--examples: expected masks with a subject, got {values} all over: give other examples")
    of_ones = values <= {0, 1}
    if trial.is_whole or count > 1:
        if (
            not values <= {0, 255}
            and (trial.is_whole or max(values - {255}) < count)
            and not (of_ones and "subject" in HONORED)
        ):
            return "classes", masks
        if "subject" not in HONORED or trial.is_whole:
            return "classes", [np.asarray(mask >= (1 if of_ones else 128), np.uint8) for mask in masks]
    return "binary", [np.asarray(mask * 255, np.uint8) for mask in masks] if of_ones else masks


def _variety(mask_hw: NDArray[np.uint8]) -> float:
    """How much of a mask is not its most frequent value."""
    counts = np.bincount(mask_hw.ravel() if mask_hw.max() < 128 else mask_hw.ravel() >> 7)
    return 1 - float(counts.max()) / mask_hw.size


def _tried(bench: _Bench, pair: tuple[int, int]) -> Tried:
    reached = bench.results[pair]
    return Tried(bench.contract(pair), tuple(one for one, _ in reached), tuple(one for _, one in reached), pair)


def _is_tied(best: Tried, other: Tried) -> bool:
    """Whether a candidate cannot be told from the best one: by less than chance does between examples."""
    apart = np.array(best.agreements) - np.array(other.agreements)
    by_chance = 2 * float(apart.std(ddof=1)) / len(apart) ** 0.5 if len(apart) > 2 else 0.0
    return float(apart.mean()) <= min(max(LEAST_APART, by_chance), MOST_APART)


def _changes(contract: Contract, found: Found) -> int:
    """How many groups of keys differ from what was known without examples."""
    return sum(
        any(
            getattr(contract, key) != getattr(found.contract, key) and found.facts[key].is_known
            for key in keys
            if key in HONORED and key in found.facts
        )
        for keys in _GROUPS.values()
    )


def _values(contract: Contract, group: str) -> tuple[Any, ...]:
    return tuple(getattr(contract, key) for key in _GROUPS[group] if key in HONORED)


def _described(contract: Contract, group: str) -> str:
    """The values of a group, for people."""
    if group == "scaling":
        scaling = scaling_of(contract)
        return scaling.name if scaling else f"÷ {contract.divide_by}, mean {contract.mean}, std {contract.std}"
    if group == "output":
        parts = [contract.activation, *(["stretched"] if contract.stretch else [])]
        subject = getattr(contract, "subject", None)
        parts += [] if subject is None else [f"subject {subject}"]
        return ", ".join([*parts, *(["multilabel"] if getattr(contract, "multilabel", False) else [])])
    values = _values(contract, group)
    if group == "fit":
        return " ".join(map(str, values if values and values[0] == "letterbox" else values[:1]))
    return str(values[0])


def _conclude(
    found: Found, taken: Tried, tied: Sequence[Tried], bench: _Bench, examples: Sequence[Example]
) -> tuple[Found, tuple[str, ...]]:
    """The contract with what the examples say of each of its values, and what they leave open."""
    doubts: list[str] = []
    on = f"{len(taken.ious)} example{'s' if len(taken.ious) > 1 else ''}"
    told = found
    for group, keys in _GROUPS.items():
        if not any(key in HONORED for key in keys):
            continue
        here = _values(taken.contract, group)
        others: dict[str, Tried] = {}
        for one in tied:
            alone = all(
                _values(one.contract, other) == _values(taken.contract, other) for other in _GROUPS if other != group
            )
            if _values(one.contract, group) != here and alone:
                others.setdefault(_described(one.contract, group), one)
        fact = Fact(None, f"examples: mean IoU {taken.mean:.4f} on {on}", taken.mean >= WRONG)
        if others:
            fact = _open(found, group, taken, others, bench, examples)
            doubts += [] if fact.is_known else [f"{group}: {fact.origin}"]
        for key in keys:
            value = getattr(taken.contract, key, None)
            if key in HONORED and (key in told.facts or value != getattr(found.contract, key)):
                told = told.with_fact(key, replace(fact, value=value))
    apart = [one for one in tied if sum(_values(one.contract, g) != _values(taken.contract, g) for g in _GROUPS) > 1]
    if apart and not doubts:
        doubts.append(f"{len(apart)} candidates that differ in several values do as well: see the table")
    notes = list(found.notes)
    if taken.mean < REPRODUCED:
        notes.append(
            f"no candidate reproduces the masks: the best has a mean IoU of {taken.mean:.4f} on {on}: "
            + (
                "something else is different, or the masks are not this network's"
                if taken.mean < WRONG
                else "as much as masks may have that people drew, less than masks that this network gave"
            )
        )
    return replace(told, notes=tuple(notes)), tuple(notes[len(found.notes) :] + doubts)


def _open(
    found: Found, group: str, taken: Tried, others: Mapping[str, Tried], bench: _Bench, examples: Sequence[Example]
) -> Fact:
    """What is said of values that the examples leave open; known where either gives the same masks."""
    few = examples[:2]
    alike = min(bench.alike(taken.contract, other.contract, few) for other in others.values())
    names = [f"{name} ({other.mean:.4f})" for name, other in others.items()]
    listed = " and ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
    here = _described(taken.contract, group)
    keys = [key for key in _GROUPS[group] if key in found.facts]
    decided = next((found.facts[key] for key in keys if found.facts[key].is_known), None)
    as_found = _values(taken.contract, group) == _values(found.contract, group)
    why = decided.origin if decided is not None and as_found else "the more usual of what agrees best"
    same = alike >= SAME_MASKS
    matter = f"with the same masks (IoU {alike:.4f})" if same else f"with other masks (IoU {alike:.4f})"
    return Fact(None, f"{here} ({taken.mean:.4f}) taken, {why}; not to be told from {listed}, {matter}", same)


def told(result: Result) -> Iterator[str]:
    """What a search has found, in lines for a terminal."""
    tried, runs = result.count
    examples = len(result.taken.ious)
    yield f"{tried} candidates on {examples} example{'s' if examples > 1 else ''}, {runs} runs of the network"
    yield f"{'mean IoU':>8}  {'worst':>6}  candidate"
    rows = [*result.best[:_SHOWN], *([] if result.taken in result.best[:_SHOWN] else [result.taken])]
    for one in rows:
        mark = "taken" if one is result.taken else "tied" if one in result.tied else ""
        parts = [
            _described(one.contract, group) for group, keys in _GROUPS.items() if any(key in HONORED for key in keys)
        ]
        yield f"{one.mean:8.4f}  {min(one.ious):6.4f}  {'; '.join(parts)}{f'  <- {mark}' if mark else ''}"
    left = len(result.tied) - sum(one in rows for one in result.tied)
    if left:
        yield f"and {left} more that cannot be told from the best"
    yield from (f"note: {doubt}" for doubt in result.doubts)
