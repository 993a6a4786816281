"""What is to be done with each source of a corpus, as every process that works on it is told."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from pipeline.bundles.bundle import PROGRAM_NAME, Bundle
from pipeline.command.run_options import RunOptions
from pipeline.corpus.listing import Entry
from pipeline.corpus.options import MasksAs
from pipeline.errors import BundleError


@dataclass(frozen=True, slots=True)
class Job:
    """The same for all sources; goes to other processes and machines.

    Attributes:
        options: model, masks and look, as for a run of one source; its sources and outputs are empty.
        output: the folder of the results.
        masks_as: what the masks of a video become, "png" or "video".
        bundle: stands for the program that computes the masks, 16 hexadecimal digits.
        settings: likewise for all options that change a result.
        timeout_s: a process of which no frame comes for so long is ended; 0: never.
    """

    options: RunOptions
    output: str
    masks_as: MasksAs
    bundle: str
    settings: str
    timeout_s: float = 0.0

    def target(self, entry: Entry) -> Path:
        """Where the result of a source belongs: a PNG file, a video, or a folder of PNG files."""
        if not entry.is_video:
            return Path(self.output, f"{entry.name}.png")
        if self.options.look.mode != "mask":
            return Path(self.output, f"{entry.name}.mp4")
        # A folder gets a suffix too, for the corpus may have one of the name without it.
        return Path(self.output, f"{entry.name}.mkv" if self.masks_as == "video" else f"{entry.name}.masks")

    def stamp(self, entry: Entry) -> str:
        """What the result of a source carries, so that a later run knows what it was made of: one line of ASCII.

        Raises:
            OSError: the source is not there.
        """
        status = os.stat(entry.path)
        return f"{STAMPED} input={status.st_size}-{status.st_mtime_ns} bundle={self.bundle} options={self.settings}"


STAMPED = "edgemask corpus:"
"""How every stamp begins."""


def make_job(options: RunOptions, bundle: Bundle, output: str, masks_as: MasksAs, timeout_s: float = 0.0) -> Job:
    """The job that some options describe, with a bundle that was read."""
    look = replace(options.look, palette=_anywhere(options.look.palette), background=_anywhere(options.look.background))
    options = replace(options, look=look, model=replace(options.model, name=_anywhere(options.model.name)))
    return Job(options, os.path.abspath(output), masks_as, bundle_sign(bundle), _settings_sign(options), timeout_s)


def bundle_sign(bundle: Bundle) -> str:
    """What tells one bundle's masks from another's; plans that are built into a bundle change nothing."""
    manifest = bundle.manifest
    entries = (manifest.files[PROGRAM_NAME], manifest.task, manifest.classes, manifest.contract, manifest.pixels)
    return _sign(entries)


def check_bundle(job: Job, bundle: Bundle) -> None:
    """Refuse a bundle that another machine has under the name of the one that the job is for.

    Raises:
        BundleError: it is another one.
    """
    got = bundle_sign(bundle)
    if got != job.bundle:
        raise BundleError(
            f"{bundle.folder}: expected the bundle {job.bundle} that the corpus was begun with, got {got}: "
            "put the same one on every machine, or on a disk that all of them see"
        )


Text = TypeVar("Text", str, "str | None")


def _anywhere(text: Text) -> Text:
    """A path as processes in other folders find it; a name, a color and nothing as they are."""
    return os.path.abspath(text) if text and os.path.exists(text) else text


def _settings_sign(options: RunOptions) -> str:
    look = asdict(options.look)
    for name in ("palette", "background"):  # a file may change under its name
        if look[name] and os.path.isfile(look[name]):
            look[name] = hashlib.sha256(Path(look[name]).read_bytes()).hexdigest()
    # What the masks of a video become tells the name of its result, and is no matter of pictures.
    return _sign((look, asdict(options.masks), options.recording.encoder))


def _sign(entries: object) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()[:16]
