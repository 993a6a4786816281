"""What a backend says of itself."""

from __future__ import annotations

from pipeline.quick_dataclass import dataclass
from pipeline.registry import Registry, Row


@dataclass(frozen=True, kw_only=True)
class EngineKind(Row):
    """A backend; ``opens`` is called with a ``Bundle`` and gives a ``pipeline.engines.base.Engine``.

    ``order`` is how fast it is expected to be, the fastest first: "auto" tries those that can run here in this order.

    Attributes:
        gpu: it needs a GPU.
        plans: it runs plans that a bundle has for it, and not the program itself.
        needs: what has to be here, in the order in which it is told: rows of the doctor by their keys, such as "gpu" and "opencv",
            or the names of Python packages.
        device_files: patterns of device files; where none is there, neither is what it runs on.
        capabilities: the compute capabilities that it runs on; empty: all.
        builds_anywhere: it builds plans on machines that it does not run on.
        remote: servers compute; ``opens`` takes ``servers``, and "auto" never takes it.
        overlaps: ``opens`` takes ``at_once``, how many frames it computes at a time, each on its share of the cores.
        precisions: what ``opens`` takes as ``precision``, the fastest first. What is not the program's own is taken only where its
            masks were compared on this machine; empty: the program's own alone.
    """

    gpu: bool = False
    plans: bool = False
    needs: tuple[str, ...] = ()
    device_files: tuple[str, ...] = ()
    capabilities: tuple[tuple[int, int], ...] = ()
    builds_anywhere: bool = False
    remote: bool = False
    overlaps: bool = False
    precisions: tuple[str, ...] = ()

    def cells(self) -> dict[str, str]:
        """With what it needs."""
        return {"Name": f"`{self.name}`", "GPU": "yes" if self.gpu else "no", **super().cells()}


ENGINES = Registry(EngineKind, "edgemask.engines", "pipeline.engines")
