"""The seam between the two halves: a folder with a frame program and a manifest that says what it is.

    manifest.json     what the program expects and gives, where it comes from, how far it agrees with the trained network
    program.onnx      the frame program: (N, H, W, 3) uint8 BGR, or NV12 as ``pipeline.frames.pixels`` says, -> masks (N, H, W) uint8,
                      and how many of each frame's scores are not finite, (N,) int32; one that composes also takes how masks are shown,
                      (6,) float32, and gives views, in BGR or NV12
    drift.json        figures of the frames that it was calibrated or verified on, for ``pipeline.drift``
    reference.onnx    beside a program in FP16 or INT8 the same in FP32, without views
    engines/          plans built from it, one file for each runtime, as the runtime wrote them

The build half writes a bundle, the run half checks and reads it.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pipeline.bundles.checked_files import CheckedFiles, sha256_of
from pipeline.bundles.file_lock import locked
from pipeline.bundles.plan_entry import PlanEntry
from pipeline.bundles.regular_file import read_regular
from pipeline.errors import BundleError
from pipeline.frames.pixels import OfCameras, Pixels, is_pixels
from pipeline.quick_dataclass import dataclass

if TYPE_CHECKING:
    from pipeline.frames.tiles import Tiles

SCHEMA = 1
MANIFEST_NAME = "manifest.json"
PROGRAM_NAME = "program.onnx"
REFERENCE_NAME = "reference.onnx"
DRIFT_NAME = "drift.json"
"""What frames the bundle was calibrated or verified on, in figures (``pipeline.drift.summary``); bundles of old have none."""
WORST_NAME = "verification.png"
"""The frames that agreed least when the bundle was verified, as a picture."""
PLANS = "engines/"
MANIFEST_LIMIT_BYTES = 1 << 20

FRAMES, LOOK, MASKS, NOT_FINITE, VIEWS = "frames", "look", "masks", "not_finite", "views"
"""Names of a program's inputs and outputs; only one that composes has ``LOOK`` and ``VIEWS``, and old ones lack ``NOT_FINITE``."""

STATE, NEXT_STATE = "state/", "next/"
"""What comes before the names of a recurrent program's other inputs, and of the outputs whose values they get for the next frame."""

LOOK_VALUES = ("slope", "intercept", "alpha", "blue", "green", "red")
"""What it is told of a look, float32. A mask's value counts as clip(value × slope + intercept, 0, 1) × alpha."""

GATE_MEAN_IOU, GATE_WORST_IOU = 0.99, 0.90
"""What the gate of ``compile`` asks for where nothing else is said: of the mean IoU's lower end, and of the worst frame."""

Task = Literal["binary", "classes"]
Precision = Literal["fp32", "fp16", "int8"]
CPU_GRAPH = "cpu"
"""Under "graph" of a manifest's calibration: INT8 as CPUs take it, of which no TensorRT can build a plan."""
FILE_GRAPH = "file"
"""The same of INT8 as the network's file had it: whether that suits a CPU or a GPU, whoever made it knows."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle says of itself.

    Attributes:
        model: name under which it was compiled ("u2netp", or the weights' file name).
        task: "binary" (mask = probability × 255) or "classes" (mask = class index).
        classes: names; for "binary" the one foreground class, for "classes" index 0 is the background.
        frame_size_hw: (height, width) of the frames that the program takes, or None for any size; if it takes tiles, that of the tiles.
        network_size_hw: (height, width) inside the network.
        precision: of the network's weights and activations.
        layers: layers of another precision, and which.
        contract: how a frame becomes the network's input and its output a mask, as ``compile.networks.contract`` writes it.
        weights: file name, sha256 and checkpoint family that the network was read from.
        calibration: of INT8: frames, method, what was repaired or left out, as ``compile`` writes it.
        verification: agreement with the trained network, as ``compile.proof.verify`` writes it, and under "gate" what was asked for;
            bundles of old do not say that.
        engines: the bundle's plans, as ``compile`` has put them in.
        files: sha256 of every other file in the bundle, by name.
        composes: the program draws the overlay too, and gives views beside the masks; not in the file if it does not.
        pixels: how the frames lie in memory that the program takes; not in the file if it is "bgr".
        views: the same of the views that it gives, "bgr" or "nv12"; not in the file if it is "bgr", as in all bundles of old.
        tools: versions of what made it.
        created: date and time in UTC, ISO 8601.
        schema: version of this list.
    """

    model: str
    task: Task
    classes: tuple[str, ...]
    network_size_hw: tuple[int, int]
    precision: Precision
    contract: Mapping[str, Any]
    weights: Mapping[str, Any]
    tools: Mapping[str, str]
    created: str
    frame_size_hw: tuple[int, int] | None = None
    layers: Mapping[str, str] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    verification: Mapping[str, Any] = field(default_factory=dict)
    engines: tuple[PlanEntry, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    composes: bool = False
    pixels: Pixels = "bgr"
    views: OfCameras = "bgr"
    schema: int = SCHEMA

    @property
    def for_cpu(self) -> bool:
        """Whether the program is INT8 as CPUs take it."""
        return self.calibration.get("graph") == CPU_GRAPH

    @property
    def gate(self) -> dict[str, float]:
        """What was asked for when it was compiled, from 0 to 1: "mean" of the mean IoU's lower end, "worst" of the worst frame.

        An entry is missing where the bundle does not say, as bundles of old do not.
        """
        given = self.verification.get("gate")
        entries = given.items() if isinstance(given, dict) else ()
        return {name: float(value) for name, value in entries if type(value) in (int, float) and 0 <= value <= 1}

    @property
    def tiles(self) -> Tiles | None:
        """How frames are cut for the program; None if it takes them as they are."""
        from pipeline.frames.tiles import Tiles  # only now: --help reads this module, and would wait for NumPy

        return Tiles.from_contract(self.contract)

    @property
    def was_searched(self) -> bool:
        """Whether the program is INT8 for TensorRT, as the search found it."""
        return self.precision == "int8" and self.calibration.get("graph") not in (CPU_GRAPH, FILE_GRAPH)

    @classmethod
    def from_json(cls, text: str, where: str) -> Manifest:
        """Read a manifest and check it.

        Raises:
            BundleError: not JSON, of another schema, or with a field missing, unknown or of a wrong type.
        """
        try:
            entries = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{where}: expected JSON, got other text ({error}): compile the bundle again") from error
        if not isinstance(entries, dict) or entries.get("schema") != SCHEMA:
            got = entries.get("schema") if isinstance(entries, dict) else type(entries).__name__
            raise BundleError(
                f"{where}: expected schema {SCHEMA}, got {got}: compile the bundle again with this version"
            )
        fields = cls.__dataclass_fields__
        required = [name for name, entry in fields.items() if entry.default is entry.default_factory is MISSING]
        if wrong := [name for name in required if name not in entries] + [
            name for name in entries if name not in fields
        ]:
            raise BundleError(f"{where}: missing or unknown field {wrong[0]!r}: compile the bundle again")
        try:
            manifest = cls(
                **{
                    **entries,
                    "classes": _names(entries["classes"]),
                    "network_size_hw": _size_hw(entries["network_size_hw"]),
                    "frame_size_hw": None
                    if entries.get("frame_size_hw") is None
                    else _size_hw(entries["frame_size_hw"]),
                    "engines": _plans(entries.get("engines", [])),
                }
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise BundleError(f"{where}: a field has a wrong type ({error}): compile the bundle again") from error
        if not isinstance(manifest.model, str) or not isinstance(manifest.created, str):
            raise BundleError(f"{where}: expected text for model and created: compile the bundle again")
        if manifest.task not in get_args(Task) or manifest.precision not in get_args(Precision) or not manifest.classes:
            raise BundleError(f"{where}: unknown task, precision or no classes: compile the bundle again")
        if not isinstance(manifest.composes, bool):
            raise BundleError(f"{where}: expected true or false for composes: compile the bundle again")
        if not is_pixels(manifest.pixels):
            raise BundleError(
                f"{where}: expected bgr, nv12, or channels and bits such as 4x16 for pixels: compile the bundle again"
            )
        if manifest.views != "bgr" and (manifest.views != "nv12" or not manifest.composes or manifest.pixels != "nv12"):
            raise BundleError(
                f"{where}: expected bgr for views, or nv12 of a program that composes and takes NV12: compile the bundle again"
            )
        if manifest.pixels == "nv12" and any(side % 2 for side in manifest.frame_size_hw or ()):
            raise BundleError(f"{where}: expected an even frame_size_hw for nv12: compile the bundle again")
        maps = ("contract", "weights", "tools", "layers", "calibration", "verification", "files")
        if not all(isinstance(getattr(manifest, name), dict) for name in maps):
            raise BundleError(f"{where}: expected an object for {', '.join(maps)}: compile the bundle again")
        try:
            tiles = manifest.tiles
        except (TypeError, ValueError) as error:
            raise BundleError(
                f"{where}: expected tile: [[height, width], overlap] in the contract: compile the bundle again"
            ) from error
        if tiles is not None and manifest.frame_size_hw != tiles.size_hw:
            raise BundleError(f"{where}: expected a frame_size_hw as the tiles have: compile the bundle again")
        return manifest

    def as_dict(self) -> dict[str, Any]:
        """All fields in the form of the file, those too that it leaves out."""
        return asdict(self) | {"engines": [entry.as_dict() for entry in self.engines]}

    def to_json(self) -> str:
        """The manifest as indented JSON, fields in their order here."""
        entries = self.as_dict()
        if not self.composes:
            del entries["composes"]
        for name in ("pixels", "views"):
            if entries[name] == "bgr":
                del entries[name]
        return json.dumps(entries, indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A folder that was checked against its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def program_path(self) -> Path:
        """Where the portable frame program lies."""
        return self.folder / PROGRAM_NAME

    @property
    def reference_path(self) -> Path | None:
        """The same program in FP32, as the trained network computes: a file of its own, or the program; None where neither is."""
        if REFERENCE_NAME in self.manifest.files:
            return self.folder / REFERENCE_NAME
        return self.program_path if self.manifest.precision == "fp32" else None

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Bundle:
        """Open a bundle and check every file against its sha256, but plans: ``pipeline.bundles.plan`` does when one is loaded.

        A file that was checked here before and has not changed since is not read again (``pipeline.bundles.checked_files``).

        Raises:
            BundleError: no bundle, damaged, or with a changed byte.
        """
        folder = Path(folder)
        while True:
            before = _identity(folder)
            try:
                return cls._read(folder)
            except BundleError:
                with locked(folder.parent, shared=True):  # one who replaces it just now has done so then
                    if _identity(folder) == before:
                        raise

    @classmethod
    def _read(cls, folder: Path) -> Bundle:
        path = folder / MANIFEST_NAME
        if not os.path.isdir(folder):
            got = "a file" if os.path.exists(folder) else "nothing"
            raise BundleError(
                f"{folder}: expected a bundle folder, got {got}: make it with python -m compile --output {folder}"
            )
        try:
            text = read_regular(path, MANIFEST_LIMIT_BYTES + 1)
        except OSError as error:
            raise BundleError(
                f"{folder}: expected a bundle with {MANIFEST_NAME}, cannot read it ({error.strerror}): make it with python -m compile"
            ) from error
        if len(text) > MANIFEST_LIMIT_BYTES:
            raise BundleError(f"{path}: expected at most {MANIFEST_LIMIT_BYTES} bytes, got more: this is no manifest")
        manifest = Manifest.from_json(text.decode("utf-8", errors="replace"), str(path))
        if PROGRAM_NAME not in manifest.files:
            raise BundleError(f"{path}: expected a sha256 for {PROGRAM_NAME}, got none: compile the bundle again")
        checked = CheckedFiles(cache_folder() / "checked.json")
        for name, expected in manifest.files.items():
            _check_name(folder, name)
            if not name.startswith(PLANS):
                _check_file(folder, name, expected, checked)
        checked.keep()
        return cls(folder, manifest)

    @classmethod
    def write(cls, folder: str | os.PathLike[str], manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
        """Write a bundle all at once: the folder appears complete or not at all, also where two processes write it.

        Args:
            folder: where; a bundle that is there already is replaced, any other content is refused.
            manifest: its ``files`` are filled in here.
            files: content by name.

        Raises:
            BundleError: the folder holds something else, or cannot be written.
        """
        import hashlib

        from pipeline.bundles.whole_folder import whole_folder  # runs read bundles, and would wait for it

        folder = Path(folder)
        check_destination(folder)
        place = Path(os.path.realpath(folder))  # a link stays, and what it points to is replaced
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        complete = Manifest(**{**{key: getattr(manifest, key) for key in Manifest.__dataclass_fields__}, "files": sums})
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with whole_folder(place) as scratch:
                for name, content in files.items():
                    (scratch / name).parent.mkdir(exist_ok=True)
                    (scratch / name).write_bytes(content)
                (scratch / MANIFEST_NAME).write_text(complete.to_json(), encoding="utf-8")
        except OSError as error:
            raise BundleError(f"{folder}: cannot be written ({error.strerror}): choose another --output") from error
        return cls(folder, complete)


def check_destination(folder: Path) -> None:
    """Refuse a place where a bundle cannot go, before any work is done.

    Raises:
        BundleError: it is a file, or a folder that holds something other than a bundle, or cannot be written.
    """
    if _is_something_else(folder):
        raise BundleError(f"{folder}: expected a folder for the bundle, got a file: choose another --output")
    if other := _other_file(folder):
        raise BundleError(
            f"{folder}: expected a new folder or a bundle to replace, got a folder with other files ({other}): choose another --output"
        )
    nearest = next(parent for parent in Path(os.path.realpath(folder)).parents if os.path.exists(parent))
    if not nearest.is_dir():
        raise BundleError(f"{folder}: cannot be written ({nearest} is a file): choose another --output")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise BundleError(f"{folder}: cannot be written (no permission to write in {nearest}): choose another --output")


def _is_something_else(folder: Path) -> bool:
    # Asked once: between two questions another process may put its bundle there.
    try:
        return not stat.S_ISDIR(os.stat(folder).st_mode)
    except (OSError, ValueError):
        return False


def cache_folder() -> Path:
    """Where compiled zoo networks and downloaded weights are kept: ``EDGEMASK_CACHE``, else ``~/.cache/edgemask``."""
    given = os.environ.get("EDGEMASK_CACHE")
    if given:
        return Path(given).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "edgemask"


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return sha256_of(file)


def _other_file(folder: Path) -> str:
    """What is in a folder and is no part of a bundle; empty: it is a bundle, also a damaged one, or there is nothing."""
    while True:
        # By one look into one folder: two might be at the one that was there and the one that has just replaced it.
        before = _identity(folder)
        try:
            names = os.listdir(folder)
            other = _not_of_bundle(folder, names) if names else ""
        except FileNotFoundError:  # asked no further: another process may put its bundle there now
            return ""
        except OSError:  # of a folder that cannot be looked into nobody knows
            return folder.name if os.path.isdir(folder) else ""
        if _identity(folder) == before:
            return other


def _not_of_bundle(folder: Path, names: Sequence[str]) -> str:
    try:
        # Many programs have a manifest.json: only that of a bundle lists a program.
        listed = json.loads(read_regular(folder / MANIFEST_NAME, MANIFEST_LIMIT_BYTES))["files"]
        is_bundle = PROGRAM_NAME in dict(listed)
    except FileNotFoundError:
        return MANIFEST_NAME if MANIFEST_NAME in names else sorted(names)[0]
    except (ValueError, TypeError, KeyError, RecursionError):  # a damaged one can be made anew
        listed, is_bundle = {}, PROGRAM_NAME in names
    if not is_bundle:
        return min((name for name in names if name != MANIFEST_NAME), default=MANIFEST_NAME)
    known = {MANIFEST_NAME, PROGRAM_NAME, REFERENCE_NAME, DRIFT_NAME, WORST_NAME, *listed}
    found = {Path(root, name).relative_to(folder).as_posix() for root, _, there in os.walk(folder) for name in there}
    return min((name for name in found - known if not name.startswith(PLANS)), default="")


def _identity(folder: Path) -> tuple[int, ...]:
    """What tells a folder from another one that was put in its place; empty where there is none."""
    try:
        status = os.stat(folder)
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_ctime_ns


def _check_name(folder: Path, name: str) -> None:
    encodes = name.encode("utf-8", "ignore").decode("utf-8") == name
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name or not encodes:
        raise BundleError(f"{folder}: expected file names inside the bundle, got {name!r}: do not use this bundle")


def _check_file(folder: Path, name: str, expected: str, checked: CheckedFiles) -> None:
    path = folder / name
    if os.path.exists(path) and not os.path.isfile(path):  # reading a device or a pipe may never end
        raise BundleError(f"{path}: expected a file, got something else: do not use this bundle")
    try:
        got = checked.sha256(path)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}): compile the bundle again") from error
    if got != expected:
        raise BundleError(
            f"{path}: expected sha256 {str(expected)[:12]}…, got {got[:12]}…: the file was changed or damaged, compile the bundle again"
        )


def _plans(value: Any) -> tuple[PlanEntry, ...]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise TypeError("engines that are no list of objects")
    return tuple(PlanEntry.from_dict(entry) for entry in value)


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise TypeError("classes that are no list of names")
    return tuple(value)


def _size_hw(value: Any) -> tuple[int, int]:
    if not isinstance(value, list):
        raise TypeError("a size that is no list")
    height, width = (int(side) for side in value)
    if height < 1 or width < 1:
        raise ValueError(f"a size of {height}×{width}")
    return height, width
