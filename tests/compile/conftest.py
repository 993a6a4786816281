"""The small networks, which calibration and the build half are both tried on, and the command that shows bundles."""

import pytest

from compile.inspect.__main__ import main as inspect
from tests.networks import pictures, tiny_u2net, tiny_unet

__all__ = ["pictures", "run", "tiny_u2net", "tiny_unet"]


@pytest.fixture
def run(capsys):
    """``run(DIR, …)`` of ``compile.inspect``: exit status, standard output, standard error."""

    def run(*arguments):
        status = inspect([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run
