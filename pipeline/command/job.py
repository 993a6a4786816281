"""One run of the command: sources, engine and outputs opened, run, and ended complete."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from pipeline.command.appearance import Appearance, leave_views, make_appearance, read_look
from pipeline.command.engine_of_run import HeadStart, open_for, read_model, refused_s
from pipeline.command.freed_memory import give_back_freed_memory
from pipeline.command.memory_limit import MemoryLimit, limit_bytes
from pipeline.command.model_swap import ModelSwap
from pipeline.command.not_finite import NotFiniteLines
from pipeline.command.outputs import (
    OutputOpener,
    about_run,
    check_outputs,
    ended,
    has_window,
    open_page,
    output_specs,
    with_watchers,
)
from pipeline.command.progress import Progress
from pipeline.command.reload import Reload, Reread, check_watched
from pipeline.command.run_options import RunOptions
from pipeline.command.service import Health, Service
from pipeline.command.source_changes import Follower, SourceChanges
from pipeline.command.summary import Summary, print_written
from pipeline.command.watchers import open_watchers, with_audits
from pipeline.engines.replaceable import ReplaceableEngine
from pipeline.errors import EngineHungError, OptionError, SinkError, SourceError
from pipeline.flow.cores import leave_cores_to
from pipeline.flow.events import Events
from pipeline.flow.run import run
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.machine.memory import grows_at_most
from pipeline.page.options import Watched
from pipeline.process_end import leave
from pipeline.quick_dataclass import dataclass
from pipeline.signals import StoppedError, reloads_on_hangup, uninterrupted
from pipeline.sinks.base import Sink
from pipeline.sinks.kinds import shown
from pipeline.sources import open_sources
from pipeline.stages.stage_timer import StageTimer
from pipeline.terminal import logger_of, write_line

if TYPE_CHECKING:
    from pipeline.engines.base import Engine
    from pipeline.flow.run import Lineup
    from pipeline.frames.audited import Audited
    from pipeline.sources.base import Source

log = logger_of(__name__)

# Files, viewers and connections leave holes in the memory that malloc keeps. In months it would become all holes; this costs a few
# milliseconds.
_GIVE_BACK_EVERY_S = 300.0


def run_job(options: RunOptions, reread: Reread | None = None, begun: HeadStart | None = None) -> None:
    """Open what the options name, run it, and end it complete.

    What it says as it goes on is logged; where the results are is printed.

    Args:
        options: what is run.
        reread: gives the options as they are now when SIGHUP asks for another look at them; None: SIGHUP ends the run.
        begun: opens the engine already; None: it is opened when the sources are.

    Raises:
        EdgemaskError: something cannot be opened, or was lost on the way.
        StoppedError: a signal ended it; what was recorded is kept.
    """
    check_outputs(options)
    check_watched(options)
    lost: list[SinkError | SourceError] = []
    sinks: list[Sink] = []
    with ExitStack() as stack:
        parts = _open_parts(options, reread, begun, sinks, stack)
        summary, info = parts.summary, _together(parts.sources)
        try:
            with ended(sinks, live=info.live, on_truncated=options.on_truncated):
                _open_sinks(options, parts, sinks)
                parts.service.ready(parts.status())
                most = options.max_frames and options.max_frames * len(parts.sources)
                # A frame that is being written is written to its end.
                with Progress(info, most, quiet=options.quiet) as progress, uninterrupted() as signals:
                    parts.follow(progress)
                    run(
                        list(parts.sources),
                        parts.engine,
                        parts.appearance.views,
                        sinks,
                        events=_Told(parts.timer, parts.watchers, parts.pulses, progress, lost, signals),
                        drop_oldest=options.drop_oldest,
                        max_frames=options.max_frames,
                    )
                summary.ends()
        except StoppedError:  # the way in which live runs end
            summary.tell()
            for sink in sinks:
                if sink.written:
                    log.info(sink.written)
            if lost:
                raise lost[0] from None
            raise
        except EngineHungError as hung:
            summary.tell()
            _leave(sinks, hung)
        summary.tell()
    print_written(sinks, to_stderr="jsonl:-" in options.outputs.names)
    if lost:
        raise lost[0]


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a run is made of, beside its outputs.

    Attributes:
        sources: those that there are now.
        window: views are shown in windows.
        about: what runs here, as it is now; for the page, empty without one.
        watchers: are told what happens.
        audited: the newest audit of a source, which outputs tell.
        pulses: are called as often as the loop comes round.
        status: says where frames come from and go to, in one line.
        swap: brings another model; None: none can come.
        changes: bring other sources; None: none can come.
    """

    sources: list[Source]
    engine: Engine
    appearance: Appearance
    window: bool
    timer: StageTimer
    health: Health
    service: Service
    summary: Summary
    about: dict[str, str]
    watchers: list[Events]
    audited: Callable[[str], Audited | None]
    pulses: list[Callable[[], None]]
    status: Callable[[], str]
    swap: ModelSwap | None = None
    changes: SourceChanges | None = None

    def follow(self, *followers: Follower) -> None:
        """Have them told of sources that join and leave, if any can."""
        if self.changes is not None:
            self.changes.followers += followers


def _open_parts(
    options: RunOptions, reread: Reread | None, begun: HeadStart | None, sinks: list[Sink], stack: ExitStack
) -> _Parts:
    """Open sources and engine, and make what draws, watches and tells; all of it ends with the stack."""
    hangups = None if reread is None else stack.enter_context(reloads_on_hangup())
    window = has_window(options.outputs, page=options.page is not None)
    look = read_look(options.look)
    sources = _open_sources(options, begun, stack)
    engine = stack.enter_context(_open_engine(options, [source.info for source in sources], begun))
    if reread is not None:
        engine = stack.enter_context(ReplaceableEngine(engine))
    for source in sources:  # what they hold depends on it: pages of a document, or channels of one picture
        source.pixels = engine.pixels
    appearance = make_appearance(options, look, engine, sources)
    health, timer = Health([source.telemetry for source in sources], sinks), StageTimer()
    service = stack.enter_context(Service(health))
    limit = MemoryLimit(sources, limit_bytes(options.memory_bytes))
    watching = open_watchers(options, engine, sources, timer, stack)
    parts = _Parts(
        sources,
        engine,
        appearance,
        window,
        timer,
        health,
        service,
        Summary(list(sources), _together(sources), timer, appearance.governor),
        {},
        list(watching.all),
        watching.audited,
        [service.pulse, limit],
        lambda: _status(options, _together(sources), window=window),
    )
    if reread is None or hangups is None or not isinstance(engine, ReplaceableEngine):
        return parts
    swap = ModelSwap(engine, sources, partial(_tell_swapped, parts))
    changes = stack.enter_context(SourceChanges(sources, sinks, options))
    reload = stack.enter_context(Reload(options, reread, hangups, changes, swap, service, parts.status))
    parts.watchers.extend((swap, changes))
    parts.pulses.append(reload.pulse)
    parts = replace(parts, swap=swap, changes=changes)
    parts.follow(health, limit, swap, parts.summary, *appearance.followers, _Watching(parts.watchers))
    return parts


def _watched(parts: _Parts, opener: OutputOpener) -> Watched:
    """The run as the page tells of it."""
    parts.about.update(about_run(parts.engine))
    return Watched(
        {source.info.name: source.telemetry for source in parts.sources},
        parts.engine.bundle.manifest.classes,
        parts.about,
        parts.health.problem,
        parts.timer,
        parts.health.outputs,
        swaps=dict if parts.swap is None else partial(getattr, parts.swap, "counts"),
        zones=opener.zones,
        find=opener.finder,
        recording=opener.recording,
    )


def _tell_swapped(parts: _Parts) -> None:
    """Another model runs: on the engine's thread, before its first frame."""
    engine = parts.engine
    parts.appearance.annotations.runs(engine.bundle.manifest, engine.description)
    parts.about.update(about_run(engine))
    for watcher in parts.watchers:
        watcher.swapped(engine.bundle)


class _Watching:
    """Tells watchers of sources that come and go."""

    def __init__(self, watchers: Sequence[Events]) -> None:
        self._watchers = watchers

    def join(self, source: Source) -> None:
        """One is about to be read."""
        for watcher in self._watchers:
            watcher.joined(source)

    def leave(self, source: Source) -> None:
        """One has gone."""
        for watcher in self._watchers:
            watcher.left(source)


def _open_sinks(options: RunOptions, parts: _Parts, sinks: list[Sink]) -> None:
    """Open all outputs, and the page."""
    options = with_audits(options, parts.audited)
    classes = parts.engine.bundle.manifest.classes
    opener = OutputOpener(options, parts.sources, parts.appearance, classes=classes, window=parts.window)
    for source in parts.sources:
        opener(sinks, source, many=len(parts.sources) > 1)
    parts.follow(opener.finder)
    if parts.changes is not None:
        parts.changes.opener = opener
    if options.page is not None:
        run_now = with_watchers(_watched(parts, opener), parts.watchers)
        with uninterrupted():  # a page that is open must be in the list
            page = open_page(options.page, run_now, parts.appearance)
            sinks.append(page)
        parts.follow(page)
    if options.decode == "cuda":
        leave_views(parts.engine, parts.appearance, sinks)


def _leave(sinks: Sequence[Sink], hung: EngineHungError) -> NoReturn:
    """End the process as it is: its outputs are complete, and nothing may close what the engine's thread still uses."""
    for sink in sinks:
        if sink.written:
            log.info(sink.written)
    write_line(f"error: {hung}")
    leave(hung.__cause__.status if isinstance(hung.__cause__, StoppedError) else 1)


class _Told(Events):
    """Shows how far the run is, says what is wrong with it, keeps what was lost, ends it on a signal, and tells who watches."""

    def __init__(
        self,
        timer: StageTimer,
        watchers: Sequence[Events],
        pulses: Sequence[Callable[[], None]],
        progress: Progress,
        lost: list[SinkError | SourceError],
        signals: Sequence[int],
    ) -> None:
        super().__init__(timer)
        self._pulses, self._progress, self._lost, self._signals = pulses, progress, lost, signals
        self._watchers = watchers
        self._not_finite = NotFiniteLines()
        self._give_back_due_s = time.monotonic() + _GIVE_BACK_EVERY_S

    def begun(self, lineup: Lineup) -> None:
        for watcher in self._watchers:
            watcher.begun(lineup)

    def computed(self, frame: Frame) -> None:
        for watcher in self._watchers:
            watcher.computed(frame)

    def written(self, frame: Frame, dropped: int) -> None:
        self._progress(frame, dropped)
        self._not_finite(frame)
        for watcher in self._watchers:
            watcher.written(frame, dropped)

    def pulse(self) -> None:
        if self._signals:
            raise StoppedError(self._signals[0])
        for pulse in self._pulses:
            pulse()
        for watcher in self._watchers:
            watcher.pulse()
        if time.monotonic() >= self._give_back_due_s:
            self._give_back_due_s = time.monotonic() + _GIVE_BACK_EVERY_S
            give_back_freed_memory()

    def lost(self, error: SinkError | SourceError) -> None:
        for watcher in self._watchers:
            watcher.lost(error)
        if not self._lost:  # the first decides how the command ends; a disk may be full a thousand times
            self._lost.append(error)
        log.warning(f"error: {error}; the rest goes on")


def _open_sources(options: RunOptions, begun: HeadStart | None, stack: ExitStack) -> list[Source]:
    if begun is not None:
        begun.wait()  # what an engine maps is no source's
    if options.decode == "cuda":
        from pipeline.sources.nvdec import require_gpu

        require_gpu()  # before the limit: CUDA maps more addresses than a machine has memory
    with grows_at_most(limit_bytes(options.memory_bytes)):  # a file's header may claim anything, and nobody watches yet
        live = replace(options.live, refused_s=refused_s(options))
        sources = open_sources(options.sources, live, decode=options.decode)
    for source in sources:
        stack.callback(source.close)
        log.info(f"source: {source.info.name}, {source.info.description}")
        if source.info.left_out:
            log.info(f"{source.info.name}: left out of the outputs: {source.info.left_out}")
    return sources


def _open_engine(options: RunOptions, infos: Sequence[SourceInfo], begun: HeadStart | None) -> Engine:
    bundle = read_model(options.model, quiet=options.quiet)
    if options.decode == "cuda" and bundle.manifest.pixels != "nv12":
        raise OptionError(
            f"--decode cuda: expected a bundle that takes NV12, as the GPU's decoder gives it, got {bundle.folder} for "
            f"{bundle.manifest.pixels}: compile it with --pixels nv12, or leave --decode cuda out"
        )
    engine = open_for(options, bundle, infos, begun=begun)
    if options.decode == "cuda" and not engine.takes_device:
        engine.close()
        raise OptionError(
            f"--decode cuda: expected a backend that takes frames on the GPU, tensorrt or tensorrt-rtx, got {engine.description}: "
            "choose it with --backend, or leave --decode cuda out"
        )
    leave_cores_to(engine)
    manifest = bundle.manifest
    height, width = manifest.network_size_hw
    log.info(f"model: {manifest.model}, {manifest.precision}, {height}×{width} inside, on {engine.description}")
    if not engine.counts:
        log.info("program: it does not count scores that are NaN or infinite, as new ones do: compile it again")
    if engine.advice:
        log.info(engine.advice)
    return engine


def _together(sources: Sequence[Source]) -> SourceInfo:
    """One description of all sources, for progress, summary and status."""
    infos = [source.info for source in sources]
    if len(infos) == 1:
        return infos[0]
    counts = [info.frame_count for info in infos]
    return SourceInfo(
        name=", ".join(info.name for info in infos),
        description=f"{len(infos)} sources",
        frame_count=None if None in counts else sum(count or 0 for count in counts),
        live=any(info.live for info in infos),
    )


def _status(options: RunOptions, info: SourceInfo, *, window: bool) -> str:
    outputs = ", ".join(map(shown, output_specs(options, info)))
    return f"{info.name} → {outputs or ('window' if window else 'page')}"
