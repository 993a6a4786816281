"""The pages in docs/ keep their promises: commands parse, files and headings exist, the site builds, every option is told."""

import contextlib
import importlib.util
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import QUESTIONS
from compile.options import parse_options as parse_compile_options
from pipeline.command.options import parse_options

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
WRITTEN = {page: page.read_text(encoding="utf-8") for page in PAGES}
# What a command of the pages is called, installed and in a clone.
COMMANDS = {
    "compile.inspect": ("edgemask inspect", "python -m compile.inspect"),
    "compile.contract": ("edgemask contract", "python -m compile.contract"),
    "pipeline.corpus": ("edgemask corpus", "python -m pipeline.corpus"),
    "pipeline.replay": ("edgemask replay", "python -m pipeline.replay"),
    "pipeline.doctor": ("edgemask doctor", "python -m pipeline.doctor"),
    "compile": ("edgemask compile", "python -m compile"),
    "calibration": ("edgemask calibrate", "python -m calibration"),
    "benchmarks": ("edgemask benchmark", "python -m benchmarks"),
    "pipeline": ("edgemask run", "edgemask", "python -m pipeline"),
}


def site_pages():
    """The module that mkdocs calls when it builds the site."""
    spec = importlib.util.spec_from_file_location("site_pages", DOCS / "hooks" / "site_pages.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def shell_lines(text):
    """The command lines in a page's shell blocks, without their comments."""
    blocks = "\n".join(re.findall(r"^ *```sh\n(.*?)```", text, re.DOTALL | re.MULTILINE)).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in blocks.splitlines()]


def commands():
    """(page, module, arguments) of every command of ours in the pages."""
    for page, text in WRITTEN.items():
        for words in shell_lines(text):
            line = " ".join(words)
            for module, names in COMMANDS.items():
                name = next((name for name in names if f"{line} ".startswith(f"{name} ")), None)
                if name is not None:
                    yield pytest.param(module, words[len(name.split()) :], id=f"{page.name}: {line}")
                    break


def shown(module, arguments):
    """What ``--help`` prints."""
    said = io.StringIO()
    main = importlib.import_module(f"{module}.__main__").main
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main([*arguments, "--help"])
    return said.getvalue()


@pytest.mark.parametrize(("module", "arguments"), list(commands()))
def test_commands_parse(module, arguments):
    if module == "pipeline":
        if arguments and not arguments[0].startswith("-"):
            arguments = ["--source", *arguments]
        if "--config" not in arguments:
            parse_options(arguments)
    elif module == "compile":
        parse_compile_options(arguments)
    else:
        question = arguments[:1] if module == "benchmarks" and arguments[:1] and arguments[0] in QUESTIONS else []
        command = site_pages().Command("", module, tuple(question))
        site_pages().parser_of(command).parse_args(arguments[len(command.arguments) :])


@pytest.mark.parametrize("command", site_pages().commands(), ids=lambda command: command.title)
def test_every_option_is_told(command):
    page = site_pages().command_lines()
    section = re.search(rf"^#+ {re.escape(command.title)}\n(.*?)(?=^#+ |\Z)", page, re.DOTALL | re.MULTILINE)[1]
    lines = re.findall(r"^  (-.*)$", shown(command.module, command.arguments), re.MULTILINE)
    options = {re.search(r"--[a-z][a-z-]*", line)[0] for line in lines} - {"--help"}
    assert options
    told = set(re.findall(r"^`(?:-\w, )?(--.*)`$", section, re.MULTILINE))
    assert options <= {name for line in told for name in re.findall(r"--[a-z][a-z-]*", line)}


def test_every_command_has_a_heading():
    headings = re.findall(r"^#+ (edgemask.*)$", site_pages().command_lines(), re.MULTILINE)
    assert {name for names in COMMANDS.values() for name in names if name.startswith("edgemask ")} <= set(headings)
    assert {f"edgemask benchmark {question}" for question in QUESTIONS} <= set(headings)


def test_every_public_name_is_told():
    import edgemask

    told = re.findall(r"^::: [\w.]+\.(\w+)$", site_pages().reference_lines(), re.MULTILINE)
    assert sorted(told) == sorted(name for name in edgemask.__all__ if not name.startswith("_"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_extras_that_are_named_exist(page):
    extras = set(re.findall(r"^([a-z-]+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE))
    for group in re.findall(r"(?:edgemask|'\.)\[([a-z,-]+)\]", WRITTEN[page]):
        assert set(group.split(",")) <= extras, group


def test_help_reads_the_same_on_the_page():
    assert (
        site_pages()._text("a|b *c* {source} <d> --fps 25 ``x -y``")
        == r"a\|b \*c\* \{source\} &lt;d&gt; `--fps` 25 `x -y`"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    for link, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([\w-]+))?\)", WRITTEN[page]):
        if "://" in link:
            continue
        path = page.parent / link if link else page
        assert path.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, anchor


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_are_there(page):
    for name in re.findall(
        r"`((?:pipeline|compile|calibration|benchmarks|tests|edgemask|examples|samples)/[\w./-]+)`", WRITTEN[page]
    ):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_that_are_named_exist(page):
    known = {"--system-site-packages", "--target"}
    for command in site_pages().commands():
        parser = site_pages().parser_of(command)
        known |= {option for action in parser._actions for option in action.option_strings}
    for option in re.findall(r"`(--[a-z][a-z-]*)", WRITTEN[page]):
        assert option in known, option


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_spelling_is_american(page):
    british = r"\b\w*(?:colour|centre|licence|behaviour|neighbour|(?:quant|optim|normal|equal|recogn)is(?:e|es|ed|ing|ation|er)\b)\w*"
    prose = re.sub(r"`[^`\n]*`", "", WRITTEN[page])
    assert re.findall(british, prose, re.IGNORECASE) == []


@pytest.mark.parametrize("package", ["pipeline", "compile", "calibration", "benchmarks"])
def test_every_room_stands_in_the_picture_of_the_house(package):
    picture = re.search(r"^    edgemask .*?\n\n", WRITTEN[DOCS / "architecture.md"], re.DOTALL | re.MULTILINE)[0]
    for folder in (ROOT / package).iterdir():
        if (folder / "__init__.py").exists():
            assert re.search(rf"\b{folder.name}\b", picture), folder


def test_the_example_is_the_same_everywhere():
    blocks = {
        page.name: re.findall(r"```python\n(from edgemask import Model.*?)```", text, re.DOTALL)
        for page, text in WRITTEN.items()
    }
    examples = [block for found in blocks.values() for block in found]
    assert blocks["README.md"]
    assert blocks["quickstart.md"]
    assert len(set(examples)) == 1
    compile(examples[0], "README.md", "exec")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site's folder."""
    folder = tmp_path_factory.mktemp("site")
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason="the site needs: pip install 'edgemask[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


def test_the_site_asks_nobody(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=[\"']?(https?://[^\"'\s>]+)",
            page.read_text(encoding="utf-8"),
        )
        assert loaded == [], page.name
    assert "--refine-edges" in (site / "command-line.html").read_text(encoding="utf-8")
    assert (site / "search" / "search_index.js").exists()


@pytest.mark.needs_program("chromium")
@pytest.mark.parametrize(
    ("question", "page", "heading"),
    [
        ("INT8 on Orin", "jetson.html", "int8-on-orin"),
        ("mask as PNG", "quickstart.html", "save-the-mask-as-png"),
        ("stream to browser", "live.html", "the-page-stream-to-a-browser"),
    ],
)
def test_the_site_s_own_search_answers(site, tmp_path, question, page, heading):
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    command += ["--allow-file-access-from-files", "--virtual-time-budget=20000", "--dump-dom"]
    address = f"file://{site}/index.html?q={question.replace(' ', '+')}"
    done = subprocess.run([*command, address], capture_output=True, text=True, timeout=120, check=True)
    found = re.findall(
        r'href="file://[^"]*/([\w-]+\.html)\?[^"#]*(#[\w-]+)?" class="md-search-result__link"', done.stdout
    )
    assert found[0][0] == page
    assert (page, f"#{heading}") in found[:3]
