"""What there is of engines, sources, sinks and render modes, known without importing what each of them needs.

Each says what it is in its own file, by a declaration at the beginning of a line:

    CAMERA = SourceKind(name="camera", opens="CameraSource", forms=("/dev/video0",), help="a camera", extra="cpu", live=True)

It holds literals alone, so that it can be read from the file's text: the file, whose top imports a heavy package plainly, is imported
when the row is used and not before. A file that is put into the room is a row; so is one that somebody else's package names as an
entry point of the room's group, ``made-up = "made_up.source"``. Entry points are slow to find, so they are looked up only for a string
that no row of ours takes, and where everything is listed.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar, cast

from pipeline.errors import BackendUnavailableError
from pipeline.quick_dataclass import dataclass
from pipeline.terminal import logger_of

log = logger_of(__name__)

_LAST_BRACKET = re.compile(r"\)(?=[ \t]*(?:#.*)?$)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What each of them says of itself; the rooms' own rows add to it.

    Attributes:
        name: what users call it.
        opens: the class or function in the same file that is it.
        help: what it is, in one line.
        order: rows are listed, and tried, from the smallest on.
        extra: the extra of this project that installs what the file imports; empty: nothing beyond what is always there.
        install: the command that installs it, where it is none of our extras.
        module: where it is declared; the registry fills it in.
    """

    name: str
    opens: str
    help: str
    order: int = 100
    extra: str = ""
    install: str = ""
    module: str = ""

    @property
    def install_command(self) -> str:
        """What installs the packages it needs; empty where none is known."""
        return self.install or (f"pip install 'edgemask[{self.extra}]'" if self.extra else "")

    def cells(self) -> dict[str, str]:
        """Its cells of the table that the documentation shows, by column."""
        installed = f"`{self.install_command}`" if self.install_command else ""
        return {"Name": f"`{self.name}`", "What it is": self.help, "Installed by": installed}


R = TypeVar("R", bound=Row)


class Registry(Mapping[str, R], Generic[R]):
    """The rows of one kind by name, in order. Iterating gives ours, and those of others once they were looked up.

    Args:
        row: the class of the declarations.
        group: of the entry points by which other packages add rows.
        rooms: the packages in whose folders ours are.
    """

    def __init__(self, row: type[R], group: str, *rooms: str) -> None:
        self._row = row
        self._group = group
        self._rooms = rooms

    @functools.cached_property
    def own(self) -> dict[str, R]:
        """Those of this project: every declaration in the rooms' folders."""
        rows: list[R] = []
        for room in self._rooms:
            spec = importlib.util.find_spec(room)
            for folder in (spec and spec.submodule_search_locations) or ():
                for name in os.listdir(folder):
                    if not name.endswith(".py"):
                        continue
                    with open(os.path.join(folder, name), "rb", buffering=0) as file:
                        content = file.read()  # few declare something, and each start asks all of them
                    if _sign(self._row).encode() in content:
                        rows += _declared(content.decode(), self._row, f"{room}.{name[:-3]}")
        return _in_order(rows)

    @functools.cached_property
    def others(self) -> dict[str, R]:
        """Those of other packages, without what cannot be read, which is told in a line of the log."""
        rows: dict[str, R] = {}
        for point in _entry_points().select(group=self._group):
            try:
                for row in _declared(_source_of(point.module), self._row, point.module):
                    if row.name in self.own:
                        raise ValueError(f"{row.name!r} is the name of one of ours")
                    rows.setdefault(row.name, row)
                if not any(row.module == point.module for row in rows.values()):
                    raise ValueError(f"it declares no {self._row.__name__}")
            except Exception as error:  # noqa: BLE001 - somebody else's package must not stop ours
                log.warning(
                    "entry point %s of %s is left out: %s (%s)",
                    point.name,
                    self._group,
                    " ".join(str(error).split()) or type(error).__name__,
                    point.value,
                )
        return _in_order(rows.values())

    def load(self, row: R, problem: str) -> Any:
        """Import a row's file.

        Args:
            row: one of this registry's.
            problem: how the message begins if that fails, such as "a.png: cannot be read here".

        Returns:
            The class or function that the row names.

        Raises:
            BackendUnavailableError: what it imports is not here; with the command that installs it.
        """
        try:
            return getattr(importlib.import_module(row.module), row.opens)
        except Exception as error:
            # A broken native library raises OSError. Any other error is a bug: of ours, which shows, or of somebody else's.
            if row.name in self.own and not isinstance(error, (ImportError, OSError)):
                raise
            command = row.install_command
            mend = f": install what it needs with: {command}" if command else ""
            raise BackendUnavailableError(f"{problem} ({error}){mend}") from error

    def __getitem__(self, name: str) -> R:
        return self.own[name] if name in self.own else self.others[name]

    def __iter__(self) -> Iterator[str]:
        yield from self.own
        if "others" in self.__dict__:
            yield from self.others

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Choices:
    """The names of a registry and some words beside them, for argparse: asking for one looks for others', listing does not.

    Args:
        rows: the registry.
        words: what may be given too.
        without: which rows may not be given.
    """

    def __init__(self, rows: Registry[Any], *words: str, without: Callable[[Any], bool] = lambda _: False) -> None:
        self._rows = rows
        self._words = words
        self._without = without

    def __contains__(self, name: object) -> bool:
        return name in self._words or (name in self._rows and not self._without(self._rows[cast(str, name)]))

    def __iter__(self) -> Iterator[str]:
        yield from self._words
        yield from (name for name in self._rows if not self._without(self._rows[name]))


def listed(words: Iterable[str]) -> str:
    """Words as a sentence lists them: "a, b or c"."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def table(rows: Registry[Any]) -> str:
    """The rows as a Markdown table, for the documentation: with those of other packages if they were looked up."""
    cells = [row.cells() for row in rows.values()]
    lines = [list(cells[0]), ["---"] * len(cells[0]), *(list(each.values()) for each in cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@functools.cache
def _entry_points() -> Any:  # before Python 3.12 of another class, which has ``select`` as well
    from importlib.metadata import entry_points  # 25 ms that few runs need

    return entry_points()


def _source_of(module: str) -> str:
    """The text of a module, which is not imported; the packages around it are."""
    spec = importlib.util.find_spec(module)
    read = getattr(spec and spec.loader, "get_source", None)
    text: str | None = read(module) if read else None
    if text is None:
        raise ImportError(f"{module} is no Python file that can be found")
    return text


def _in_order(rows: Iterable[R]) -> dict[str, R]:
    return {row.name: row for row in sorted(rows, key=lambda row: (row.order, row.name))}


def _declared(text: str, row: type[R], module: str) -> list[R]:
    """The declarations in a file.

    Raises:
        ValueError: one holds more than literals, or lacks something.
    """
    found = []
    end = 0
    while (sign := text.find(_sign(row), end)) >= 0:
        start, end = text.rfind("\n", 0, sign) + 1, sign + 1
        if not text[start:sign].isidentifier():
            continue
        call = _call(text, start)
        try:
            values = {keyword.arg or "": ast.literal_eval(keyword.value) for keyword in call.keywords}
            if call.args:
                raise ValueError("expected names before all values")
            found.append(row(**values, module=module))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{module}: expected {row.__name__}(name=literal, …), got another ({error})") from error
    return found


def _sign(row: type[Row]) -> str:
    """What follows the name in a declaration."""
    return f" = {row.__name__}("


def _call(text: str, start: int) -> ast.Call:
    """The call in the statement that begins there: as few lines as parse, for parsing whole files takes a tenth of a second."""
    for end in _LAST_BRACKET.finditer(text, start):
        try:
            statement = ast.parse(text[start : end.end()]).body[0]
        except SyntaxError:
            continue
        assert isinstance(statement, ast.Assign)
        assert isinstance(statement.value, ast.Call)
        return statement.value
    raise ValueError("a declaration that does not end")
