"""A run over a corpus: what is to be done, who does it, and what has become of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from pipeline.builds.model_name import open_model
from pipeline.corpus.crew import Crew, Result
from pipeline.corpus.failures import Failures
from pipeline.corpus.job import Job, make_job
from pipeline.corpus.listing import FORMS, Entry, Listing
from pipeline.corpus.options import CorpusOptions
from pipeline.corpus.progress import Progress
from pipeline.corpus.results import change, sweep
from pipeline.corpus.shard import Shard
from pipeline.errors import BackendUnavailableError, SourceError
from pipeline.terminal import logger_of, one_line

log = logger_of(__name__)

_MOST, _LEAST = 100, 4
_BLOCKS = 32


def run_corpus(options: CorpusOptions) -> None:
    """Do what of a corpus is not done yet.

    What it says as it goes on, and the report at the end, are logged.

    Raises:
        SourceError: there is nothing to read, or a source has failed; all others are done.
        EdgemaskError: model, backend or output cannot be used.
        StoppedError: a signal ended it; what is done stays.
    """
    listing = Listing(options.source, options.output)
    model = options.run.model
    bundle = open_model(model.name, on_gpu=model.may_build_for_gpu, quiet=options.quiet)
    job = make_job(options.run, bundle, options.output, options.masks_as, options.timeout_s)
    survey = look_over(listing, job, options.shard)
    if not survey.sources and options.shard.count == 1:
        raise SourceError(f"{options.source}: expected {FORMS}, with pictures or videos, got none")
    log.info(f"corpus: {survey}")
    failures = Failures(job.output, options.shard)
    sweep(job.output)
    progress = Progress(survey.sources, survey.there, quiet=options.quiet)
    listed = None
    try:
        if survey.keys:
            with progress, closing(_results(options, job, _units(listing, survey))) as results:
                for result in results:
                    if result.state == "failed":
                        failures.add(result)
                        log.warning(one_line(f"failed: {result.error}"))
                    progress(result)
    finally:
        sweep(job.output)
        listed = failures.list_all()
        for line in progress.report():
            log.info(line)
    if progress.failed:
        raise SourceError(
            f"{progress.failed} of {survey.sources} sources failed, and the others are done: see {listed}"
        )


def _results(options: CorpusOptions, job: Job, units: Iterator[Sequence[Entry]]) -> Generator[Result, None, None]:
    if options.ray is None:
        with Crew(job, options.workers or 1) as crew:
            yield from crew(units)
        return
    try:
        from pipeline.corpus import on_ray
    except ImportError as error:
        raise BackendUnavailableError(
            f"--on ray: expected Ray, got none ({error}): install it with: pip install 'edgemask[ray]'"
        ) from error
    yield from on_ray.results(job, units, options.ray, options.workers)


@dataclass(slots=True)
class Survey:
    """What is to be done of a corpus.

    Attributes:
        keys: of the sources that are to be done.
        there: how many are done already.
        changed: how many of them were done before, by what has changed since.
        pictures: how many pictures are to be done.
        left_out: files that are neither pictures nor videos.
    """

    keys: set[int] = field(default_factory=set)
    there: int = 0
    changed: Counter[str] = field(default_factory=Counter)
    pictures: int = 0
    left_out: int = 0

    @property
    def block(self) -> int:
        """Pictures that a worker is given in one go: enough that what this costs does not count, few enough that all have some."""
        return max(_LEAST, min(_MOST, self.pictures // _BLOCKS))

    @property
    def sources(self) -> int:
        """How many there are."""
        return len(self.keys) + self.there

    def __str__(self) -> str:
        parts = [f"{self.sources} sources", f"{self.there} there already", f"{len(self.keys)} to do"]
        parts += [f"{count} of them again, because their {what} changed" for what, count in self.changed.items()]
        if self.left_out:
            parts.append(f"{self.left_out} files are neither pictures nor videos")
        return ", ".join(parts)


def look_over(listing: Listing, job: Job, shard: Shard) -> Survey:
    """Find out what of a shard is to be done; reads the beginnings of results, and of sources no more than size and time.

    Raises:
        SourceError: a folder cannot be read.
        SinkError: something that no corpus has made stands where a result belongs.
    """
    survey = Survey()
    for entry in listing:
        if entry.key not in shard:
            continue
        changed = change(job, entry)
        if changed is None:
            survey.there += 1
            continue
        survey.keys.add(entry.key)
        survey.pictures += not entry.is_video
        if changed:
            survey.changed[changed] += 1
    survey.left_out = listing.left_out
    return survey


def _units(listing: Listing, survey: Survey) -> Iterator[Sequence[Entry]]:
    """Videos, and pictures in blocks, of those that are to be done."""
    block: list[Entry] = []
    for entry in listing:
        if entry.key not in survey.keys:
            continue
        if entry.is_video:
            yield [entry]
            continue
        block.append(entry)
        if len(block) == survey.block:
            yield block
            block = []
    if block:
        yield block
