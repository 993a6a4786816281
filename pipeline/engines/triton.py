"""The frame program on servers: what was sent comes back in order, and what one server owes when it dies another computes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.bundle import FRAMES, Bundle
from pipeline.engines.base import Computed, Engine
from pipeline.engines.kinds import EngineKind
from pipeline.engines.served import require_servable
from pipeline.engines.server_options import ServerOptions, is_loopback
from pipeline.engines.triton_errors import Kind, ServerError, is_cut_off, untrusted
from pipeline.engines.triton_memory import Region, Regions
from pipeline.engines.triton_reference import Reference
from pipeline.engines.triton_server import MOST_MASK_BYTES, Answer, Attempt, Connected, TritonServer, tensor_sizes
from pipeline.errors import BackendUnavailableError, BundleError, EdgemaskError, ServerAwayError
from pipeline.frames.pixels import frames_nhw
from pipeline.terminal import logger_of

TRITON = EngineKind(
    name="triton",
    opens="TritonEngine",
    help="NVIDIA Triton and other servers of its protocol, on GPUs elsewhere; takes --server",
    order=90,
    extra="triton",
    needs=("tritonclient", "onnxruntime", "opencv"),
    remote=True,
)

log = logger_of(__name__)

# A server that is gone is tried again after this long, then after twice as long each time.
_AGAIN_S, _AGAIN_MOST_S = 0.05, 0.5
# And one that has no such model, or cannot compute, at most so seldom.
_ABSENT_MOST_S = 30.0
_TELL_EVERY_S = 60.0
_BUSY_S = 0.02
# How long a frame of a server that has just started may take.
_FIRST_S = 60.0
# A frame is late after so many times what the slowest of the last ones took, but not sooner and not later than this. A live picture
# stands still as long; a file would rather wait.
_LATE_TIMES, _LATE_S, _LATE_MOST_S = 2, 1.0, 10.0
_LATE_TIMES_OF_FILES, _LATE_OF_FILES_S = 5, 10.0
_MOST_PATIENCE = 64.0
_LATELY = 32
_POLLED_S = 0.05
# A server may fail at a frame for reasons of its own, such as its memory: one more try, before it is the program's fault.
_MOST_FAILURES = 1
_FORGET_TRIES, _FORGET_S = 10, 0.1


class _Room(NamedTuple):
    """A place in shared memory: a region, and where each tensor lies in it."""

    region: Region
    offsets: Mapping[str, int]


@dataclass(slots=True)
class _Part:
    """Frames that go to a server together."""

    frames: NDArray[np.uint8]
    nhw: tuple[int, int, int]
    attempt: Attempt | None = None
    room: _Room | None = None
    failures: int = 0


@dataclass(slots=True)
class _Watched:
    """A server, and how it is looked after."""

    server: TritonServer
    connecting: Future[Connected] | None = None
    again_s: float = _AGAIN_S
    due_s: float = 0.0
    since_s: float = 0.0
    why: str = "no answer yet"
    unmasked: int = 0
    was_there: bool = False
    told: str = ""
    tell_due_s: float = 0.0


class TritonEngine(Engine):
    """Gives frames to servers that have the bundle's program, and compares them with it before they get any.

    Args:
        bundle: what they are to compute; it says classes, sizes and the program's sha256.
        servers: where they are, and how they are spoken to.

    Raises:
        BundleError: the bundle is not for servers, or a server has another program than the bundle.
        BackendUnavailableError: no server is there, or one refuses us.
    """

    def __init__(self, bundle: Bundle, servers: ServerOptions) -> None:
        super().__init__(bundle)
        require_servable(bundle)
        servers.check_files()
        self._options = servers
        reference = Reference(bundle)
        self.counts, self.one_at_a_time = reference.counts, reference.one_at_a_time
        self._all = [_Watched(TritonServer(address, servers, reference)) for address in servers.addresses]
        self.in_flight = servers.in_flight or 1 + 2 * len(self._all)
        # Passive: a thread connects to a server while frames go to the others.
        self._pool = ThreadPoolExecutor(len(self._all), thread_name_prefix="triton")
        self._turn = 0
        self._regions = Regions() if servers.memory == "shared" else None
        self._waiting: deque[list[_Part]] = deque()
        self._took_s: deque[float] = deque(maxlen=_LATELY)
        self._patience = 1.0
        self._failed: EdgemaskError | None = None
        self._unmasked = 0
        self._start_s, self._is_open, self._has_answered = time.monotonic(), False, False
        try:
            self._wait_for_server(self._start_s + servers.wait_s)
            self._look_at_all()
            self._is_open = True
        except BaseException:
            self.close()
            raise
        models = {
            f"{model.name} version {model.version or 'none'} on {model.runs_on}"
            for watched in self._all
            if watched.server.connected is not None
            for model in watched.server.connected.models.values()
        }
        self.description = f"Triton at {', '.join(servers.addresses)}: {', '.join(sorted(models)) or 'not there yet'}"
        # What this machine's cores are free for.
        self.on_gpu = not all(map(is_loopback, servers.addresses))

    def _look_at_all(self) -> None:
        """Wait for the other servers' first answers as well: a wrong one is refused before the first frame."""
        wait([watched.connecting for watched in self._all if watched.connecting is not None], timeout=_FIRST_S)
        self._look_after()
        for watched in self._all:
            if watched.server.connected is None and watched.told != watched.why:
                log.warning(f"warning: {watched.server}: not there ({watched.why}): {self._meanwhile(watched)}")

    def _submit(self, frames: NDArray[np.uint8]) -> None:
        self._look_after()
        frames = np.ascontiguousarray(frames)
        nhw = frames_nhw(self.pixels, frames.shape)
        assert nhw is not None
        most = self._most(nhw[1:])
        parts = [
            _Part(frames[begin : begin + most], (min(most, nhw[0] - begin), *nhw[1:]))
            for begin in range(0, nhw[0], most)
        ]
        for part in parts:
            self._send(part)
        self._waiting.append(parts)

    def _collect(self) -> Computed:
        parts = self._waiting.popleft()
        answers: list[Answer] = []
        try:
            for part in parts:
                answers.append(self._answer(part))
        except BaseException:
            for part in parts:
                self._give_up(part)
            raise
        counts = [answer.not_finite for answer in answers if answer.not_finite is not None]
        if len(answers) == 1:
            return Computed(answers[0].masks_nhw, None, counts[0] if counts else None)
        return Computed(
            np.concatenate([answer.masks_nhw for answer in answers]), None, np.concatenate(counts) if counts else None
        )

    def _answer(self, part: _Part) -> Answer:
        """The masks of some frames, from whichever server gives them."""
        until_s = time.monotonic() + self._options.wait_s
        while True:
            if self._failed is not None:
                raise self._failed
            self._look_after()
            if part.attempt is None and not self._send(part):
                if self._options.goes_on:
                    raise self._away()
                if time.monotonic() > until_s:
                    self._fail(BackendUnavailableError(self._too_long(self._whys())))
                self._wait_for_server(until_s)
                continue
            assert part.attempt is not None
            attempt, part.attempt = part.attempt, None
            try:
                result = attempt.result()
                answer = attempt.server.answer(result, part.nhw, part.room)
            except ServerError as error:
                self._retry(part, attempt, error, until_s)
                continue
            self._took_s.append(attempt.took_s)
            self._patience, self._has_answered = 1.0, True
            if part.room is not None and self._regions is not None:
                self._regions.give_back(part.room.region)
                part.room = None
            return answer

    def _retry(self, part: _Part, attempt: Attempt, error: ServerError, until_s: float) -> None:
        """Make what has failed ready for another try, or end it."""
        self._leave_room(part, is_answered=error.kind is Kind.BUSY)
        watched = next(watched for watched in self._all if watched.server is attempt.server)
        if error.kind is Kind.BUSY:
            if self._options.goes_on:
                raise self._away(str(error))
            if time.monotonic() > until_s:
                self._fail(BackendUnavailableError(self._too_long(f"{watched.server}: {error}")))
            time.sleep(_BUSY_S)
            return
        if error.kind in (Kind.WRONG, Kind.FAILED):
            part.failures += 1
            if part.failures <= _MOST_FAILURES:
                return
            if self._options.goes_on and self._has_answered:
                self._tell_seldom(watched, error)
                raise self._away(str(error))
            raise BundleError(
                f"{watched.server}: cannot run {self.bundle.program_path} ({error}): look into the server's log, or compile the bundle "
                "again"
            )
        # Others may have told it already, whose frames were on their way too.
        if attempt.connected is watched.server.connected:
            self._lost(watched, error)
        if not self._options.goes_on and time.monotonic() > until_s:
            self._fail(BackendUnavailableError(self._too_long(f"{watched.server}: {error}")))

    def _tell_seldom(self, watched: _Watched, error: ServerError) -> None:
        """Tell of a frame that could not be computed: perhaps none can any more."""
        now_s = time.monotonic()
        if now_s >= watched.tell_due_s:
            watched.tell_due_s = now_s + _TELL_EVERY_S
            log.warning(f"warning: {watched.server}: cannot compute a frame ({error}): such frames go on without masks")

    def _lost(self, watched: _Watched, error: ServerError) -> None:
        """A server is not there any more, or has something else."""
        if error.kind is Kind.REFUSED:
            self._fail(BackendUnavailableError(f"{watched.server}: {error}"))
        watched.server.use(None)
        watched.since_s, watched.again_s, watched.due_s = time.monotonic(), _AGAIN_S, 0.0
        watched.why = str(error)
        self._patience = min(2 * self._patience, _MOST_PATIENCE)
        if error.kind is Kind.CHANGED:
            log.warning(f"warning: {watched.server}: {error}: it is compared with the bundle again")
            return
        log.warning(f"warning: {watched.server}: gone ({error}): {self._meanwhile(watched)}")

    def _meanwhile(self, away: _Watched) -> str:
        """What becomes of the frames of a server that is not there."""
        if any(watched.server.connected is not None for watched in self._all):
            return "its frames go to the others"
        if self._options.goes_on:
            return f"frames go on without masks until it is {'back' if away.was_there else 'there'}"
        return f"frames wait, at most {self._options.wait_s:g} s"

    def _is_final(self) -> bool:
        """Whether a missing model ends the run: not that of a live source once there were masks, nor while its servers may begin."""
        had_masks = any(watched.was_there for watched in self._all)
        return not self._options.goes_on or not (
            had_masks or time.monotonic() - self._start_s < self._options.refused_s
        )

    def _look_after(self) -> None:
        """See what has become of servers that are connected to, and connect to those that are due."""
        now_s = time.monotonic()
        for watched in self._all:
            if watched.connecting is not None and watched.connecting.done():
                made, watched.connecting = watched.connecting, None
                try:
                    self._connected(watched, made.result())
                except ServerError as error:
                    self._not_connected(watched, error)
            if watched.server.connected is None and watched.connecting is None and now_s >= watched.due_s:
                patient_s = _FIRST_S if not watched.was_there else max(_LATE_OF_FILES_S, self._deadline_s())
                watched.connecting = self._pool.submit(watched.server.connect, patient_s)

    def _connected(self, watched: _Watched, connected: Connected) -> None:
        watched.server.use(connected)
        self._took_s.append(connected.frame_s)
        if watched.was_there or self._is_open:
            away_s = time.monotonic() - (watched.since_s or self._start_s)
            without = f"; {watched.unmasked} frames had no mask" if self._options.goes_on else ""
            log.info(f"{watched.server}: {'back' if watched.was_there else 'there'} after {away_s:.1f} s{without}")
        watched.was_there, watched.unmasked, watched.told = True, 0, ""

    def _not_connected(self, watched: _Watched, error: ServerError) -> None:
        if self._options.is_tls and not watched.was_there and is_cut_off(error):
            error = untrusted(str(error))
        most_s = _AGAIN_MOST_S
        if error.kind is Kind.REFUSED:
            self._fail(BackendUnavailableError(f"{watched.server}: {error}"))
        if error.kind is Kind.WRONG:
            self._fail(BundleError(f"{watched.server}: {error}"))
        if error.kind is Kind.ABSENT or (error.kind is Kind.FAILED and not watched.was_there):
            if self._is_final():
                self._fail(BundleError(f"{watched.server}: {error}"))
            if watched.told != str(error):
                watched.told = str(error)
                log.warning(f"warning: {watched.server}: {error}; {self._meanwhile(watched)}")
            most_s = _ABSENT_MOST_S
        watched.why = str(error)
        watched.due_s = time.monotonic() + watched.again_s
        watched.again_s = min(2 * watched.again_s, most_s)

    def _wait_for_server(self, until_s: float) -> None:
        """Wait until a server is there, or where frames go on without, until it is late.

        Raises:
            BackendUnavailableError: none is in time, and nothing goes on without.
        """
        while True:
            self._look_after()
            if any(watched.server.connected is not None for watched in self._all):
                return
            if time.monotonic() > until_s:
                if self._options.goes_on and self._options.refused_s:
                    return
                self._fail(BackendUnavailableError(self._too_long(self._whys())))
            connecting = [watched.connecting for watched in self._all if watched.connecting is not None]
            if connecting:
                wait(connecting, timeout=_POLLED_S, return_when="FIRST_COMPLETED")
            else:
                time.sleep(_POLLED_S)

    def _send(self, part: _Part) -> bool:
        """Give frames to the next server that has the fewest; False where none is there."""
        there = [watched for watched in self._all if watched.server.connected is not None]
        self._turn += 1
        order = sorted(
            range(len(there)), key=lambda place: (there[place].server.waiting, (place + self._turn) % len(there))
        )
        for place in order:
            watched = there[place]
            if self._regions is not None and part.room is None:
                part.room = _Room(*self._regions.take(tensor_sizes(part.frames, part.nhw)))
                part.room.region.write(part.frames, part.room.offsets[FRAMES])
            try:
                part.attempt = watched.server.send(part.frames, part.nhw[1:], self._deadline_s(), part.room)
            except ServerError as error:
                self._leave_room(part, is_answered=False)
                self._lost(watched, error)
            else:
                return True
        return False

    def _deadline_s(self) -> float:
        """After how long a frame is late."""
        slowest_s = max(self._took_s, default=0.0)
        if self._options.goes_on:
            return min(max(_LATE_S, _LATE_TIMES * slowest_s) * self._patience, _LATE_MOST_S)
        late_s = max(_LATE_OF_FILES_S, _LATE_TIMES_OF_FILES * slowest_s)
        return min(late_s * self._patience, max(self._options.wait_s, _LATE_S))

    def _most(self, size_hw: tuple[int, int]) -> int:
        """How many frames every server that is there takes at once."""
        there = [watched.server for watched in self._all if watched.server.connected is not None]
        fits = max(1, MOST_MASK_BYTES // (size_hw[0] * size_hw[1]))
        return min((fits, *(server.model_for(size_hw).most for server in there))) if there else 1

    def _away(self, why: str = "") -> ServerAwayError:
        """Why a frame has no mask; it is counted."""
        away = [watched for watched in self._all if watched.server.connected is None]
        for watched in away:
            watched.unmasked += 1
        self._unmasked += 1
        told = why or "; ".join(f"{watched.server}: {watched.why}" for watched in away)
        return ServerAwayError(f"no mask, for no server computes: {told}")

    def _whys(self) -> str:
        """Why no server is there."""
        return "; ".join(f"{watched.server}: {watched.why}" for watched in self._all)

    def _too_long(self, told: str) -> str:
        return (
            f"{told}: expected masks within {self._options.wait_s:g} s (--server-wait), got none: start the server, or name others, by "
            "their ports for gRPC"
        )

    def _fail(self, error: EdgemaskError) -> NoReturn:
        """End the run: what is in flight is not waited for."""
        self._failed = error
        raise error

    def _leave_room(self, part: _Part, *, is_answered: bool) -> None:
        """Give the memory of a part up, which a server may still write into unless it has answered."""
        if part.room is not None and self._regions is not None:
            (self._regions.give_back if is_answered else self._regions.leave)(part.room.region)
        part.room = None

    def _give_up(self, part: _Part) -> None:
        if part.attempt is not None:
            part.attempt.server.waiting -= 1
            part.attempt = None
        self._leave_room(part, is_answered=False)

    def _close(self) -> None:
        for parts in self._waiting:
            for part in parts:
                self._give_up(part)
        self._waiting.clear()
        if self._regions is not None:
            self._regions.close()
            for _ in range(_FORGET_TRIES):  # what a server still writes into it does not let go of
                holds = [watched for watched in self._all if not watched.server.forget()]
                if not holds:
                    break
                time.sleep(_FORGET_S)
        for watched in self._all:
            watched.server.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._unmasked:
            log.warning(f"warning: {self._unmasked} frames had no mask, for the servers were gone or busy")
