"""What is shown of a build."""

import io

from compile.plans import build_progress
from compile.plans.build_progress import BuildProgress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_on_a_terminal_names_phase_and_steps(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(build_progress, "_EVERY_S", 0.0)
    with BuildProgress(quiet=False) as progress:
        for done in range(1, 5):
            progress("Building the engine from a network with very many layers", done, 4)
    shown = terminal.getvalue()
    assert "Building the engine from a network with " in shown
    assert "1/4" in shown
    assert "4/4" in shown
    assert shown.endswith("\r")  # and it is wiped


def test_nothing_is_shown_elsewhere(monkeypatch):
    for stream, quiet in ((io.StringIO(), False), (Terminal(), True)):
        monkeypatch.setattr("sys.stderr", stream)
        with BuildProgress(quiet=quiet) as progress:
            progress("phase", 1, 2)
        assert stream.getvalue() == ""


def test_hundreds_of_steps_a_second_are_not_all_drawn(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    clock = iter(number / 1000 for number in range(1000, 10_000))
    monkeypatch.setattr(build_progress.time, "monotonic", lambda: next(clock))
    with BuildProgress(quiet=False) as progress:
        for done in range(1000):
            progress("phase", done, 1000)
    assert 5 <= terminal.getvalue().count("/1000") <= 15
