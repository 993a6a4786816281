"""What a manifest says of one plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal

from pipeline.frames.pixels import Pixels, frames_nhw
from pipeline.quick_dataclass import dataclass

Hardware = Literal["same", "ampere+"]

_TENSORRT_KEYS = (
    *("file", "runtime", "version", "sms", "hardware", "version_compatible", "device", "profile", "dla_core"),
    *("gpu_layers", "float_scales", "size_bytes"),
)


@dataclass(frozen=True, slots=True)
class PlanEntry:
    """A plan of a bundle: its file, what runs it, and the GPUs and frames that it is for.

    An entry that is read keeps all that the manifest has, also what this version does not know or what has a wrong type: it is
    written again as it was. Whether it is enough to load the plan, ``is_complete`` says.

    Attributes:
        file: its name in the bundle, such as ``engines/tensorrt-10.3-sm87-fp16.plan``.
        runtime: "tensorrt", "tensorrt-rtx" or "torch-tensorrt".
        version: of the runtime that built it, complete.
        sms: compute capabilities as NVIDIA writes them without the dot, such as 86 for 8.6.
        profile: smallest, usual and largest frames, as the shapes of the program's input; empty for any.
        size_bytes: of the file.
        hardware: "same": for those compute capabilities alone; "ampere+": for every GPU from 8.0 on.
        version_compatible: later versions of the runtime load it too.
        device: name of the GPU that it was built on; None without one.
        dla_core: the deep learning accelerator that it runs on; None for the GPU.
        gpu_layers: layers that the accelerator leaves to the GPU.
        float_scales: its INT8 scales are FP32, for that TensorRT could not build with FP16 ones.
        versions: torch-tensorrt: of torch, torch_tensorrt and tensorrt.
        verification: its agreement on that GPU, as ``compile.proof.verify`` writes it; empty if it was not checked.
        keys: in the order in which the manifest has them.
        others: values by key that this version does not know, or that have a wrong type.
    """

    file: str = ""
    runtime: str = ""
    version: str = ""
    sms: tuple[int, ...] = ()
    profile: tuple[tuple[int, ...], ...] = ()
    size_bytes: int = 0
    hardware: Hardware = "same"
    version_compatible: bool = False
    device: str | None = None
    dla_core: int | None = None
    gpu_layers: tuple[str, ...] = ()
    float_scales: bool = False
    versions: Mapping[str, str] = field(default_factory=dict)
    verification: Mapping[str, Any] = field(default_factory=dict)
    keys: tuple[str, ...] = _TENSORRT_KEYS
    others: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> PlanEntry:
        """Read an entry as JSON has it; no entry is refused here."""
        known: dict[str, Any] = {}
        others: dict[str, Any] = {}
        for key, value in entry.items():
            try:
                known[key] = _READ[key](value)
            except (KeyError, TypeError):
                others[key] = value
        return cls(**known, keys=tuple(entry), others=others)

    def as_dict(self) -> dict[str, Any]:
        """The entry for JSON, with the keys that it was read with, or those of a new one."""
        found = {"versions": self.versions, "verification": self.verification}
        keys = (*self.keys, *(key for key, value in found.items() if value and key not in self.keys))
        return {key: self.others[key] if key in self.others else _plain(getattr(self, key)) for key in keys}

    def is_complete(self, pixels: Pixels) -> bool:
        """Whether it says all that is needed to load the plan, for a program that takes such frames."""
        needed = ("file", "version", "size_bytes", "sms")
        sized = len(self.profile) == 3 and all(frames_nhw(pixels, shape) is not None for shape in self.profile)
        return (
            all(key in self.keys for key in needed)
            and not any(key in self.others for key in (*needed, "profile", "dla_core"))
            and (sized or (self.runtime == "torch-tensorrt" and "profile" not in self.keys))
        )

    def replaces(self, other: PlanEntry) -> bool:
        """Whether the other one is for the same runtime and hardware, or has the same file."""
        mine, its = ((entry.runtime, entry.sms, entry.hardware, entry.dla_core) for entry in (self, other))
        return self.file == other.file or mine == its


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _whole(value: Any) -> int:
    if type(value) is not int:  # nor bool
        raise TypeError
    return value


def _core(value: Any) -> int | None:
    if value is not None and _whole(value) < 0:
        raise TypeError
    return None if value is None else int(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _hardware(value: Any) -> str:
    if value not in ("same", "ampere+"):
        raise TypeError
    return str(value)


def _items(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise TypeError
    return list(value)


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError
    return value


_READ = {
    "file": _text,
    "runtime": _text,
    "version": _text,
    "sms": lambda value: tuple(map(_whole, _items(value))),
    "profile": lambda value: tuple(tuple(map(_whole, _items(shape))) for shape in _items(value)),
    "size_bytes": _whole,
    "hardware": _hardware,
    "version_compatible": _flag,
    "device": lambda value: None if value is None else _text(value),
    "dla_core": _core,
    "gpu_layers": lambda value: tuple(map(_text, _items(value))),
    "float_scales": _flag,
    "versions": _object,
    "verification": _object,
}
