"""What mkdocs adds to docs/: the command line, from the commands' own parsers, and files elsewhere that pages link to."""

from __future__ import annotations

import argparse
import importlib
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[2]
# Where a page wants all commands.
_COMMANDS = "<!-- commands -->"
# Where a page wants the public names of the package edgemask, and their order; names that are not listed come after these.
_REFERENCE = "<!-- reference -->"
_CHAPTERS = {
    "Models": ("Model", "ServerOptions", "build", "BuildOptions", "Bundle"),
    "Sources and frames": ("open_source", "open_sources", "SourceInfo", "Frame"),
    "Regions": ("regions", "Region"),
    "Drawing": ("Look",),
    "Sinks": ("open_sink", "SinkOptions"),
}
# Pages that stand at the root of the repository, where readers of the repository look for them.
PAGES_OUTSIDE = ("CONTRIBUTING.md", "CHANGELOG.md")
# A link out of docs/; the site keeps the file under the same path.
_OUTSIDE = re.compile(r"\]\(\.\./([^)#\s]+)")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]#|])")
# An option in code, which no line shall break behind its dashes.
_SHORT_CODE = re.compile(r"<code>(-[^<]{1,40})</code>")
_CODE = re.compile(r"``([^`]+)``|(?<![\w-])(--[a-z][a-z-]*)")


@dataclass(frozen=True, slots=True)
class Command:
    """A command of the page.

    Attributes:
        title: as it is called once installed.
        module: the same without an installation, ``python -m module``.
        arguments: what stands before its options.
    """

    title: str
    module: str
    arguments: tuple[str, ...] = ()


def commands() -> list[Command]:
    """Every command of the project, one a question of the benchmarks."""
    from benchmarks.__main__ import QUESTIONS

    return [
        Command("edgemask run", "pipeline"),
        Command("edgemask corpus", "pipeline.corpus"),
        Command("edgemask replay", "pipeline.replay"),
        Command("edgemask compile", "compile"),
        Command("edgemask contract", "compile.contract"),
        Command("edgemask calibrate", "calibration"),
        Command("edgemask inspect", "compile.inspect"),
        Command("edgemask doctor", "pipeline.doctor"),
        Command("edgemask benchmark", "benchmarks"),
        *(Command(f"edgemask benchmark {question}", "benchmarks", (question,)) for question in QUESTIONS),
    ]


class _ParserFound(BaseException):
    """Carries the parser out of a command, past whatever the command catches."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def parser_of(command: Command) -> argparse.ArgumentParser:
    """The parser that a command reads its options with; the command is started and stopped where it would read them."""

    def found(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise _ParserFound(parser)

    main = importlib.import_module(f"{command.module}.__main__").main
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with mock.patch.object(argparse.ArgumentParser, "parse_args", found):
        try:
            main(list(command.arguments))
        except _ParserFound as carried:
            return carried.parser
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    raise RuntimeError(f"{command.title}: expected it to read options with argparse, got a command that does not")


def command_lines() -> str:
    """All commands with all their options, as Markdown."""
    lines: list[str] = []
    for command in commands():
        lines += _command_lines(command, level=3 if command.arguments else 2)
        if command.module == "pipeline":
            lines += _tables()
    return "\n".join(lines) + "\n"


def _tables() -> Iterator[str]:
    """What the strings of sources and outputs can be, and the render modes and backends, as these say it themselves."""
    from pipeline.engines import ENGINES
    from pipeline.registry import table
    from pipeline.render.modes import MODES
    from pipeline.sinks import SINKS
    from pipeline.sources import SOURCES

    for title, rows in (("Sources", SOURCES), ("Outputs", SINKS), ("Render modes", MODES), ("Backends", ENGINES)):
        yield f"### {title}"
        yield ""
        yield table(rows)
        yield ""


def _command_lines(command: Command, level: int) -> Iterator[str]:
    parser = parser_of(command)
    yield f"{'#' * level} {command.title}"
    yield ""
    yield from _paragraphs(re.sub(r"^python -m [^:\n]+: ", "", parser.description or ""))
    positional = " ".join(_values(action) for action in parser._get_positional_actions())
    words = " ".join(filter(None, ("python -m", command.module, *command.arguments, positional, "[options]")))
    yield f"    {command.title}{' ' + positional if positional else ''} [options]"
    yield f"    {words}"
    yield ""
    for group in parser._action_groups:
        actions = [
            action for action in group._group_actions if action.help is not argparse.SUPPRESS and action.dest != "help"
        ]
        if not actions:
            continue
        if group.title not in ("options", "optional arguments", "positional arguments"):
            yield f"**{_text(str(group.title)[:1].upper() + str(group.title)[1:])}**"
            yield ""
        for action in actions:
            yield from _option_lines(parser, action)
    yield from _paragraphs(parser.epilog or "")


def _paragraphs(text: str) -> Iterator[str]:
    """Plain text as Markdown: paragraphs, and indented lines as they are."""
    for paragraph in text.strip().split("\n\n"):
        for is_list, lines in groupby(paragraph.splitlines(), lambda line: line.startswith("  ")):
            if is_list:
                yield from (f"    {line.strip()}" for line in lines)
            else:
                yield _text(" ".join(lines))
            yield ""


def _option_lines(parser: argparse.ArgumentParser, action: argparse.Action) -> Iterator[str]:
    names = ", ".join(action.option_strings) or _values(action)
    values = _values(action) if action.option_strings and action.nargs != 0 else ""
    told = parser._get_formatter()._expand_help(action) if action.help else ""
    yield f"`{' '.join(filter(None, (names, values)))}`"
    # A definition must not be empty.
    yield f":   {_text(told) or '&nbsp;'}"
    yield ""


def _values(action: argparse.Action) -> str:
    name = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    return f"[{name}]" if action.nargs == "?" else str(name)


def _text(text: str) -> str:
    """Plain text as Markdown that reads the same, its options as code."""
    told, end = "", 0
    for code in _CODE.finditer(text):
        told += _MARKDOWN.sub(r"\\\1", escape(text[end : code.start()], quote=False)) + f"`{code[1] or code[2]}`"
        end = code.end()
    return told + _MARKDOWN.sub(r"\\\1", escape(text[end:], quote=False))


def reference_lines() -> str:
    """A chapter for each kind of public name, as Markdown that mkdocstrings fills in."""
    import edgemask

    names = [name for name in edgemask.__all__ if not name.startswith("_")]
    listed = {name for chapter in _CHAPTERS.values() for name in chapter}
    errors = sorted(
        (name for name in names if name.endswith("Error")), key=lambda name: (name != "EdgemaskError", name)
    )
    others = tuple(name for name in names if name not in listed and name not in errors)
    lines = []
    for title, chapter in {**_CHAPTERS, "More": others, "Errors": errors}.items():
        lines += [f"## {title}", ""] if set(chapter) & set(names) else []
        for name in chapter:
            if name in names:
                home = getattr(edgemask, name).__module__
                lines += [f"::: {home}.{name}", ""]
    return "\n".join(lines)


def on_files(files: Any, config: Any) -> Any:
    """Add what pages link to outside of docs/."""
    from mkdocs.structure.files import File

    outside = set(PAGES_OUTSIDE)
    for path in sorted(Path(config.docs_dir).glob("*.md")):
        outside |= set(_OUTSIDE.findall(path.read_text(encoding="utf-8")))
    for name in sorted(outside):
        # A name that is not there stays out, and the strict build names the link.
        if (ROOT / name).is_file() and files.get_file_from_path(name) is None:
            files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in commands and reference, and make links of the repository those of the site."""
    if _COMMANDS in markdown:
        markdown = markdown.replace(_COMMANDS, command_lines())
    if _REFERENCE in markdown:
        markdown = markdown.replace(_REFERENCE, reference_lines())
    if page.file.src_uri in PAGES_OUTSIDE:
        page.meta["search"] = {"exclude": True}  # whoever searches wants to know how things are
        return markdown.replace("](docs/", "](")
    return _OUTSIDE.sub(r"](\1", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Keep options on one line."""
    return _SHORT_CODE.sub(r'<code class="option">\1</code>', html)
