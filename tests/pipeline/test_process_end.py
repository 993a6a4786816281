"""The end of a command's process: what is still done, and when Python is taken apart as ever."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PROGRAM = """
import atexit, sys, threading
sys.path.insert(0, {root!r})
from pipeline.process_end import end_process

class TakenApart:
    def __del__(self):
        print("taken apart")

kept = TakenApart()
atexit.register(print, "registered")
{more}
if __name__ == "__main__":
    sys.stdout.write("said ")
    end_process(3)
"""


@pytest.fixture
def run(tmp_path):
    """Runs a program that ends so, with more of it and with what is around it; gives its status and what it has said."""

    def run(*command, more=""):
        (tmp_path / "program.py").write_text(PROGRAM.format(root=str(ROOT), more=more))
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.stderr == ""
        return done.returncode, done.stdout.split()

    return run


@pytest.mark.parametrize("command", [("program.py",), ("-m", "program")])
def test_what_is_registered_and_said_is_done_and_no_more(run, command):
    assert run(*command) == (3, ["said", "registered"])


@pytest.mark.parametrize("program", [("program.py",), ("-m", "program")])
def test_under_a_profiler_the_command_returns_to_it(run, tmp_path, program):
    _, said = run("-m", "cProfile", "-o", "profile", *program)
    assert said == ["said", "registered", "taken", "apart"]
    assert (tmp_path / "profile").stat().st_size > 0


def test_a_thread_that_is_to_be_waited_for_is(run):
    more = "threading.Timer(0.2, print, ('thread',)).start()"
    assert run("program.py", more=more) == (3, ["said", "thread", "registered", "taken", "apart"])


def test_one_that_is_not_to_be_waited_for_is_not(run):
    more = "threading.Thread(target=threading.Event().wait, daemon=True).start()"
    assert run("program.py", more=more) == (3, ["said", "registered"])


def test_a_function_that_calls_it_for_somebody_else_returns(run):
    """Only what Python itself has begun is known to have nobody who waits."""
    more = "import types; other = types.ModuleType('other'); exec('def call(f): f(4)', other.__dict__); other.call(end_process)"
    assert run("program.py", more=more) == (4, ["registered", "taken", "apart"])


def test_an_output_whose_reader_is_gone_is_told_as_ever(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM.format(root=str(ROOT), more=""))
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "program.py"], cwd=tmp_path, env=buffered, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(60) == 120
    assert b"BrokenPipeError" in errors
