"""What a frame program takes and gives, as a runtime that has loaded it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.bundles.bundle import FRAMES, LOOK, MASKS, NEXT_STATE, NOT_FINITE, STATE, VIEWS, Bundle
from pipeline.errors import BundleError
from pipeline.frames.pixels import input_type
from pipeline.quick_dataclass import dataclass


class Value(NamedTuple):
    """An input or output.

    Attributes:
        name: in the program.
        shape: a side that is no positive int is free.
        dtype: as NumPy calls it; of outputs it is not looked at.
    """

    name: str
    shape: tuple[object, ...]
    dtype: str = ""


@dataclass(frozen=True, slots=True)
class ProgramValues:
    """The inputs and outputs of a program that is what its manifest says.

    Attributes:
        frames: the input for frames.
        masks: the output for masks.
        counts: whether scores that are not finite are counted.
        one_at_a_time: whether it takes one frame at a time.
        zeros: the shape of each state by its input's name; empty: it keeps none.
    """

    frames: str
    masks: str
    counts: bool
    one_at_a_time: bool
    zeros: dict[str, tuple[int, ...]]

    @property
    def next(self) -> list[str]:
        """The outputs that become the state for the next frame, in the order of ``zeros``."""
        return [name.replace(STATE, NEXT_STATE, 1) for name in self.zeros]

    @property
    def outputs(self) -> list[str]:
        """What is computed for masks alone."""
        return [self.masks, NOT_FINITE] if self.counts else [self.masks]


def values_of(bundle: Bundle, inputs: Sequence[Value], outputs: Sequence[Value]) -> ProgramValues:
    """Check a program's inputs and outputs against its manifest.

    Raises:
        BundleError: it is another program.
    """
    manifest, where = bundle.manifest, bundle.program_path
    states = {value.name: value.shape for value in inputs if value.name.startswith(STATE)}
    next_states = [value.name for value in outputs if value.name.startswith(NEXT_STATE)]
    zeros = {name: tuple(side for side in shape if type(side) is int and side > 0) for name, shape in states.items()}
    whole = all(len(zeros[name]) == len(shape) for name, shape in states.items())
    pairs = [name.replace(STATE, NEXT_STATE, 1) for name in states]
    if sorted(pairs) != sorted(next_states) or not whole or bool(manifest.contract.get("state")) != bool(states):
        raise BundleError(
            f"{where}: expected an input and an output of one size for each state, got {', '.join(states)} and "
            f"{', '.join(next_states)}: compile the bundle again"
        )
    taken = [value for value in inputs if value.name not in states]
    given = [value.name for value in outputs if value.name not in next_states]
    masks = [name for name in given if name != NOT_FINITE]
    if manifest.composes:
        got = [*(value.name for value in taken), *given]
        if [name for name in got if name != NOT_FINITE] != [FRAMES, LOOK, MASKS, VIEWS]:
            raise BundleError(
                f"{where}: expected {FRAMES}, {LOOK}, {MASKS} and {VIEWS} of a program that composes, "
                f"got {', '.join(got)}: compile the bundle again"
            )
    elif len(taken) != 1 or len(masks) != 1 or taken[0].dtype != input_type(manifest.pixels):
        raise BundleError(
            f"{where}: expected one {input_type(manifest.pixels)} input and one output, "
            f"got {len(taken)} ({taken[0].dtype if taken else 'none'}) and {len(masks)}: "
            "this is no frame program, compile the bundle again"
        )
    frames = taken[0]
    return ProgramValues(frames.name, masks[0], NOT_FINITE in given, frames.shape[0] == 1, zeros)
