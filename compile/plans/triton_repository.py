"""A bundle as models in the repository of a Triton server: ``REPO/NAME/config.pbtxt`` and ``REPO/NAME/VERSION/…``.

``program.onnx`` is for the server's ONNX Runtime backend, and takes frames of any size. TensorRT plans are for its TensorRT backend,
each as a model for frames of one size: the server joins only frames of one size into a batch. A version that is there is never changed:
the next one goes beside it, and appears whole. The configuration names the versions that are served and the program of each, so that
clients find the one that is theirs and no newer one takes its place.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup, ModelQueuePolicy

from compile.program.batch import check_batch, takes_batch
from pipeline.bundles.bundle import FRAMES, MASKS, NOT_FINITE, PROGRAM_NAME, Bundle, Manifest, file_sha256
from pipeline.bundles.file_lock import locked
from pipeline.bundles.plan import NAMES
from pipeline.bundles.plan_entry import PlanEntry
from pipeline.engines.served import PROGRAM_SHA256, require_servable, served_name
from pipeline.errors import BundleError, CompileError
from pipeline.frames.pixels import frames_nhw, frames_shape, input_type
from pipeline.terminal import logger_of

log = logger_of(__name__)

CONFIG_NAME = "config.pbtxt"
OLDEST_SERVER = "2.51 (container 24.10)"
"""What was run; the protocol and all that the configuration asks for are older."""

_BATCH = 4
# Two, so that one computes while the other's masks are passed on; and one client's batches do not wait for each other.
_INSTANCES = 2
_QUEUE = 64
_QUEUED_US = 10_000_000
_USUAL_HW = (720, 1280)
_SCRATCH = ".edgemask-repository."
_TENSORRT_VERSION = "tensorrt_version"


@dataclass(frozen=True, slots=True)
class _Model:
    """One model: its configuration, and what copies its files into the folder of a version."""

    config: Any
    copy: Callable[[Path], None]


def write_repository(
    bundle: Bundle, repository: Path, *, batch: int | None = None, frame_size_hw: tuple[int, int] | None = None
) -> list[Path]:
    """Put a bundle into a model repository, as a new model or as the next version of one that is there.

    Args:
        bundle: its program, and its plans for TensorRT.
        repository: the folder; made if it is not there.
        batch: the most frames that the server joins; None: 4.
        frame_size_hw: (height, width) of all frames, if the program does not fix it; None: any.

    Returns:
        The folders of the versions that were written.

    Raises:
        CompileError: the program does not take such frames.
        OptionError: its program takes one frame at a time, and more were asked for.
        BundleError: the bundle is not for servers, it is there already, or the repository holds another model of that name or cannot
            be written.
    """
    require_servable(bundle)
    models = [_of_program(bundle, batch, frame_size_hw), *_of_plans(bundle)]
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with _scratch(repository) as scratch, locked(repository):
            for model in models:  # none is written where one of them cannot be
                _version_for(repository / model.config.name, model.config, bundle)
            return [_put(repository / model.config.name, model, bundle, scratch) for model in models]
    except OSError as error:
        raise BundleError(
            f"{repository}: cannot be written ({error.strerror or error}): choose another --output"
        ) from error


def config_text(config: Any) -> str:
    """A configuration as text, which says the same when it is read again."""
    text: str = text_format.MessageToString(config)
    if text_format.Parse(text, ModelConfig()) != config:
        raise AssertionError(f"{config.name}: its text says something else")
    return text


def _of_program(bundle: Bundle, batch: int | None, frame_size_hw: tuple[int, int] | None) -> _Model:
    manifest = bundle.manifest
    fixed = manifest.frame_size_hw
    if fixed is not None and frame_size_hw not in (None, fixed):
        raise CompileError(
            f"--frame: expected {fixed[0]}x{fixed[1]}, which the bundle's program has fixed, got another size"
        )
    program = onnx.load(str(bundle.program_path))
    check_batch(takes_batch(program), batch, bundle.folder)
    most = (batch or _BATCH) if takes_batch(program) else 0
    config = _config(manifest, frame_size_hw, most, counts=_counts(program))
    config.backend, config.default_model_filename = "onnxruntime", PROGRAM_NAME
    kind = ModelInstanceGroup.KIND_CPU if manifest.for_cpu else ModelInstanceGroup.KIND_AUTO
    config.instance_group.add(kind=kind, count=_INSTANCES)
    return _Model(config, lambda folder: _copied(bundle, PROGRAM_NAME, folder / PROGRAM_NAME))


def _of_plans(bundle: Bundle) -> Iterator[_Model]:
    """A model for each size that the plans for TensorRT were built for."""
    entries = list(_usable(bundle))
    counts = _counts(onnx.load(str(bundle.program_path)))
    sizes: dict[tuple[int, int], list[PlanEntry]] = {}
    for entry in entries:
        for shape in entry.profile[1:]:  # the usual and the largest frames
            nhw = frames_nhw(bundle.manifest.pixels, shape)
            if nhw is not None and entry not in sizes.setdefault(nhw[1:], []):
                sizes[nhw[1:]].append(entry)
    for size_hw, plans in sizes.items():
        config = _config(bundle.manifest, size_hw, min(entry.profile[2][0] for entry in plans), counts=counts)
        names = {entry.file: Path(entry.file).name for entry in plans}
        config.backend = "tensorrt"
        plain = [entry for entry in plans if entry.hardware == "same"]
        config.default_model_filename = names[next((entry for entry in plans if entry not in plain), plans[0]).file]
        for entry in plain:
            for sm in entry.sms:
                config.cc_model_filenames[f"{sm // 10}.{sm % 10}"] = names[entry.file]
        config.instance_group.add(kind=ModelInstanceGroup.KIND_GPU, count=_INSTANCES)
        config.parameters[_TENSORRT_VERSION].string_value = plans[0].version
        yield _Model(config, _copier(bundle, names))


def _copier(bundle: Bundle, names: Mapping[str, str]) -> Callable[[Path], None]:
    def copy(folder: Path) -> None:
        for file, name in names.items():
            _copied(bundle, file, folder / name)

    return copy


def _usable(bundle: Bundle) -> Iterator[PlanEntry]:
    """The plans that Triton's TensorRT backend can load, all of one version; what is left out is told."""
    version = next((entry.version for entry in reversed(bundle.manifest.engines) if entry.runtime == "tensorrt"), "")
    for entry in bundle.manifest.engines:
        path = bundle.folder / entry.file
        if entry.runtime != "tensorrt":
            reason = f"plans of {NAMES.get(entry.runtime, entry.runtime)} are not for Triton, whose backend is TensorRT"
        elif entry.dla_core is not None:
            reason = "plans for a Jetson's accelerator are not for Triton"
        elif entry.version != version:
            reason = f"a server has one TensorRT, and the newest plan is of {version}, this one of {entry.version}"
        elif not entry.is_complete(bundle.manifest.pixels) or file_sha256(path) != bundle.manifest.files.get(
            entry.file
        ):
            reason = "it was changed or damaged"
        else:
            yield entry
            continue
        log.info("%s: left out: %s", path, reason)


def _config(manifest: Manifest, frame_size_hw: tuple[int, int] | None, most: int, *, counts: bool) -> Any:
    """The configuration of a model without its backend; ``most`` frames at once, 0: one, and the model has no batch."""
    size_hw = frame_size_hw or manifest.frame_size_hw
    config = ModelConfig(name=served_name(manifest, frame_size_hw), max_batch_size=most)
    frames = list(frames_shape(manifest.pixels, 1, size_hw or (2, 2)))
    if size_hw is None:
        frames[1:3] = -1, -1
    first = 1 if most else 0
    datatype = f"TYPE_{str(input_type(manifest.pixels).name).upper()}"
    config.input.add(name=FRAMES, data_type=datatype, dims=frames[first:])
    config.output.add(name=MASKS, data_type="TYPE_UINT8", dims=[1, *(size_hw or (-1, -1))][first:])
    if counts:
        output = config.output.add(name=NOT_FINITE, data_type="TYPE_INT32", dims=[1])
        if most:
            output.reshape.SetInParent()  # the program's is (N,), and a server's outputs have at least one side more
    if most:
        queue = config.dynamic_batching.default_queue_policy
        queue.timeout_action = ModelQueuePolicy.REJECT
        queue.default_timeout_microseconds = _QUEUED_US
        queue.allow_timeout_override = True
        queue.max_queue_size = _QUEUE
    warm = list(frames_shape(manifest.pixels, 1, size_hw or _USUAL_HW))
    for count in range(1, max(most, 1) + 1):
        warmup = config.model_warmup.add(name=f"{count} at once", batch_size=count if most else 0)
        inputs = warmup.inputs[FRAMES]
        inputs.data_type, inputs.random_data = config.input[0].data_type, True
        inputs.dims.extend(warm[first:])
    return config


def _version_for(folder: Path, config: Any, bundle: Bundle) -> tuple[int, Any]:
    """The number of the next version of a model, and the configuration that is there, if one is.

    Raises:
        BundleError: the bundle's program is there, or what is there is for other frames.
    """
    if not folder.exists():
        return 1, None
    path = folder / CONFIG_NAME
    try:
        there = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        said = " ".join(str(error).split())
        raise BundleError(
            f"{path}: expected a model's configuration, cannot read it ({said}): choose another --output"
        ) from error
    sha256 = bundle.manifest.files[PROGRAM_NAME]
    for key, value in there.parameters.items():
        if key.startswith(PROGRAM_SHA256) and value.string_value == sha256:
            raise BundleError(
                f"{folder}: expected a program that is not there yet, got that of version {key.removeprefix(PROGRAM_SHA256)}, which is "
                "not written again: remove that version first, or choose another --output"
            )
    for name in ("backend", "max_batch_size", "input", "output", "default_model_filename"):
        got, wanted = getattr(there, name), getattr(config, name)
        if got != wanted:
            raise BundleError(
                f"{path}: expected a model of which this can be a version, with {name} {_short(wanted)}, got {_short(got)}: "
                "choose another --output"
            )
    numbers = [int(each.name) for each in folder.iterdir() if each.name.isascii() and each.name.isdigit()]
    return max(numbers, default=0) + 1, there


def _put(folder: Path, model: _Model, bundle: Bundle, scratch: Path) -> Path:
    """Write a version: in one step where the model is new, else its folder first, which no server looks at, and then what names it."""
    number, there = _version_for(folder, model.config, bundle)
    config = model.config if there is None else there
    config.parameters[f"{PROGRAM_SHA256}{number}"].string_value = bundle.manifest.files[PROGRAM_NAME]
    config.version_policy.specific.versions.append(number)
    made = scratch / config.name
    (made / str(number)).mkdir(parents=True)
    model.copy(made / str(number))
    (made / CONFIG_NAME).write_text(config_text(config), encoding="utf-8")
    if there is None:
        os.rename(made, folder)
    else:
        os.rename(made / str(number), folder / str(number))
        os.replace(made / CONFIG_NAME, folder / CONFIG_NAME)
    log.info("%s: version %d, for the server's %s backend", folder, number, config.backend)
    return folder / str(number)


@contextmanager
def _scratch(repository: Path) -> Iterator[Path]:
    """A folder on the same disk that is none of the repository's, for a server may look for models there at any moment."""
    place = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=repository.resolve().parent))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _copied(bundle: Bundle, name: str, to: Path) -> None:
    shutil.copyfile(bundle.folder / name, to)
    if file_sha256(to) != bundle.manifest.files[name]:
        raise BundleError(f"{bundle.folder / name}: it was changed while it was copied: try again")


def _counts(program: onnx.ModelProto) -> bool:
    return any(value.name == NOT_FINITE for value in program.graph.output)


def _short(value: object) -> str:
    text = " ".join(str(value if not isinstance(value, Sequence) or isinstance(value, str) else list(value)).split())
    return text if len(text) < 120 else f"{text[:117]}…"
