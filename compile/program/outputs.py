"""What comes out of a network: the order of its axes, what its numbers are, and what the contract says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from compile.networks.contract import Contract, OutputLayout
from compile.networks.decision import Decision
from pipeline.bundles.bundle import Task
from pipeline.errors import CompileError
from pipeline.terminal import logger_of

Form = Literal["scores", "bytes", "indices", "decisions"]
"""Logits or probabilities; probabilities × 255; class indices; 0 and 1."""

# Of whole numbers that are probabilities × 255 something comes near 255; of class indices, hardly anything.
_SATURATED = 200
_LIKELY_BYTES = 100

log = logger_of(__name__)


@dataclass(frozen=True, slots=True)
class Output:
    """An output as a network gives it.

    Attributes:
        layout: the order of its axes.
        form: what its numbers are.
        class_count: of class indices, how many there may be; else its channels.
        gives_scores: whether its numbers change with those that it was made of, so that a search can look at them.
        size_hw: its height and width.
    """

    layout: OutputLayout
    form: Form
    class_count: int
    gives_scores: bool
    size_hw: tuple[int, int]


def find_output(
    outputs: Sequence[NDArray[Any]], contract: Contract, name: str, decision: Decision | None = None
) -> Output:
    """Tell what an output is from what it is for some pictures.

    Args:
        outputs: for single pictures of the contract's size, at least one, all of one shape.
        contract: the network's; it decides where several readings fit.
        name: the output's, for a message.
        decision: what was left out behind it.

    Raises:
        CompileError: it is nothing that a mask can be made of.
    """
    shape = outputs[0].shape
    layout = find_output_layout(shape, contract, name, decision)
    channels = shape[layout.index("c")] if "c" in layout else 1
    form = _form(outputs, channels, contract, name)
    named = 0 if contract.classes is None else len(contract.classes)
    class_count = max(named, (contract.subject or 0) + 1, 2) if form == "indices" else channels
    gives_scores = bool(np.issubdtype(outputs[0].dtype, np.floating)) and form in ("scores", "bytes")
    return Output(layout, form, class_count, gives_scores, (shape[layout.index("h")], shape[layout.index("w")]))


def find_output_layout(
    shape: Sequence[int], contract: Contract, name: str, decision: Decision | None = None
) -> OutputLayout:
    """The axis order of an output, by where the input's height and width are found again.

    Args:
        shape: for one picture of the contract's size.
        contract: what it says of it decides where several orders fit, and else the layout of the input.
        name: the output's, for a message.
        decision: what was left out behind it, over one of its axes.

    Raises:
        CompileError: no order fits.
    """
    height, width = contract.imgsz
    orders = [layout for layout in get_args(OutputLayout) if len(layout) == len(shape)]
    if not orders:
        raise CompileError(
            f"output {name!r}: expected scores with 2 to 4 axes, got {len(shape)}: name another output in the contract"
        )
    fits: list[OutputLayout] = []
    for layout in orders:
        sides = dict(zip(layout, shape, strict=True))
        # Scores may be smaller than the input, by a factor that need not divide it.
        in_ratio = abs(sides["h"] * width - sides["w"] * height) < max(height, width)
        is_over_it = decision is None or decision.axis is None or layout[decision.axis % len(shape)] == "c"
        if in_ratio and is_over_it and sides.get("n", 1) == 1:
            fits.append(layout)
    if not fits:
        raise CompileError(
            f"output {name!r}: expected height and width as the input's {height}×{width}, or in their ratio, on two axes in a row, "
            f"got {'×'.join(map(str, shape))}: name another output in the contract"
        )
    said = contract.output_layout
    if said is not None and said not in fits:
        raise CompileError(
            f"contract {contract.name}: output_layout: expected {' or '.join(fits)} for an output of {'×'.join(map(str, shape))}, "
            f"got {said}: leave it out"
        )
    return said or (contract.layout if contract.layout in fits else fits[0])


def _form(outputs: Sequence[NDArray[Any]], channels: int, contract: Contract, name: str) -> Form:
    kind = outputs[0].dtype
    finite = [output[np.isfinite(output)] for output in outputs]
    low, high = (float(end([end(one) for one in finite if one.size] or [0])) for end in (np.min, np.max))
    if channels > 1:
        return "scores"
    if kind == np.bool_:
        return "decisions"
    is_range = low >= 0 and _SATURATED <= high <= 255
    is_of_classes = contract.classes is not None and len(contract.classes) > 1
    if np.issubdtype(kind, np.floating):
        is_whole = all(bool((one == np.rint(one)).all()) for one in finite)
        if is_whole and is_of_classes:
            return "indices"
        is_range = is_range or (not is_whole and low >= 0 and _LIKELY_BYTES < high <= 255)
        return "bytes" if is_range and contract.activation == "none" and contract.subject is None else "scores"
    if is_of_classes or contract.subject is not None:
        return "indices"
    if kind == np.uint8 and (is_range or contract.activation == "none"):
        return "bytes"
    raise CompileError(
        f"output {name!r}: expected scores, or class indices whose classes the contract names, got {kind} from {low:g} to {high:g}: "
        f"set classes: [background, …] or subject: N; or for {_bytes_advice(kind)}"
    )


def _bytes_advice(kind: np.dtype[Any]) -> str:
    return "probabilities × 255, activation: none" if kind == np.uint8 else "probabilities × 255, give them as uint8"


def fit_output(contract: Contract, output: Output, decision: Decision | None, ends_in: str | None) -> Contract:
    """The contract as it holds for what comes out of the network.

    Args:
        contract: as it was given.
        output: of the network, without its decision.
        decision: what was left out.
        ends_in: the activation that gives the output: "sigmoid", "softmax" or "log_softmax"; None for another step.

    Raises:
        CompileError: they contradict each other.
    """
    fitted = replace(contract, output_layout=output.layout)
    if decision is not None:
        log.info("the network's own decision, %s, is left out: its scores are enlarged in its place", decision)
        activation = decision.activation or ("softmax" if output.class_count > 1 else "sigmoid")
        multilabel = contract.multilabel or (decision.kind == "threshold" and output.class_count > 1)
        if decision.kind == "argmax" and multilabel:
            raise CompileError(
                f"contract {contract.name}: multilabel: expected a network with a probability for each class, got one that ends in "
                "the index of the largest: leave it out"
            )
        fitted = replace(fitted, activation=activation, multilabel=multilabel)
    if output.form == "bytes":
        log.info("the network gives values from 0 to 255, taken for probabilities × 255")
        fitted = replace(fitted, activation="none")
    fitted = _with_own_activation(fitted, output, ends_in)
    if output.form in ("indices", "decisions"):
        if contract.upsample == "scores":
            raise CompileError(
                f"--upsample: expected classes for a network that gives {output.form}, got scores: it has none"
            )
        return replace(fitted, upsample="classes")
    if task_of(contract, output.class_count) == "classes" and contract.upsample is None:
        is_smaller = output.size_hw[0] < contract.imgsz[0] or output.size_hw[1] < contract.imgsz[1]
        fitted = replace(fitted, upsample="scores" if is_smaller else "classes")
    return fitted


def _with_own_activation(contract: Contract, output: Output, ends_in: str | None) -> Contract:
    """The contract of a network that ends in an activation itself: there is no second one behind it."""
    if ends_in is None or ends_in == "log_softmax" or contract.activation == "none":
        return contract
    if (ends_in == "sigmoid" and contract.activation == "softmax") or (ends_in == "softmax" and contract.multilabel):
        wanted = "multilabel" if contract.multilabel else f"activation: {contract.activation}"
        raise CompileError(
            f"contract {contract.name}: {wanted}: expected a network that gives logits, got one that ends in {ends_in} itself: set "
            f"activation: none{' and leave multilabel out' if contract.multilabel else ''}"
        )
    if contract.multilabel or task_of(contract, output.class_count) == "binary":
        log.info("the network ends in %s itself, so no second one is applied: activation: none", ends_in)
    return replace(contract, activation="none")


def task_of(contract: Contract, class_count: int) -> Task:
    """What masks mean: of one class, or of one channel that the contract names, its probability; else class indices."""
    return "binary" if class_count == 1 or contract.subject is not None else "classes"


def names_of(contract: Contract, class_count: int) -> tuple[str, ...]:
    """The names of what a mask tells apart, as the manifest has them."""
    names = contract.classes
    if task_of(contract, class_count) == "binary":
        if names is None:
            return ("subject",)
        return names if len(names) == 1 or contract.subject is None else (names[contract.subject],)
    if not contract.multilabel:
        return names or ("background", *(f"class {index}" for index in range(1, class_count)))
    if names is None:
        names = tuple(f"class {index}" for index in range(1, class_count + 1))
    return names if len(names) > class_count else ("background", *names)


def check_classes(contract: Contract, count: int) -> None:
    """Refuse a contract that does not fit a number of classes.

    Raises:
        CompileError: it does not, or a mask cannot hold so many.
    """
    if count + contract.multilabel > 256 and contract.subject is None:
        raise CompileError(
            f"the network: expected at most 256 classes, which a mask of 8 bits can tell apart, got {count}"
        )
    if count == 1 and contract.activation == "softmax":
        raise CompileError(
            f"contract {contract.name}: activation: expected sigmoid, or none for a network that gives probabilities, "
            "got softmax: it has one class"
        )
    subject, name = contract.subject, f"contract {contract.name}"
    if subject is not None and (count == 1 or subject >= count):
        allowed = "none for a network of one class" if count == 1 else f"a channel from 0 to {count - 1}"
        raise CompileError(f"{name}: subject: expected {allowed}, got {subject}")
    allowed_counts = {count, *([1] if subject is not None else []), *([count + 1] if contract.multilabel else [])}
    if contract.classes is not None and len(contract.classes) not in allowed_counts:
        raise CompileError(
            f"{name}: classes: expected {count} name{'s' if count > 1 else ''} as the network has classes, "
            f"got {len(contract.classes)}"
        )
