"""A network's own decision at its end, a class index or a comparison: it is left out, so that scores can be enlarged and searched.

A decision cannot be enlarged without steps, nor can what FP16 and INT8 do to it be measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from compile.networks.contract import Activation


@dataclass(frozen=True, slots=True)
class Decision:
    """What was left out.

    Attributes:
        kind: the index of the largest score, or a comparison with a number.
        axis: of the scores, over which the largest is looked for; None for a comparison.
        activation: of a comparison, what makes probabilities of what is left, with the decision at 0.5.
        offset: of a comparison, what is subtracted from what is left.
        before_sigmoid: of a comparison, whether what is left is what its sigmoid read.
    """

    kind: Literal["argmax", "threshold"]
    axis: int | None = None
    activation: Activation | None = None
    offset: float = 0.0
    before_sigmoid: bool = False

    def __str__(self) -> str:
        """For the user."""
        return "class indices" if self.kind == "argmax" else "a comparison"


def threshold(number: float, *, behind_sigmoid: bool) -> Decision | None:
    """What is left of a comparison with a number, so that it decides at a probability of 0.5.

    Args:
        number: from which on a pixel is subject.
        behind_sigmoid: whether a sigmoid gives what is compared.

    Returns:
        None where nothing can be decided: behind a sigmoid, a number that it never reaches.
    """
    if behind_sigmoid:
        if not 0 < number < 1:
            return None
        return Decision("threshold", activation="sigmoid", offset=math.log(number / (1 - number)), before_sigmoid=True)
    if number == 0.5:
        return Decision("threshold", activation="none")
    return Decision("threshold", activation="sigmoid", offset=number)
