"""A backend, a source, a sink and a render mode of somebody's, each in one file, used from the command line."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.engines import ENGINES
from pipeline.redaction import redact
from pipeline.registry import Registry, _declared, table
from pipeline.render.modes import MODES
from pipeline.sinks import SINKS, SinkKind
from pipeline.sources import SOURCES, SourceKind

ROOT = Path(__file__).parents[2]
FILES = {
    "engines": """
import numpy as np

from pipeline.engines.base import Computed, Engine
from pipeline.engines.kinds import EngineKind

MADE_UP = EngineKind(
    name="made-up",
    opens="MadeUpEngine",
    help="the red of each pixel",
    order=900,
    install="pip install made-up",
    needs=("numpy",),
)


class MadeUpEngine(Engine):
    description = "made-up 1.0"

    def _submit(self, frames):
        self._red = frames[..., 2].copy()

    def _collect(self):
        return Computed(self._red)

    def _close(self):
        pass
""",
    "sources": """
from fractions import Fraction

import numpy as np

from pipeline.frames.frame import Frame, SourceInfo
from pipeline.sources.base import Source
from pipeline.sources.kinds import SourceKind

MADE_UP = SourceKind(
    name="made-up", opens="MadeUpSource", help="so many frames", forms=("made-up://COUNT",), prefixes=("made-up://",)
)


class MadeUpSource(Source):
    def __init__(self, spec):
        count = int(spec.rpartition("@")[2].removeprefix("made-up://"))
        self.info = SourceInfo("made-up", "made up", (4, 6), Fraction(25), frame_count=count)

    def __iter__(self):
        for index in range(self.info.frame_count):
            yield Frame(np.full((4, 6, 3), 10 * index + 5, np.uint8), index, index / 25, "made-up", f"{index:06d}")
""",
    "sinks": """
from pathlib import Path

from pipeline.sinks.base import Sink
from pipeline.sinks.kinds import SinkKind

MADE_UP = SinkKind(
    name="made-up", opens="MadeUpSink", help="a mean a line", forms=("means (out.madeup)",), suffixes=(".madeup",)
)


class MadeUpSink(Sink):
    def _open(self):
        self._lines = []

    def write(self, frame):
        self._lines.append(f"{frame.mask.mean():g} {frame.view.mean():g}")

    def close(self):
        Path(self._spec).write_text(" ".join(self._lines))
        self.written = self._spec
""",
    "render_modes": """
from pipeline.render.modes import RenderMode

MADE_UP = RenderMode(name="made-up", help="the negative", order=900)


def draw(drawing):
    drawing.view[:] = 255 - drawing.image
""",
}
ROOMS = {"engines": "engines", "sources": "sources", "sinks": "sinks", "render_modes": "render/modes"}
MEANS = "5 250 15 240 25 230"


def package(folder, name, files, points):
    """A package as pip installs it: its modules, and its entry points by group."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").touch()
    for stem, text in files.items():
        (folder / name / f"{stem}.py").write_text(text)
    record = folder / f"{name}-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"[edgemask.{group}]\n{point} = {name}.{stem}\n" for group, point, stem in points]
    (record / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture(params=["an entry point", "a file beside ours"])
def made_up(request, tmp_path):
    """``made_up("pipeline", "--source", …)``: a command where the four are there."""
    folder = tmp_path / "site"
    folder.mkdir()
    if request.param == "an entry point":
        package(folder, "made_up", FILES, [(group, "made-up", group) for group in FILES])
        python_path = f"{folder}{os.pathsep}{ROOT}"
    else:
        shutil.copytree(
            ROOT / "pipeline", folder / "pipeline", ignore=shutil.ignore_patterns("__pycache__", "published")
        )
        for group, text in FILES.items():
            (folder / "pipeline" / ROOMS[group] / "made_up.py").write_text(text)
        python_path = str(folder)
    return running(python_path, tmp_path)


def running(python_path, folder):
    def run(module, *arguments):
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, "PYTHONPATH": str(python_path), "COLUMNS": "200"},
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_each_is_used_from_the_command_line(made_up, red_bundle, tmp_path):
    names = ("--source", "made-up://3", "--backend", "made-up", "--render", "made-up", "--output", "x.madeup")
    done = made_up("pipeline", "--model", str(red_bundle.folder), *names)
    assert (done.returncode, done.stdout) == (0, "x.madeup\n"), done.stderr
    assert (tmp_path / "x.madeup").read_text() == MEANS
    assert "source: made-up, made up" in done.stderr
    assert "on made-up 1.0" in done.stderr


def test_each_is_in_help_and_messages(made_up):
    done = made_up("pipeline", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    text = " ".join(done.stdout.split())
    for option in ("--backend", "--render"):
        assert re.search(rf"{option} \{{[^}}]*made-up\}}", text), option
    assert "made-up://COUNT" in text
    assert "means (out.madeup)" in text
    done = made_up("pipeline", "--source", "made-dwn://3", "--output", "null")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "made-up://COUNT" in done.stderr
    done = made_up("pipeline", "--source", "test://", "--render", "made-upp")
    assert (done.returncode, "made-up" in done.stderr.replace("made-upp", "")) == (2, True)


def test_a_backend_is_in_the_report_of_the_machine(made_up):
    done = made_up("pipeline.doctor", "--json")
    report = json.loads(done.stdout)
    assert {row["name"]: row["can"] for row in report["backends"]}["made-up"] == "run"
    assert [row["state"] for row in report["findings"] if row["key"] == "numpy"] == ["ok"]
    assert report["auto"] == "onnxruntime"


def test_what_is_broken_is_told_in_a_line_and_left_out(tmp_path, red_bundle):
    files = {
        "nothing": "import no_such_package\n",
        "ours": FILES["sources"].replace('name="made-up"', 'name="camera"'),
        "computed": FILES["sources"].replace('help="so many frames"', "help=str(3)"),
        "lacking": FILES["sources"].replace('opens="MadeUpSource", ', ""),
        "good": FILES["sources"],
    }
    points = [("sources", stem, stem) for stem in (*files, "missing")]
    package(tmp_path, "made_up", files, points)
    run = running(f"{tmp_path}{os.pathsep}{ROOT}", tmp_path)
    done = run("pipeline", "--model", str(red_bundle.folder), "--source", "made-up://1", "--output", "null", "--quiet")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(files)  # without the good one, and with the missing
    for stem in ("nothing", "ours", "computed", "lacking", "missing"):
        (line,) = [line for line in lines if f"made_up.{stem})" in line]
        assert "edgemask.sources" in line
        assert "left out" in line
    assert run("pipeline", "--source", "0", "--backend", "nope").stderr.count("\n") == 1  # no source was asked for


def test_one_that_cannot_be_loaded_says_what_installs_it_and_no_password(tmp_path, red_bundle):
    broken = FILES["sources"].replace("import numpy as np", "import no_such_package")
    broken = broken.replace('help="so many frames"', 'help="", install="pip install made-up"')
    package(tmp_path, "made_up", {"sources": broken}, [("sources", "made-up", "sources")])
    run = running(f"{tmp_path}{os.pathsep}{ROOT}", tmp_path)
    done = run("pipeline", "--source", "made-up://me:hunter2@3", "--output", "null")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no_such_package" in done.stderr
    assert "pip install made-up" in done.stderr
    assert "hunter2" not in done.stderr


def test_others_are_not_looked_for_where_ours_are_named():
    code = (
        "import sys; from pipeline.command.options import parse_options; from pipeline.sources import source_kind\n"
        "from pipeline.sinks import sink_kind\n"
        "options = parse_options(['-s', 'a.mp4', '-o', 'out.png', '--backend', 'tensorrt', '--render', 'side'])\n"
        "source_kind('a.mp4'), source_kind('0'), source_kind('rtsp://h/a'), sink_kind('out'), sink_kind('jsonl:-')\n"
        "print('importlib.metadata' in sys.modules, 'cv2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


@pytest.mark.parametrize("rows", [ENGINES, SOURCES, SINKS, MODES])
def test_tables_for_the_documentation(rows):
    lines = table(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert len({line.count("|") for line in lines}) == 1
    for row, line in zip(rows.values(), lines[2:], strict=True):
        assert f"`{row.name}`" in line
        assert row.help in line


def test_no_address_of_any_row_shows_its_password():
    prefixes = [prefix for rows in (SOURCES, SINKS) for row in rows.values() for prefix in row.prefixes]
    assert prefixes
    for prefix in prefixes:
        assert "hunter2" not in redact(f"{prefix.removesuffix('//')}//me:hunter2@host/a is gone")


def test_a_registry_is_a_mapping_in_order():
    rows = Registry(SourceKind, "edgemask.no_such_group", "pipeline.sources")
    assert list(rows) == [row.name for row in sorted(rows.values(), key=lambda row: row.order)]
    assert ("camera" in rows, "no" in rows, len(rows), rows.others) == (True, False, len(rows.own), {})
    with pytest.raises(KeyError):
        rows["no"]


@pytest.mark.parametrize(
    "text",
    [
        'A = SinkKind(name="a", opens="B", help="c (d)")',
        'A = SinkKind(name="a", opens="B", help="c (d)")  # said (so)\n',
        'import x\n\nA = SinkKind(\n    name="a",\n    opens="B", help=("c"\n        " (d)")\n    # here\n)\nB = other(1)\n',
        'def f(x) -> str:\n    A = SinkKind(name=x)\n    a.b = SinkKind(1)\nA = SinkKind(name="a", opens="B", help="c (d)",\n)',
    ],
)
def test_declarations_are_found_however_they_are_laid_out(text):
    assert _declared(text, SinkKind, "m") == [SinkKind(name="a", opens="B", help="c (d)", module="m")]
    assert _declared(f"{text}\n\n{text}", SinkKind, "m")[1:] == _declared(text, SinkKind, "m")


@pytest.mark.parametrize(
    "text",
    [
        'A = SinkKind(name="a"',
        'A = SinkKind("a")',
        "A = SinkKind(name=b)",
        'A = SinkKind(name="a")',
        'A = SinkKind(name="a", module="n", opens="", help="")',
    ],
)
def test_one_that_cannot_be_read_is_an_error(text):
    with pytest.raises(ValueError, match=r"expected SinkKind|does not end"):
        _declared(text, SinkKind, "m")
