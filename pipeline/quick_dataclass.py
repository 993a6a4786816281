"""``dataclass`` that makes a class in a third of the time, for what each start imports: fifty of them took a tenth of it.

``dataclasses`` writes and compiles six methods for each class. Here it does so for ``__init__``, and all classes share the others.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

T = TypeVar("T")

_set = object.__setattr__

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(
        *,
        frozen: bool = False,
        repr: bool = True,  # noqa: A002 - as it is called there
        eq: bool = True,
        slots: bool = False,
        **options: bool,
    ) -> Callable[[type[T]], type[T]]:
        """The decorator of ``dataclasses``, with its arguments."""
        shared = {}
        if frozen:
            shared |= {"__setattr__": _set_slot_once if slots else _set_once, "__delattr__": _refuse}
        if repr:
            shared |= {"__repr__": _repr}
        if eq:
            shared |= {"__eq__": _equals, "__hash__": _hash if frozen else None}

        def make(cls: type[T]) -> type[T]:
            for name, method in shared.items():
                if name not in vars(cls):
                    setattr(cls, name, method)
            return dataclasses.dataclass(cls, repr=False, eq=False, slots=slots, **options)

        return make


def _set_once(self: Any, name: str, value: object) -> None:
    # ``__init__`` sets each field once, and nobody else may.
    if name in self.__dict__ or name not in self.__dataclass_fields__:
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
    _set(self, name, value)


def _set_slot_once(self: object, name: str, value: object) -> None:
    if hasattr(self, name):  # a slot that is not set is not there
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
    _set(self, name, value)


def _refuse(self: object, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


@reprlib.recursive_repr()
def _repr(self: Any) -> str:
    shown = (f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self) if field.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _equals(self: Any, other: Any) -> Any:
    if type(other) is not type(self):
        return NotImplemented
    compared = [field.name for field in dataclasses.fields(self) if field.compare]
    return [getattr(self, name) for name in compared] == [getattr(other, name) for name in compared]


def _hash(self: Any) -> int:
    counting = (field for field in dataclasses.fields(self) if (field.compare if field.hash is None else field.hash))
    return hash(tuple(getattr(self, field.name) for field in counting))
