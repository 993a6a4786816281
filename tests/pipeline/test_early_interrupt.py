"""Ctrl-C while a command still imports: no trace of Python's, and the status of later."""

import os
import signal
import subprocess
import sys

import pytest

from pipeline.own_process import module_command
from tests.conftest import ROOT

# Before Python begins: SIGINT comes when a module is first looked for.
INTERRUPTS = """
import os, sys

class Interrupts:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == os.environ["INTERRUPTED_AT"]:
            os.kill(os.getpid(), 2)

sys.meta_path.insert(0, Interrupts)
"""
MODULES = ["pipeline", "pipeline.corpus", "pipeline.doctor", "pipeline.replay"]
MODULES += ["compile", "compile.contract", "compile.inspect", "calibration", "benchmarks"]
INSTALLED = "import sys; from edgemask.__main__ import {0}; sys.exit({0}())"
COMMANDS = {name: ["-m", name] for name in MODULES} | {
    "edgemask": ["-m", "edgemask", "run"],
    "edgemask, installed": ["-c", INSTALLED.format("command"), "run"],
    "edgemask-compile": ["-c", INSTALLED.format("compile_command")],
    "edgemask-calibrate": ["-c", INSTALLED.format("calibrate_command")],
}
OWN = {name: module_command(name)[1:] for name in ("compile", "pipeline.corpus.child", "pipeline.audit.child")}


@pytest.fixture
def interrupted(tmp_path):
    """``interrupted(words, at=module)``: Python with these words, and SIGINT when it looks for a module."""

    def run(words, at):
        (tmp_path / "sitecustomize.py").write_text(INTERRUPTS)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT))),
            "INTERRUPTED_AT": at,
        }
        return subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture(autouse=True)
def at_a_terminal():
    """A test run in the background of a script has SIGINT ignored, and so would what it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_ends_without_a_word(interrupted, name):
    done = interrupted([*COMMANDS[name], "--help"], "pipeline.command.command_line")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("name", OWN)
def test_so_does_a_process_of_its_own(interrupted, name):
    done = interrupted(OWN[name], name)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("module", ["pipeline.signals", "pipeline.command.engine_of_run", "numpy"])
def test_early_or_late_the_status_is_the_same(interrupted, red_bundle, module):
    """Of these the first comes before the command answers signals, and the others after."""
    words = ["-m", "pipeline", "--source", "test://?frames=1", "--model", red_bundle.folder, "--output", "null"]
    done = interrupted(words, module)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_where_it_is_ignored_it_stays_so(interrupted):
    """As in the background of a script."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    done = interrupted(["-m", "pipeline", "--help"], "pipeline.command.command_line")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")


def test_nothing_is_imported_for_it():
    ask = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import pipeline; before = set(sys.modules); "
    ask += "import pipeline.early_interrupt; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-I", "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["pipeline.early_interrupt"]
