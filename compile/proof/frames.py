"""Which frames judge what was compiled, and which ones a search for precisions may look at: never the same.

Real frames always. The user's own with ``--verify``; else those that were held back from ``--calib``, or of a calibration set those for
verification; else the photographs of the package.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice

from calibration.sets.calibration_set import is_set, read_set
from calibration.sets.frames import ChosenSource, SetSource, open_calibration
from calibration.sets.photographs import PhotographSource
from pipeline.errors import OptionError
from pipeline.frames.frame import Frame
from pipeline.frames.pixels import Pixels, bands_of
from pipeline.redaction import redact
from pipeline.sources import open_source, source_kind
from pipeline.sources.base import Source
from pipeline.terminal import logger_of

SEARCHED_FRAMES = 16
"""The most frames that a search for FP16 chooses its own from."""

# Of a source that is for calibration, how many are held back to judge on: half as many as are calibrated on, within these.
_HELD_BACK_WITHIN = 8, 32
# Fewer frames than these are not worth a search of their own.
_ENOUGH_TO_SEARCH = 8
# Between two frames of a camera that judge; those that follow each other are the same picture.
_LIVE_STEP_S = 1.0

log = logger_of(__name__)


class VerificationFrames:
    """The frames of one compilation; close it, or use it in a ``with`` block.

    Args:
        verify: the option's value; None if it was not given.
        calib: the value of ``--calib``; None without.
        calib_size: how many frames of it to calibrate on.

    Attributes:
        calibration: what to calibrate on; None without ``calib``.
        origin: what the frames are that judge, after their number: "photographs of the package".
        advice: what would prove more; empty if nothing would.

    Raises:
        OptionError: a picture that was made is to prove INT8.
        SourceError: there is no such source, or it holds no frames.
        CalibrationError: a set was changed or is damaged.
    """

    def __init__(self, verify: str | None, calib: str | None, calib_size: int) -> None:
        self._closing = ExitStack()
        self._count = 0
        self._pixels: Pixels = "bgr"
        self.advice = ""
        if verify is not None and calib is not None and source_kind(verify) == "test":
            raise OptionError(
                f"--verify {verify}: expected real frames to prove INT8 on, got synthetic ones: give pictures or a video, or leave "
                "--verify out"
            )
        with ExitStack() as stack:
            held_back = calib is not None and verify is None and not is_set(calib) and source_kind(calib) != "test"
            low, high = _HELD_BACK_WITHIN
            self.calibration = (
                None
                if calib is None
                else stack.enter_context(
                    open_calibration(calib, calib_size, min(max(calib_size // 2, low), high) if held_back else 0)
                )
            )
            self._verify = verify
            self._given = None if verify is None else stack.enter_context(_open(verify))
            if verify is not None:
                self.origin = f"frames of {redact(verify)}"
            elif calib is not None and is_set(calib):
                self.origin = f"pictures of the set {calib} for verification"
            elif held_back:
                self.origin = f"frames held back from {redact(calib or '')}"
            else:
                self._take_photographs()
            self._closing = stack.pop_all()

    def take(self, pixels: Pixels) -> None:
        """Have frames read as the network takes them; to be called before all else.

        Raises:
            OptionError: they have channels that photographs of the package do not have, and no others were given.
        """
        bands = bands_of(pixels)
        if bands is not None and self._given is None and self.calibration is None:
            raise OptionError(
                f"--verify: expected pictures with {bands} as the network takes (.tiff, .npy, .png), for the package's photographs "
                "are ordinary ones, got none: give --verify DIR"
            )
        self._pixels = pixels
        for source in (self._given, self.calibration):
            if source is not None:
                source.pixels = pixels

    def __enter__(self) -> VerificationFrames:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the sources; safe to call twice."""
        self._closing.close()

    def judging(self, count: int) -> Iterator[Frame]:
        """The frames that judge, at most so many, spread over all there are."""
        self._count = count
        if self._given is not None:
            return spread(self._given, count)
        calibration = self.calibration
        if isinstance(calibration, SetSource) and calibration.set.verification:
            return spread(SetSource(calibration.set, "verification"), count)
        if isinstance(calibration, ChosenSource):
            frames = calibration.held_back()
            if frames:
                if calibration.in_one_scene:
                    log.info(
                        "%s shows one scene: its end is held back, after a gap; frames of other scenes with --verify prove more",
                        calibration.info.name,
                    )
                return (frames[index] for index in _places(len(frames), count))
        self._take_photographs()
        return spread(PhotographSource(), count)

    def searched(self, count: int = SEARCHED_FRAMES) -> Iterator[Frame]:
        """Frames that a search may look at, none of which judges; to be called after ``judging``.

        Those to calibrate on; else what is left of ``--verify``, where that is enough; else photographs of the package. For a network
        of other channels than theirs, whatever is left.
        """
        bands = bands_of(self._pixels)
        if self.calibration is not None:
            if isinstance(self.calibration, ChosenSource):
                self.calibration.choose()
            return spread(self.calibration, count)
        if self._verify is not None and is_set(self._verify):
            return spread(SetSource(read_set(self._verify)), count)
        total = 0 if self._given is None or self._given.info.live else self._given.info.frame_count or 0
        left = sorted(set(range(total)) - set(_places(total, self._count)))
        if self._verify is not None and len(left) >= (_ENOUGH_TO_SEARCH if bands is None else 0):
            again = self._closing.enter_context(open_source(self._verify))
            again.pixels = self._pixels
            return _picked(again, {left[index] for index in _places(len(left), count)})
        return spread(PhotographSource("search"), count)

    def _take_photographs(self) -> None:
        self.origin = "photographs of the package"
        self.advice = "; --verify YOURS proves it on your own scenes"


def spread(source: Source, count: int) -> Iterator[Frame]:
    """At most ``count`` frames, spread over all of a source: of a camera one a second, for frames in a row are one picture."""
    if source.info.live:
        return islice(_apart(source, _LIVE_STEP_S), count)
    total = source.info.frame_count
    return islice(source, count) if total is None else _picked(source, set(_places(total, count)))


def _places(total: int, count: int) -> list[int]:
    return list(range(total)) if total <= count else [int((index + 0.5) * total / count) for index in range(count)]


def _picked(source: Source, wanted: set[int]) -> Iterator[Frame]:
    return islice((frame for index, frame in enumerate(source) if index in wanted), len(wanted))


def _apart(frames: Iterable[Frame], step_s: float) -> Iterator[Frame]:
    due_s = float("-inf")
    for frame in frames:
        if frame.pts_s >= due_s:
            due_s = frame.pts_s + step_s
            yield frame


def _open(spec: str) -> Source:
    return SetSource(read_set(spec), "verification") if is_set(spec) else open_source(spec)
