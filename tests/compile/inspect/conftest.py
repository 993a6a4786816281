"""The command under test."""

import pytest

from compile.inspect.__main__ import main as inspect


@pytest.fixture
def run(capsys):
    """``run(DIR, …)`` of ``compile.inspect``: exit status, standard output, standard error."""

    def run(*arguments):
        status = inspect([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run
