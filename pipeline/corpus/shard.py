"""A part of a corpus: every Nth source, by what stands for it and not by its place in the list."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shard:
    """One of ``count`` parts; ``key in shard`` tells whether a source belongs to it.

    Attributes:
        index: from 0.
        count: how many parts there are.
    """

    index: int = 0
    count: int = 1

    def __contains__(self, key: int) -> bool:
        return key % self.count == self.index


WHOLE = Shard()
"""All of it."""


def read_shard(text: str) -> Shard:
    """An option's value as a shard, for argparse: "0/8".

    Raises:
        ArgumentTypeError: it is none.
    """
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
    if match is None or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 0 to N-1, such as 0/8, got {text}")
    return Shard(int(match[1]), int(match[2]))
