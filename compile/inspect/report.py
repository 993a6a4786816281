"""All that can be found out about a bundle on this machine; what is damaged is told, not refused."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from compile.inspect.engine_layers import EngineLayer, read_layers, with_times
from compile.inspect.int8_search import Int8Search, read_search
from compile.inspect.program import Program, read_program
from pipeline.bundles.bundle import MANIFEST_LIMIT_BYTES, MANIFEST_NAME, PLANS, Bundle, Manifest
from pipeline.bundles.plan import BUILT_FROM_PROGRAM, NAMES
from pipeline.bundles.plan_entry import PlanEntry
from pipeline.bundles.regular_file import open_without_waiting
from pipeline.engines import open_engine
from pipeline.errors import BundleError, CompileError, EdgemaskError

State = Literal["fits", "damaged", "missing", "unreadable", "outside", "unlisted"]


@dataclass(frozen=True, slots=True)
class FileReport:
    """A file of the bundle.

    Attributes:
        name: as the manifest has it.
        state: "fits" its sha256, "damaged" if it does not, "missing", "unreadable" if it is no file or may not be read, "outside"
            the bundle, which is not looked at, or "unlisted" in the manifest: the manifest itself, or what something else left.
        size_bytes: None if it was not read.
        expected: the sha256 in the manifest; None if there is none.
        sha256: of what is there; None if it was not read.
    """

    name: str
    state: State
    size_bytes: int | None = None
    expected: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class EngineReport:
    """A plan as the runtime of this machine sees it.

    Attributes:
        runtime: with its version and its device.
        layers: in the order in which they run.
        weights_bytes: what all weights take on the device; None if this TensorRT does not tell.
        activation_bytes: what all that is between the layers takes there.
        runs: how many frames were run for times; 0 if none.
        total_ms: of all layers, for a frame; None if none was run.
    """

    runtime: str
    layers: tuple[EngineLayer, ...]
    weights_bytes: int | None
    activation_bytes: int | None
    runs: int
    total_ms: float | None


@dataclass(frozen=True, slots=True)
class PlanReport:
    """A plan of the bundle.

    Attributes:
        file: its name.
        entry: what the manifest says of it.
        engine: None if it cannot be loaded here.
        problem: why it cannot; None if it can.
    """

    file: str
    entry: PlanEntry
    engine: EngineReport | None
    problem: str | None


@dataclass(frozen=True, slots=True)
class Report:
    """What is inside a bundle.

    Attributes:
        folder: of the bundle.
        manifest: what the bundle says of itself.
        files: those of the manifest, then others that are there.
        program: None if it cannot be read.
        program_problem: why it cannot; None if it can.
        int8: what the search for INT8 found; None if the bundle is of another precision.
        plans: in the order of the manifest.
    """

    folder: str
    manifest: Manifest
    files: tuple[FileReport, ...]
    program: Program | None
    program_problem: str | None
    int8: Int8Search | None
    plans: tuple[PlanReport, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what it has of the manifest is in the form of that file."""
        plans = [asdict(plan) | {"entry": plan.entry.as_dict()} for plan in self.plans]
        return asdict(self) | {"manifest": self.manifest.as_dict(), "plans": plans}


class _InspectableEngine(Protocol):
    """What is asked of an engine that runs plans."""

    description: str

    def inspect(self) -> Any: ...

    def profile_layers(self, runs: int) -> dict[str, list[float]]: ...


def inspect_bundle(folder: str | os.PathLike[str], runs: int = 0) -> Report:
    """Look into a bundle.

    Args:
        folder: of the bundle.
        runs: frames to run for the times of a plan's layers, where this machine can load it; 0 for none.

    Raises:
        BundleError: it is no bundle, or its manifest is damaged.
    """
    bundle = _open_bundle(Path(folder))
    files = _files(bundle)
    program, problem = _program(bundle)
    nodes = frozenset(layer.node for layer in program.layers) if program is not None else frozenset[str]()
    plans = tuple(_plan(bundle, entry, nodes, runs) for entry in bundle.manifest.engines)
    return Report(str(folder), bundle.manifest, files, program, problem, read_search(bundle.manifest), plans)


def _open_bundle(folder: Path) -> Bundle:
    """As ``Bundle.read``, but without a look at the files."""
    path = folder / MANIFEST_NAME
    try:
        with open(path, "rb", opener=open_without_waiting) as file:
            text = file.read(MANIFEST_LIMIT_BYTES + 1)
    except OSError as error:
        raise BundleError(
            f"{folder}: expected a bundle, a folder with {MANIFEST_NAME}, cannot read it ({error.strerror}): "
            "make one with python -m compile --output DIR"
        ) from error
    if len(text) > MANIFEST_LIMIT_BYTES:
        raise BundleError(f"{path}: expected at most {MANIFEST_LIMIT_BYTES} bytes, got more: this is no manifest")
    return Bundle(folder, Manifest.from_json(text.decode("utf-8", errors="replace"), str(path)))


def _files(bundle: Bundle) -> tuple[FileReport, ...]:
    listed = [_file(bundle.folder, name, str(expected)) for name, expected in bundle.manifest.files.items()]
    there = [*_inside(bundle.folder), *_inside(bundle.folder / PLANS)]
    names = [path.relative_to(bundle.folder).as_posix() for path in there if not path.is_dir()]
    return (*listed, *(_file(bundle.folder, name, None) for name in names if name not in bundle.manifest.files))


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # it is not there, or is not to be listed: the manifest's own list is all there is then
        return []


def _file(folder: Path, name: str, expected: str | None) -> FileReport:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return FileReport(name, "outside", expected=expected)
    digest, size_bytes = hashlib.sha256(), 0
    try:
        with open(folder / name, "rb", opener=open_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # reading a device may never end
                return FileReport(name, "unreadable", expected=expected)
            while block := file.read(1 << 20):
                digest.update(block)
                size_bytes += len(block)
    except FileNotFoundError:
        return FileReport(name, "missing", expected=expected)
    except (OSError, ValueError):  # a name that no file can have is a ValueError
        return FileReport(name, "unreadable", expected=expected)
    state: State = "unlisted" if expected is None else "fits" if digest.hexdigest() == expected else "damaged"
    return FileReport(name, state, size_bytes, expected, digest.hexdigest())


def _program(bundle: Bundle) -> tuple[Program | None, str | None]:
    try:
        with open(bundle.program_path, "rb", opener=open_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None, f"{bundle.program_path}: expected a file, got something else"
            return read_program(file.read()), None
    except OSError as error:
        return None, f"{bundle.program_path}: cannot be read ({error.strerror}): compile the bundle again"
    except CompileError as error:
        return None, f"{bundle.program_path}: {error}, compile the bundle again"


def _plan(bundle: Bundle, entry: PlanEntry, nodes: Collection[str], runs: int) -> PlanReport:
    file, runtime = entry.file, entry.runtime
    if runtime not in BUILT_FROM_PROGRAM:
        name = NAMES.get(runtime, runtime)
        return PlanReport(file, entry, None, f"layers are shown of plans for TensorRT and TensorRT-RTX, not for {name}")
    # A bundle with this plan alone: what it is refused for is then said of this one.
    alone = Bundle(bundle.folder, replace(bundle.manifest, engines=(entry,)))
    try:
        with open_engine(alone, runtime) as engine:
            return PlanReport(file, entry, _engine(cast(_InspectableEngine, engine), nodes, runs), None)
    except EdgemaskError as error:
        return PlanReport(file, entry, None, str(error))


def _engine(engine: _InspectableEngine, nodes: Collection[str], runs: int) -> EngineReport:
    facts = engine.inspect()
    layers = read_layers(facts.layers_json, nodes)
    total_ms = None
    if runs:
        layers = with_times(layers, engine.profile_layers(runs), runs)
        total_ms = sum(layer.mean_ms for layer in layers if layer.mean_ms is not None)
    return EngineReport(engine.description, layers, facts.weights_bytes, facts.activation_bytes, runs, total_ms)
