"""A recording run again, told line by line: what was recorded, on what it runs, whether masks are the same, which layer differs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from pipeline.builds.build_half import rebuild_plan
from pipeline.builds.model_name import open_model
from pipeline.bundles.bundle import MANIFEST_NAME, PROGRAM_NAME, Bundle, file_sha256
from pipeline.bundles.plan import BUILT_FROM_PROGRAM
from pipeline.engines import open_engine
from pipeline.errors import BackendUnavailableError, OptionError
from pipeline.replay.again import Compared, run_again
from pipeline.replay.layers import layers_apart
from pipeline.terminal import logger_of

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.flight.recording import Recording
    from pipeline.frames.frame import Frame
    from pipeline.replay.options import ReplayOptions

log = logger_of(__name__)

# Layers are compared on the frame whose masks differ most, out of so many.
_LAYER_FRAMES = 8


def replay(recording: Recording, options: ReplayOptions, say: Callable[[str], None]) -> bool:
    """Run a recording again.

    Args:
        recording: that is open.
        options: on what.
        say: gets each line of the result.

    Returns:
        Whether something differs: a mask from the recorded one, or a layer from the FP32 program by more than rounding.

    Raises:
        EdgemaskError: the recording is damaged, or the model cannot be had or run here.
    """
    facts = recording.facts
    for event in facts["events"]:
        of = f" of {event['source']}" if event["source"] else ""
        say(f"event: {event['time']}: {event['kind']}{of}: {event['text']}")
    if not len(recording):
        say(f"{recording.path}: no frames: none was computed in the seconds before")
        return False
    bundle = open_model(_model_name(recording, options), on_gpu=options.backend != "onnxruntime", quiet=options.quiet)
    log.info(_which(bundle, recording))
    if facts["note"]:
        log.info(facts["note"])
    only = _recorded_as(bundle, recording)
    differ = _masks_differ(recording, bundle, options, say, only)
    reference = _reference(bundle, options)
    if reference is None:
        return differ
    return _layers_differ(_some(recording, only), bundle, reference, say) or differ


def _recorded_as(bundle: Bundle, recording: Recording) -> str | None:
    """Which frames are this bundle's, where several computed some, one after another; None: all are to be compared."""
    sha256 = file_sha256(bundle.folder / MANIFEST_NAME)
    return sha256 if 0 < recording.count(sha256) < len(recording) else None


def _masks_differ(
    recording: Recording, bundle: Bundle, options: ReplayOptions, say: Callable[[str], None], only: str | None
) -> bool:
    engine_then = recording.facts["engine"]
    may_build = options.backend in ("auto", *BUILT_FROM_PROGRAM)
    rebuild = partial(rebuild_plan, quiet=options.quiet) if may_build else None
    with open_engine(bundle, options.backend, overlap=engine_then["in_flight"] > 1, rebuild=rebuild) as engine:
        log.info(f"backend: {engine.description}; recorded on {engine_then['description']}")
        first, total, count, worst = None, 0, 0, 1.0
        for compared in run_again(recording.frames(only), engine):
            total += 1
            if not compared.same:
                first = first or compared
                count += 1
                worst = min(worst, compared.iou)
    others = f"; {len(recording) - total} of another bundle are left out" if total < len(recording) else ""
    if first is None:
        say(f"masks: all {total} are the same, bit for bit{others}")
        return False
    say(f"masks: {count} of {total} differ, worst IoU {worst:.4f}; the first is {_told(first)}{others}")
    return True


def _told(compared: Compared) -> str:
    frame = compared.frame
    assert frame.mask is not None
    counts = ""
    if frame.not_finite != compared.recorded_not_finite:
        counts = f", {frame.not_finite} scores that are not finite where {compared.recorded_not_finite} were recorded"
    return (
        f"frame {frame.index} of {frame.source} ({frame.pts_s:.3f} s): {compared.pixels} of {frame.mask.size} pixels, by up to "
        f"{compared.levels} of 255, IoU {compared.iou:.4f}{counts}"
    )


def _model_name(recording: Recording, options: ReplayOptions) -> str:
    if options.model is not None:
        return options.model
    try:
        return str(recording.facts["options"]["model"]["name"])
    except (KeyError, TypeError):
        raise OptionError(f"{recording.path}: it does not say which model was run: give --model DIR") from None


def _which(bundle: Bundle, recording: Recording) -> str:
    """How the bundle that is run is related to those that were recorded."""
    manifest = bundle.manifest
    name = f"model: {manifest.model}, {manifest.precision}"
    bundles = recording.facts["bundles"]
    others = f"; {len(bundles)} were recorded, one after another" if len(bundles) > 1 else ""
    if file_sha256(bundle.folder / MANIFEST_NAME) in bundles:
        return f"{name}, the bundle that was recorded{others}"
    programs = {then["manifest"]["files"].get(PROGRAM_NAME) for then in bundles.values()}
    if manifest.files[PROGRAM_NAME] in programs:
        return f"{name}, the program that was recorded, in another bundle{others}"
    return f"{name}, another program than the one that was recorded{others}"


def _reference(bundle: Bundle, options: ReplayOptions) -> Path | None:
    if options.reference == "":
        return None
    own = options.reference is None
    path = bundle.reference_path if options.reference is None else open_model(options.reference).reference_path
    if path is None and not own:
        raise OptionError(f"--reference {options.reference}: expected a bundle with its FP32 program, got one without")
    if path is None or path == bundle.program_path:
        return None
    if bundle.manifest.tiles is not None:
        log.info("layers: not compared: the program takes tiles of frames")
        return None
    return path


def _layers_differ(frames: Sequence[Frame], bundle: Bundle, reference: Path, say: Callable[[str], None]) -> bool:
    try:
        found = layers_apart(bundle, reference, frames)
    except BackendUnavailableError as error:
        log.warning(str(error))
        return False
    worst = frames[found["frame"]]
    say(
        f"programs: masks differ from the FP32 program's in {found['share']:.2%} of the pixels, by up to {found['levels']} of 255, in "
        f"frame {worst.index} of {worst.source}, the worst of {len(frames)}"
    )
    if not found["faults"]:
        largest = found["largest"]
        most = f", the largest {largest['error']:.2g} in {largest['name']}" if largest else ""
        say(f"layers: {found['layers']} compared, each has an error as rounding makes it{most}")
        return False
    first = found["faults"][0]
    more = f"; {len(found['faults'])} layers do" if len(found["faults"]) > 1 else ""
    say(
        f"layers: the first that computes something else is {first['name']} ({first['operation']}): its own error is "
        f"{first['error']:.2g} of its output, where {found['usual']:.2g} is usual{more}"
    )
    return True


def _some(recording: Recording, only: str | None) -> Sequence[Frame]:
    """A few frames from all over the recording, the last one among them."""
    total = len(recording) if only is None else recording.count(only)
    step = math.ceil(total / _LAYER_FRAMES)
    return list(islice(recording.frames(only), (total - 1) % step, None, step))
