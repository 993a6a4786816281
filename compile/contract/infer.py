"""The contract of a network that nobody described: from its graph, its family and what lies beside it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from compile.contract.families import Family, family_of
from compile.contract.found import HONORED, Fact, Found
from compile.contract.metadata import of_transformers, of_ultralytics, refuse_other_tasks
from compile.contract.scaling import UNIT, known_order, scaled
from compile.contract.traits import Traits, read_traits
from compile.contract.trial import Inside, Trial, try_network
from compile.networks.contract import Contract, Layout
from pipeline.errors import CompileError
from pipeline.terminal import logger_of

log = logger_of(__name__)

DEFAULT_SIZE = 512
"""Of a network whose file and family leave its size open: a multiple of every usual stride."""

# What is tried where a network does not take its default size.
_OTHER_SIZES = (256, 320, 224, 384, 640, 1024)
# The most channels that a picture has.
_MOST_CHANNELS = 16
# Values in 0 to 1 that are further apart than this are no logits by chance.
_WIDE = 0.5
_WRITTEN = (
    *("imgsz", "channels", "layout", "divide_by", "mean", "std", "filter", "fit", "pad", "output", "activation"),
    *("subject", "multilabel", "classes"),
)


def infer_contract(path: Path, imgsz: tuple[int, int] | None = None) -> tuple[Found, Trial]:
    """Find how frames go into a network and masks come out of it.

    Args:
        path: an ONNX file, or what ``torch.export.save`` wrote.
        imgsz: (height, width) to take where the file leaves it open; None for the family's, else a usual one.

    Returns:
        The contract with where each value came from, and the trial that told what the network gives.

    Raises:
        CompileError: it cannot be read or run, or gives no masks.
    """
    traits = read_traits(path)
    refuse_other_tasks(traits)
    said = {**of_transformers(traits), **of_ultralytics(traits)}
    names = [*traits.names, f"file:{path.stem}"]
    layout = _layout(traits)
    first_family = family_of(names)
    shape_facts = {"layout": layout, "channels": _channels(traits, layout.value)}
    shape_facts["imgsz"] = _imgsz(traits, layout.value, imgsz, said.get("imgsz"), first_family)
    if (output := _output(traits)) is not None:
        shape_facts["output"] = output
    first = _contract({key: fact.value for key, fact in shape_facts.items()})
    trial, contract = _tried(traits, first, shape_facts)
    if contract.layout != first.layout:
        layout = shape_facts["layout"] = Fact(contract.layout, f"open in the file, which does not take {first.layout}")
    if contract.imgsz != first.imgsz:
        shape_facts["imgsz"] = Fact(contract.imgsz, f"open in the file, which does not take {first.imgsz[0]}")
    elif trial.stride and shape_facts["imgsz"].origin.startswith("open"):
        origin = f"{shape_facts['imgsz'].origin}; a multiple of its stride, {trial.stride}"
        shape_facts["imgsz"] = replace(shape_facts["imgsz"], origin=origin)
    height, width = contract.imgsz
    names += [f"classes:{trial.shape[1]}", f"ends:{trial.ends}"]
    if layout.value == "nhwc":
        names.append(f"shape:{height}x{width}x{len(contract.mean)}")
    family = family_of(names)
    facts = {**shape_facts, **_scaling(traits, trial, contract, said, family), **_ending(traits, trial, said, family)}
    facts["filter"] = Fact(
        "area", "averages all pixels of a large frame, which is steady on video; files do not say it"
    )
    notes = tuple(_notes(traits, trial, facts))
    ordered = {key: facts[key] for key in _WRITTEN if key in facts}
    given = {key: fact.value for key, fact in ordered.items() if key in HONORED}
    return Found(path.name, _contract(given), ordered, family.name if family else None, notes), trial


def contract_for(path: Path, imgsz: tuple[int, int] | None = None) -> Contract:
    """The contract of a network that nobody described, told in one line with what could not be known.

    Args:
        path: as ``infer_contract``.
        imgsz: the same.

    Raises:
        CompileError: the same.
    """
    found, _ = infer_contract(path, imgsz)
    # What was assumed may be wrong, and nothing that follows would show it.
    log.log(logging.WARNING if found.not_known or found.notes else logging.INFO, "%s", found.line())
    return found.contract


def _contract(values: Mapping[str, Any]) -> Contract:
    channels = values.get("channels", "rgb")
    count = 1 if channels == "grey" else 3 if isinstance(channels, str) else channels
    return Contract(**{"name": "inferred", "mean": (0.0,) * count, "std": (1.0,) * count, **values})


def _tried(traits: Traits, contract: Contract, facts: Mapping[str, Fact]) -> tuple[Trial, Contract]:
    """Try the network; where its size and layout are open, with others too."""
    layouts: list[Layout] = [contract.layout] + ([] if facts["layout"].is_known else ["nhwc"])
    sizes = [contract.imgsz] + ([] if facts["imgsz"].is_known else [(side, side) for side in _OTHER_SIZES])
    errors: list[CompileError] = []
    for layout in layouts:
        for imgsz in sizes:
            wanted = replace(contract, imgsz=imgsz, layout=layout)
            try:
                return try_network(traits, wanted), wanted
            except CompileError as error:
                errors.append(error)
    raise errors[0]


def _layout(traits: Traits) -> Fact:
    _, second, _, last = traits.input_shape

    def few(side: int | None) -> bool:
        return side is not None and side <= _MOST_CHANNELS

    if few(last) and not few(second):
        return Fact("nhwc", f"the input's last side is {last}")
    if few(second):
        return Fact("nchw", f"the input's second side is {second}")
    if second is not None and last is not None:
        raise CompileError(
            f"{traits.path}: expected an input with at most {_MOST_CHANNELS} channels, got {'×'.join(map(str, traits.input_shape))}: "
            "say which axis has them with layout in a --contract"
        )
    return Fact("nchw", "assumed nchw", False)


def _channels(traits: Traits, layout: Layout) -> Fact:
    side = traits.input_shape[3 if layout == "nhwc" else 1]
    count, origin = side or traits.first_channels or 3, "the input's sides" if side else "the first convolution"
    if count == 1:
        return Fact("grey", f"{origin}: 1 channel")
    if count == 3:
        return Fact("rgb", "assumed rgb", False)
    return Fact(count, f"{origin}: {count} channels")


def _imgsz(
    traits: Traits, layout: Layout, wanted: tuple[int, int] | None, said: Fact | None, family: Family | None
) -> Fact:
    _, *sides = traits.input_shape
    height, width = sides[:2] if layout == "nhwc" else sides[1:]
    if height and width:
        return Fact((height, width), "fixed in the file")
    if wanted is not None:
        default = Fact(wanted, "--imgsz; open in the file")
    elif said is not None:
        default = said
    elif family is not None and family.size is not None:
        default = Fact((family.size, family.size), f"open in the file: the usual one of {family.name}")
    else:
        default = Fact((DEFAULT_SIZE, DEFAULT_SIZE), f"open in the file: assumed {DEFAULT_SIZE}×{DEFAULT_SIZE}", False)
    return replace(default, value=(height or default.value[0], width or default.value[1]))


def _output(traits: Traits) -> Fact | None:
    """The output to take, where there are several."""
    if len(traits.outputs) < 2:
        return None
    masks = [name for name, sides in traits.outputs.items() if not sides or len(sides) in (3, 4)]
    name = (masks or list(traits.outputs))[0]
    others = ", ".join(other for other in traits.outputs if other != name)
    return Fact(name, f"the first of its outputs that can be a mask; the others: {others[:80]}")


def _scaling(
    traits: Traits, trial: Trial, contract: Contract, said: Mapping[str, Fact], family: Family | None
) -> dict[str, Fact]:
    """How pixels are scaled, and in which order their colors are."""
    facts = {key: said[key] for key in ("fit", "pad") if key in said}
    count = len(contract.mean)
    order = said.get("channels") if contract.channels == "rgb" else None
    if order is None and family is not None and contract.channels == "rgb":
        order = Fact(family.channels, f"as {family.name} has it", family.sure_of_order)
    if trial.inside is not None and not trial.inside.is_nothing:
        facts |= _of_inside(trial.inside, contract)
    elif traits.input_dtype == np.uint8:
        facts |= _facts(scaled(contract, replace(UNIT, divide_by=1.0)), "the file takes 8-bit pixels", in_graph=True)
    elif "divide_by" in said:
        facts |= {key: said[key] for key in ("divide_by", "mean", "std") if key in said}
        if "mean" not in facts or len(facts["mean"].value) != count:
            facts |= _facts(contract, "assumed 0 and 1", False, keys=("mean", "std"))
        elif len(facts["std"].value) != count:
            facts |= _facts(contract, "assumed 1", False, keys=("std",))
    elif family is not None:
        as_trained = scaled(
            replace(contract, channels=family.channels if count == 3 else contract.channels), family.scaling
        )
        origin = f"as {family.name} has it" + (f" ({family.doubt})" if family.doubt else "")
        facts |= _facts(as_trained, origin, not family.doubt)
    else:
        facts |= _facts(contract, "assumed 255", False, keys=("divide_by",))
        facts |= _facts(contract, "assumed 0 and 1", False, keys=("mean", "std"))
    return facts | ({} if order is None or "channels" in facts else {"channels": order})


def _facts(
    contract: Contract,
    origin: str,
    known: bool = True,
    keys: tuple[str, ...] = ("divide_by", "mean", "std"),
    *,
    in_graph: bool = False,
) -> dict[str, Fact]:
    return {key: Fact(getattr(contract, key), origin, known, in_graph) for key in keys}


def _of_inside(inside: Inside, contract: Contract) -> dict[str, Fact]:
    """What is left to do where the graph scales the picture itself."""
    factor, offset = np.array(inside.factor), np.array(inside.offset)
    mean, std = -offset / factor, 1 / factor
    # Pixels from 0 to 1 become less than a third apart, or the mean is far above them: it takes 0 to 255.
    takes_bytes = bool((factor < 0.3).all() or (mean > 1.01).any())
    said = ", ".join(f"{value:.3g}" for value in mean), ", ".join(f"{value:.3g}" for value in std)
    origin = f"the graph itself subtracts {said[0]} and divides by {said[1]}"
    facts = _facts(replace(contract, divide_by=1.0 if takes_bytes else 255.0), origin, in_graph=True)
    order = known_order(mean.tolist())
    if contract.channels == "rgb" and order is not None:
        facts["channels"] = Fact(order, f"{origin}, in this order")
    return facts


def _ending(traits: Traits, trial: Trial, said: Mapping[str, Fact], family: Family | None) -> dict[str, Fact]:
    """What turns the output into probabilities, and what its channels mean."""
    count = trial.shape[1]
    facts = {"activation": _activation(trial)}
    names = said.get("classes")
    if names is None and family is not None and family.classes:
        names = Fact(family.classes, f"as {family.name} numbers them", False)
    if names is not None and len(names.value) == count and not trial.is_whole:
        facts["classes"] = names
    independent = count > 1 and (trial.ends == "sigmoid" or (_are_probabilities(trial) and not trial.sums_to_one))
    if independent and not trial.is_whole:
        facts["multilabel"] = Fact(True, "its channels are probabilities that do not sum to 1")
    elif count == 2 and not trial.is_whole:
        facts["subject"] = _subject(facts.get("classes"))
        facts.pop("classes", None)
    return facts


def _activation(trial: Trial) -> Fact:
    count, values = trial.shape[1], f"values from {trial.low:.3g} to {trial.high:.3g} on photographs"
    if trial.is_whole:
        return Fact("none", "the output is whole numbers")
    if trial.ends == "log_softmax" and count > 1:
        return Fact("softmax", "the graph ends in log_softmax")
    if trial.ends in ("sigmoid", "softmax"):
        return Fact("none", f"the graph ends in {trial.ends}")
    if trial.sums_to_one:
        return Fact("none", "its values over the channels sum to 1")
    if _are_probabilities(trial):
        wide = trial.high - trial.low > _WIDE
        return Fact("none", values if wide else f"{values}, assumed probabilities", wide)
    if trial.low >= 0:
        return Fact(
            "sigmoid" if count == 1 else "softmax", f"{values}, neither logits nor probabilities, assumed logits", False
        )
    return Fact("sigmoid" if count == 1 else "softmax", values)


def _are_probabilities(trial: Trial) -> bool:
    return trial.low >= -1e-3 and trial.high <= 1 + 1e-3 and trial.low < trial.high


def _subject(classes: Fact | None) -> Fact:
    if classes is not None:
        empty = [
            index for index, name in enumerate(classes.value) if name.lower() in ("background", "bg", "_background_")
        ]
        if len(empty) == 1:
            return Fact(
                1 - empty[0], f"{classes.origin}: {classes.value[1 - empty[0]]!r} beside {classes.value[empty[0]]!r}"
            )
    return Fact(1, "of two channels the second is assumed to be the subject", False)


def _notes(traits: Traits, trial: Trial, facts: Mapping[str, Fact]) -> Iterator[str]:
    if trial.shape[1] == 1 and trial.ends == "softmax":
        yield "a softmax over one channel gives 1 everywhere: export the network with a sigmoid, or without an activation"
    if trial.high == trial.low:
        yield f"it gives {trial.low:.3g} for every pixel of the photographs"
    for key, fact in facts.items():
        if key not in HONORED:
            yield f"{key}: {fact.value} ({fact.origin}), which the frame program does not honor"
    if traits.preprocessor.get("do_center_crop"):
        yield "preprocessor_config.json crops the picture's center, which is not done: frames are stretched"
