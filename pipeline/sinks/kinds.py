"""What a sink says of itself, and which one a string names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from pipeline.errors import SinkError
from pipeline.quick_dataclass import dataclass
from pipeline.redaction import redact
from pipeline.registry import Registry, Row, listed


@dataclass(frozen=True, kw_only=True)
class SinkKind(Row):
    """A kind of output.

    ``opens`` is a ``pipeline.sinks.base.Sink``, opened as that one is.

    Attributes:
        forms: its strings as people write them, for help and messages.
        words: strings that are its own as they stand, such as "null"; several sources share such an output.
        prefixes: addresses that begin so are its own: "rtsp://" with a host behind it, or "gst:" with text that is taken as it is.
        suffixes: files that end so are its own, in small letters.
        folders: it takes folders, and names without a suffix.
        live_form_of: it takes the place of the kind of this name where the source is live.
        labels_form_of: it takes the place of the kind of this name where labels are asked for.
        takes_events: it gets events, and where no zone is given the whole frame is one.
        shared: several sources share its addresses, which say by themselves what is of which.
        option: the option that opens it, where it is none of ``--output``'s.
    """

    forms: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    folders: bool = False
    live_form_of: str = ""
    labels_form_of: str = ""
    takes_events: bool = False
    shared: bool = False
    option: str = ""

    def cells(self) -> dict[str, str]:
        """With its forms."""
        strings = ", ".join(self.forms) or self.option or f"as {self.live_form_of}, of a live source"
        return {"Name": f"`{self.name}`", "Strings": strings, **super().cells()}


SINKS = Registry(SinkKind, "edgemask.sinks", "pipeline.sinks", "pipeline.events", "pipeline.page")


def forms() -> str:
    """What an output's string can be, as a sentence lists it."""
    return listed(form for kind in SINKS.values() for form in kind.forms)


def shown(spec: str) -> str:
    """An output as messages show it: without passwords, and not longer than a line.

    Of a web address only the host: what stands behind it is the secret of many services.
    """
    text = re.sub(r"^(https?://[^/?#]*).*", r"\1/…", redact(spec), flags=re.IGNORECASE | re.DOTALL)
    return text if len(text) <= 120 else f"{text[:119]}…"


def kind_of(spec: str, *, live: bool = False, labels: bool = False) -> SinkKind:
    """Which sink a string names.

    Args:
        spec: as the user gives it.
        live: the source is, so that a kind made for that is taken.
        labels: they are asked for, likewise.

    Raises:
        SinkError: it is of a kind that is not understood.
    """
    kind = _named(spec)
    for other in SINKS.values():
        if (live and other.live_form_of == kind.name) or (labels and other.labels_form_of == kind.name):
            return other
    return kind


def is_text(spec: str, kind: SinkKind) -> bool:
    """Whether a string is neither a path nor an address but what stands behind a prefix such as "gst:", taken as it is."""
    return any(spec.startswith(prefix) and not prefix.endswith("//") for prefix in kind.prefixes)


def _named(spec: str) -> SinkKind:
    own = SINKS.own.values()
    kind = _by_form(spec, own)
    if kind is None and (not spec or "://" in spec):
        kind = _by_form(spec, SINKS.others.values()) if spec else None
        if kind is None:
            raise SinkError(f"--output {shown(spec) if spec else 'with nothing'}: expected {forms()}")
    if kind is not None:
        return kind
    folder = next(kind for kind in own if kind.folders)
    if os.path.isdir(spec) or spec.endswith(os.sep):
        return folder
    suffix = os.path.splitext(spec)[1].lower()
    kind = _by_suffix(suffix, own)
    if kind is None and (suffix or ":" in spec):
        kind = _by_form(spec, SINKS.others.values()) or _by_suffix(suffix, SINKS.others.values())
    if kind is not None:
        return kind
    if os.path.exists(spec):
        raise SinkError(f"--output {spec}: expected a folder or a name that ends in one of {_suffixes()}, got a file")
    if re.fullmatch(r"\.[a-z][a-z0-9]{1,5}", suffix):  # a folder is not what out.avi or out.mpeg4 means
        raise SinkError(
            f"--output {spec}: expected a name that ends in one of {_suffixes()}, got {suffix}: end it in / if it is a folder"
        )
    return folder


def _by_form(spec: str, kinds: Iterable[SinkKind]) -> SinkKind | None:
    for kind in kinds:
        if spec in kind.words:
            return kind
        for prefix in kind.prefixes:
            behind = spec.removeprefix(prefix)
            if behind != spec and (not prefix.endswith("//") or (behind and behind[0] != "/")):
                return kind
    return None


def _by_suffix(suffix: str, kinds: Iterable[SinkKind]) -> SinkKind | None:
    return next((kind for kind in kinds if suffix in kind.suffixes), None)


def _suffixes() -> str:
    return " ".join(sorted({suffix for kind in SINKS.values() for suffix in kind.suffixes}))
