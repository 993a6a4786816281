"""TensorRT's progress during a build: told step by step, shown as a bar, and the one place where a build can be ended."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import Any

from tqdm import tqdm

# A build has hundreds of steps a second.
_EVERY_S = 0.1


@functools.cache
def monitor_class(trt: ModuleType) -> Any:
    """A progress monitor of a flavour of TensorRT: made with what is told phase, steps done and steps in all, and says go on."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self, go_on: Callable[[str, int, int], bool]) -> None:
            trt.IProgressMonitor.__init__(self)
            self._go_on = go_on
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            return self._go_on(phase_name, step + 1, self._steps.get(phase_name, 0))

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor


class BuildProgress:
    """A bar on a terminal, for builds of minutes; call it with each step.

    Args:
        quiet: show nothing. Nothing is shown either where standard error is no terminal.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._bar: tqdm[Any] = tqdm(
            bar_format="{desc} {bar:20} {n_fmt}/{total_fmt} {elapsed}",
            disable=quiet or not sys.stderr.isatty(),
            leave=False,
            total=0,
        )
        self._shown_s = 0.0

    def __enter__(self) -> BuildProgress:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._bar.close()

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Show a step: its phase, steps done, steps in all."""
        now_s = time.monotonic()
        if now_s - self._shown_s < _EVERY_S:
            return
        self._shown_s = now_s
        self._bar.set_description_str(phase[:40], refresh=False)
        self._bar.total, self._bar.n = total, done
        self._bar.refresh()
