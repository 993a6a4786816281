"""A contract with where each of its values came from, as YAML and as one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import yaml

from compile.contract.scaling import scaling_of
from compile.networks.contract import Contract

HONORED = frozenset(field.name for field in fields(Contract))
"""The keys that the frame program honors: what is found of others is told, and not written."""


@dataclass(frozen=True)
class Fact:
    """A value of the contract, or something else that was found.

    Attributes:
        value: in the contract's own form.
        origin: where it came from, as the end of a sentence.
        is_known: False for what was assumed.
        is_in_graph: whether the network's own graph says so, which no examples can contradict.
    """

    value: Any
    origin: str
    is_known: bool = True
    is_in_graph: bool = False


@dataclass(frozen=True)
class Found:
    """A contract that was found.

    Attributes:
        file: name of the network's file.
        contract: to be used as it is.
        facts: key of the contract to what is said of it, in the order in which they are written.
        family: the well-known family that it seems to be of; None for none.
        notes: what else is to be told, a sentence each.
    """

    file: str
    contract: Contract
    facts: Mapping[str, Fact]
    family: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def not_known(self) -> tuple[str, ...]:
        """What was assumed: "mean and std: assumed 0 and 1"."""
        said: dict[str, list[str]] = {}
        for key, fact in self.facts.items():
            if not fact.is_known:
                said.setdefault(fact.origin, []).append(key)
        return tuple(f"{_listed(keys)}: {origin}" for origin, keys in said.items())

    def with_fact(self, key: str, fact: Fact) -> Found:
        """The same with one more fact, or another one; the contract takes its value."""
        contract = replace(self.contract, **{key: fact.value}) if key in HONORED else self.contract
        return replace(self, contract=contract, facts={**self.facts, key: fact})

    def line(self) -> str:
        """What was taken and what could not be known, for a command that goes on with it."""
        contract = self.contract
        height, width = contract.imgsz
        scaling = scaling_of(contract)
        taken = [f"{height}×{width}", str(contract.channels)]
        taken.append(scaling.name if scaling else "a scaling of its own")
        taken.append(f"activation {contract.activation}")
        taken += [
            f"{key} {self.facts[key].value}" for key in ("subject", "multilabel", "fit", "output") if key in self.facts
        ]
        whose = f", {self.family}" if self.family else ""
        told = f"; not known: {'; '.join(self.not_known)}" if self.not_known else ""
        notes = "".join(f"; {note}" for note in self.notes)
        advice = (
            f": python -m compile.contract {self.file} --examples DIR finds it from pictures with masks"
            if self.not_known
            else ""
        )
        return f"{self.file}: contract found: {', '.join(taken)}{whose}{told}{notes}{advice}"

    def yaml(self) -> str:
        """The contract file, each value with a comment that says where it came from."""
        lines = [f"# Contract of {self.file}" + (f" ({self.family})" if self.family else "")]
        lines += [f"# not known: {sentence}" for sentence in self.not_known]
        lines += [f"# note: {note}" for note in self.notes]
        written = {key: fact for key, fact in self.facts.items() if key in HONORED}
        values = [(f"{key}: {_flow(getattr(self.contract, key))}", fact) for key, fact in written.items()]
        width = min(max((len(text) for text, _ in values), default=0), 36)
        for text, fact in values:
            comment = fact.origin if fact.is_known else "not known, see above"
            lines.append(f"{text:{width}}  # {comment}")
        return "\n".join(lines) + "\n"


def _listed(names: Sequence[str]) -> str:
    """Names as a sentence has them: with commas, and "and" before the last."""
    return " and ".join([part for part in (", ".join(names[:-1]), names[-1]) if part])


def _flow(value: Any) -> str:
    """A value in one line of YAML."""
    plain = list(value) if isinstance(value, tuple) else value
    if isinstance(plain, float) and plain.is_integer():
        plain = int(plain)
    if isinstance(plain, list):
        plain = [_rounded(one) for one in plain]
    text = yaml.safe_dump(plain, default_flow_style=True, width=10**9, allow_unicode=True).strip()
    return text.removesuffix("...").strip()


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return int(value) if value.is_integer() else float(f"{value:.6g}")
