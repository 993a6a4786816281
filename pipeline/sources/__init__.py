"""Where frames come from: one file a kind, which says what it takes; imported only when asked for."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.errors import EdgemaskError
from pipeline.redaction import redact
from pipeline.sources.kinds import SOURCES, SourceKind, forms, kind_of, name_and_spec

if TYPE_CHECKING:
    from pipeline.sources.base import Source
    from pipeline.sources.options import Decode, LiveOptions

__all__ = ["SOURCES", "SourceKind", "forms", "load_sources", "open_source", "open_sources", "source_kind"]


def open_source(spec: str, live: LiveOptions | None = None, decode: Decode = "auto") -> Source:
    """Open a source by its string.

    Args:
        spec: "0" or "/dev/video0" (camera), a video, a picture, a folder, a glob, "rtsp://user:password@host/path",
            "http://host/stream", "csi://0", "gst:PIPELINE", "test://?size=1280x720&frames=300", or what a row of another package
            takes. With "NAME=" in front, as in "door=rtsp://host/path", that is what it is called.
        live: deadlines and policies of cameras and streams; None: the defaults.
        decode: "cuda": by the GPU, whose engine takes the frames from there; open the engine after that. "auto": by a Jetson's decoder
            where there is one, else by FFmpeg on the CPU.

    Raises:
        SourceError: there is no such thing, or it holds no frames, or the GPU cannot decode it. A stream that does not answer is no
            error: it may come.
        BackendUnavailableError: what reads it is not on this machine.
    """
    name, spec = name_and_spec(spec)
    kind = kind_of(spec)
    make = SOURCES.load(kind, f"{redact(spec)}: cannot be read here")
    source: Source = make(spec, live) if kind.live else make(spec)
    if name is not None:
        source.info = replace(source.info, name=name)
    if decode == "cuda":
        try:
            source.decode_on_gpu()
        except BaseException:
            source.close()
            raise
    return source


def open_sources(
    specs: Sequence[str], live: LiveOptions | None = None, beside: Collection[str] = (), decode: Decode = "auto"
) -> list[Source]:
    """Open several sources, with names that differ: those that do not get a number.

    Args:
        specs: as ``open_source`` takes them.
        live: likewise.
        beside: names of others that are open.
        decode: as ``open_source`` takes it.

    Raises:
        SourceError: as ``open_source``; those before it are closed.
    """
    sources: list[Source] = []
    taken = {_as_file(name) for name in beside}
    try:
        for spec in specs:
            source = open_source(spec, live, decode)
            sources.append(source)
            name = source.info.name
            number = 1
            while _as_file(name) in taken:
                number += 1
                name = f"{source.info.name}-{number}"
            taken.add(_as_file(name))
            if name != source.info.name:
                source.info = replace(source.info, name=name)
    except BaseException:
        for source in sources:
            source.close()
        raise
    return sources


def load_sources(specs: Sequence[str]) -> None:
    """Import what reads some sources, ahead of `open_source`; what cannot be is told there."""
    with suppress(EdgemaskError):
        for spec in specs:
            SOURCES.load(SOURCES[source_kind(spec)], "")


def _as_file(name: str) -> str:
    """A name as it is compared: files are named after it."""
    return re.sub(r"[^\w.-]+", "_", name).casefold()


def source_kind(spec: str) -> str:
    """The name of the row of ``SOURCES`` that a source's string names.

    Raises:
        SourceError: it is empty, or a kind of address that is not understood.
    """
    return kind_of(name_and_spec(spec)[1]).name
