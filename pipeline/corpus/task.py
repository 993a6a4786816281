"""What is done with the sources of a corpus: read, computed, drawn, written. The same wherever it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pipeline.builds.build_half import rebuild_plan
from pipeline.builds.model_name import open_model
from pipeline.command.appearance import make_appearance, read_look
from pipeline.corpus.job import Job, check_bundle
from pipeline.corpus.listing import Entry
from pipeline.corpus.results import OF_ONE, Parts, change, publish
from pipeline.engines import open_engine
from pipeline.errors import EdgemaskError, SinkError, SourceError
from pipeline.flow.cores import leave_cores_to
from pipeline.flow.events import Events
from pipeline.flow.run import run
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.frames.pixels import bands_of
from pipeline.render.overlay import Renderer
from pipeline.sinks.base import Sink
from pipeline.sinks.pictures import FolderSink, content_of, write_picture
from pipeline.sinks.video import VideoSink
from pipeline.sources.bands import read_bands
from pipeline.sources.base import Source
from pipeline.sources.picture_file import read_one
from pipeline.sources.video import VideoSource

Tell = Callable[[int, str, str], None]
"""Told of a source by its index among those that were given: "done", "there" or "failed", and of what failed why. On any thread."""


@dataclass(frozen=True, slots=True)
class _Block:
    """Pictures that are done in one go: all that were given, the stamps of those that are to be done, and who is told."""

    entries: Sequence[Entry]
    stamps: dict[int, str]
    tell: Tell


class Task:
    """Computes the sources of a corpus with an engine of its own; use it in a ``with`` block.

    Args:
        job: what to do.
        frames: told of each frame that is written.
        finishing: told when all frames of a result are, and nobody knows how long the disk takes for the rest.

    Raises:
        EdgemaskError: model, backend, look or output cannot be used here.
    """

    def __init__(self, job: Job, frames: Callable[[], None], finishing: Callable[[], None]) -> None:
        self._job = job
        self._frames, self._finishing = frames, finishing
        self._look = read_look(job.options.look)
        model = job.options.model
        bundle = open_model(model.name, on_gpu=model.may_build_for_gpu, quiet=True)
        check_bundle(job, bundle)
        rebuild = partial(rebuild_plan, quiet=True) if model.may_build else None
        with ExitStack() as stack:
            self._engine = stack.enter_context(open_engine(bundle, model.backend, overlap=True, rebuild=rebuild))
            self._parts = stack.enter_context(Parts(job.output))
            self._stack = stack.pop_all()
        leave_cores_to(self._engine)
        self._options = replace(job.options.recording, classes=bundle.manifest.classes)

    def __enter__(self) -> Task:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def leave(self) -> None:
        """Remove what was begun, as the process is about to end in the midst of it. On any thread."""
        self._parts.remove()

    def __call__(self, entries: Sequence[Entry], tell: Tell) -> None:
        """Do some sources: one video, or pictures.

        Args:
            entries: those whose result another process has made meanwhile are not done again.
            tell: told of each one, but of those that were left when an error came.

        Raises:
            Exception: something is wrong with one of them, nobody knows which.
        """
        try:
            self._do(_Block(entries, {}, tell))
        finally:
            self._parts.clear()

    def _do(self, block: _Block) -> None:
        entries, tell = block.entries, block.tell
        for index, entry in enumerate(entries):
            try:
                if change(self._job, entry) is None:
                    tell(index, "there", "")
                else:
                    block.stamps[index] = self._job.stamp(entry)
            except OSError as error:
                tell(index, "failed", f"{entry.path}: cannot be read ({error.strerror})")
        for index in [index for index in block.stamps if entries[index].is_video]:
            self._video(entries[index], block.stamps.pop(index))
            tell(index, "done", "")
        if block.stamps:
            source = _Pictures({index: entries[index] for index in block.stamps}, tell)
            self._run(source, lambda renderer: _PictureFiles(self._job, block, self._parts, renderer))

    def _video(self, entry: Entry, stamp: str) -> None:
        target = self._job.target(entry)
        part = self._parts.new(target)
        options = replace(self._options, comment=stamp, sound=target.suffix == ".mp4")
        make = VideoSink if target.suffix in (".mp4", ".mkv") else FolderSink
        with VideoSource(entry.path) as source:
            self._run(source, lambda renderer: make(str(part), source.info, renderer, options))
        _check_unchanged(self._job, entry, stamp)
        publish(part, target, stamp)

    def _run(self, source: Source, make: Callable[[Renderer], Sink]) -> None:
        appearance = make_appearance(self._job.options, self._look, self._engine, [source])
        try:
            with make(appearance.renderer) as sink:
                run(source, self._engine, appearance.views, [sink], events=_Counted(self._frames))
                self._finishing()
        finally:
            self._engine.drain()


class _Counted(Events):
    def __init__(self, frames: Callable[[], None]) -> None:
        super().__init__()
        self._frames = frames

    def written(self, _: Frame, __: int) -> None:
        self._frames()


class _Pictures(Source):
    """The pictures of a block; one that cannot be read is told, and the others go on."""

    def __init__(self, entries: Mapping[int, Entry], tell: Tell) -> None:
        self._entries = entries
        self._tell = tell
        paths = tuple(entry.path for entry in entries.values())
        self.info = SourceInfo("pictures", f"{len(paths)} pictures", frame_count=len(paths), paths=paths)

    def __iter__(self) -> Iterator[Frame]:
        for index, entry in self._entries.items():
            try:
                frame = self._read(Path(entry.path), index)
            except Exception as error:  # noqa: BLE001 - whatever a decoder raises at one of a million files
                self._tell(index, "failed", sentence_of(error))
                continue
            yield frame

    def _read(self, path: Path, index: int) -> Frame:
        bands = bands_of(self.pixels)
        if bands is not None:
            return Frame(read_bands(path, bands), index, float(index), self.info.name, path.stem, self.pixels)
        picture = read_one(path)
        return Frame(picture.image, index, float(index), self.info.name, path.stem, alpha=picture.alpha)


class _PictureFiles(Sink):
    """Writes each picture of a block to the place of its own."""

    def __init__(self, job: Job, block: _Block, parts: Parts, renderer: Renderer) -> None:
        self._job, self._block, self._parts, self._shown_by = job, block, parts, renderer

    def write(self, frame: Frame) -> None:
        """Write the picture, complete or not at all."""
        entry, stamp = self._block.entries[frame.index], self._block.stamps[frame.index]
        target = self._job.target(entry)
        part = self._parts.new(target)
        try:
            write_picture(part, content_of(frame, self._shown_by), stamp)
            _check_unchanged(self._job, entry, stamp)
            publish(part, target, stamp)
        except EdgemaskError as error:
            if is_fatal(error):
                raise
            self._block.tell(frame.index, "failed", str(error))
        else:
            self._block.tell(frame.index, "done", "")


def _check_unchanged(job: Job, entry: Entry, stamp: str) -> None:
    try:
        unchanged = job.stamp(entry) == stamp
    except OSError:
        unchanged = False
    if not unchanged:
        raise SourceError(
            f"{entry.path}: expected a file that stays as it is, got one that was changed while it was read"
        )


def is_fatal(error: Exception) -> bool:
    """Whether it is the disk of the results that failed, and not one source."""
    cause = error.__cause__
    return isinstance(error, SinkError) and isinstance(cause, OSError) and cause.errno not in OF_ONE


def sentence_of(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, EdgemaskError) else f"{type(error).__name__}: {text}"
