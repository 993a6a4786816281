"""Names of outputs: one for each source."""

from __future__ import annotations

import os
import re
from pathlib import PurePath
from urllib.parse import urlsplit, urlunsplit

from pipeline.errors import SinkError
from pipeline.sinks.kinds import is_text, kind_of, shown

_FIELD = re.compile(r"\{([A-Za-z_]\w*)\}")
_NAME_LENGTH = 40


def file_name_of(source_name: str) -> str:
    """A source's name as part of a file's: letters, digits, ".", "_" and "-" alone, never empty, never hidden, never "..".

    One that is too long is cut, and what was cut off stands for itself in eight signs: names that differ stay different.
    """
    name = re.sub(r"[^\w.-]+", "_", source_name).strip(".-_") or "source"
    if len(name) <= _NAME_LENGTH:
        return name
    import hashlib

    return f"{name[: _NAME_LENGTH - 9].rstrip('.-_')}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"


def path_for_source(spec: str, source_name: str, many: bool) -> str:
    """The output of one source.

    Args:
        spec: as given by the user; ``{source}`` stands for the source's name.
        source_name: of one of the sources; names that differ only in signs give the same output.
        many: there are several sources, so that each needs an output of its own: where ``{source}`` is missing, the name is added
            ("out.mp4" → "out-door.mp4", "out/" → "out/door/", "rtsp://host/live" → "rtsp://host/live-door").

    Raises:
        SinkError: another field than ``{source}``, or a pipeline for several sources without it.
    """
    name = file_name_of(source_name)
    kind = kind_of(spec)
    if is_text(spec, kind):  # whose braces are its own
        if many and "{source}" not in spec:
            form = f"{spec.partition(':')[0]}:…"
            raise SinkError(
                f"--output {form}: expected {{source}} in its text where there are several sources, got none"
            )
        return spec.replace("{source}", name)
    if unknown := [field for field in _FIELD.findall(spec) if field != "source"]:
        raise SinkError(f"--output {shown(spec)}: expected {{source}} as the only field, got {{{unknown[0]}}}")
    if "{source}" in spec:
        return spec.replace("{source}", name)
    if not many or spec in kind.words or kind.shared:
        return spec
    if "://" in spec:
        parts = urlsplit(spec)
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}{'-' if parts.path.strip('/') else '/'}{name}"))
    path = PurePath(spec)
    if os.path.isdir(spec) or spec.endswith(os.sep) or not path.suffix:
        return f"{path / name}{os.sep}"
    return str(path.with_name(f"{path.stem}-{name}{path.suffix}"))
