"""What of a corpus has failed: a file for each source, whoever writes them, and all of them as ``failed.jsonl``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.bundles.file_lock import locked
from pipeline.bundles.regular_file import read_regular
from pipeline.corpus.crew import Result
from pipeline.corpus.results import KEPT
from pipeline.corpus.shard import Shard
from pipeline.errors import SinkError
from pipeline.sinks.base import scratch_path

NAME = "failed.jsonl"

_KEYS = {"source", "error", "tries"}
_LINE_BYTES = 1 << 20


class Failures:
    """The failures of one run, or of one shard of it. A run tries all of them again, so that it begins without any.

    Args:
        output: the folder of the results.
        shard: those of other shards are left as they are.

    Raises:
        SinkError: the folder cannot be written, or its ``failed.jsonl`` is somebody else's; all methods raise it then.
    """

    def __init__(self, output: str, shard: Shard) -> None:
        self._output = Path(output)
        self._folder = self._output / KEPT / "failed"
        with self._told():
            _check_ours(self._output / NAME)
            for path in self._paths():
                if int(path.stem, 16) in shard:
                    path.unlink(missing_ok=True)

    def add(self, result: Result) -> None:
        """Keep a failure; a crash of this process does not lose it."""
        row = {"source": result.path, "error": result.error, "tries": result.tries}
        with self._told():
            self._folder.mkdir(parents=True, exist_ok=True)
            _write(self._folder / f"{result.key:016x}.json", json.dumps(row) + "\n")

    def list_all(self) -> Path | None:
        """Bring ``failed.jsonl`` up to date with those of all shards; None: there are none, and no such file."""
        together = self._output / NAME
        if not self._folder.is_dir() and not together.exists():
            return None
        with self._told(), locked(self._output):
            rows = sorted(filter(None, map(_read, self._paths())))
            _check_ours(together)
            if rows:
                _write(together, "".join(rows))
                return together
            together.unlink(missing_ok=True)
        return None

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SinkError(
                f"{self._output}: cannot be written ({error.strerror}): make room, or choose another --output"
            ) from error

    def _paths(self) -> list[Path]:
        return list(self._folder.glob("*.json"))


def _check_ours(path: Path) -> None:
    """Refuse to replace a list that no corpus has made."""
    try:
        first = read_regular(path, _LINE_BYTES).partition(b"\n")[0]
        is_ours = json.loads(first).keys() == _KEYS
    except FileNotFoundError:
        return
    except (ValueError, AttributeError, RecursionError):
        is_ours = False
    if not is_ours:
        raise SinkError(
            f"{path}: expected nothing or the list of an earlier run, got something else: choose another --output"
        )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:  # another shard has begun, which tries it again
        return ""


def _write(path: Path, text: str) -> None:
    scratch = scratch_path(path)
    try:
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
