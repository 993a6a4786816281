"""Child processes that run a part of this project, whatever lies in the current folder.

``python -m compile`` looks for ``compile`` in the current folder first, and a training repository may well have a folder of that name.
"""

from __future__ import annotations

import os
import sys

HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
"""The folder that holds the packages of this project: a clone, or where they are installed."""

# The first entry of sys.path is the current folder.
_RUN = (
    "import sys; sys.path[0] = sys.argv[1]; from pipeline.early_interrupt import end_on_interrupt; end_on_interrupt(); "
    "module = sys.argv[2]; del sys.argv[1:3]; import runpy; "
    "runpy.run_module(module, run_name='__main__', alter_sys=True)"
)


def module_command(module: str) -> list[str]:
    """What starts a module of this project as ``python -m`` does; its arguments follow.

    Args:
        module: such as "compile".
    """
    return [sys.executable, "-c", _RUN, HOME, module]
