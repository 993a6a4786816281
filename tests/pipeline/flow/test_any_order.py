"""Whatever happens in whatever order: no frame that was promised is lost, no foreign file is deleted, no live run ends by itself.

The pipeline's own source, data path, recorder, JSON lines, page and signals; cameras, time, the disk's space and viewers are made up.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import tempfile
import threading
import time
import types
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import av
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pipeline.bundles.bundle import Manifest
from pipeline.command import job, service
from pipeline.command.outputs import ended
from pipeline.engines.base import Computed, Engine
from pipeline.engines.replaceable import ReplaceableEngine
from pipeline.errors import SinkError, SourceError
from pipeline.flow import run as flow
from pipeline.flow.views import Views
from pipeline.frames.frame import SourceInfo
from pipeline.page.options import PageOptions, Watched
from pipeline.page.sink import PageSink
from pipeline.render.annotations import Annotations
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.signals import StoppedError, uninterrupted
from pipeline.sinks import disk, journal
from pipeline.sinks.json_lines import JsonLinesSink
from pipeline.sinks.options import SinkOptions
from pipeline.sinks.recording import RecordingSink
from pipeline.sources.live import Connection, LiveSource, LostError, Picture, StreamClock
from pipeline.stages.stage_timer import StageTimer
from tests.fakes.numbered import number_of, numbers_in, picture
from tests.fakes.turned_clock import TurnedClock

# How many steps are taken in all: by default in a few seconds.
STEPS = int(os.environ.get("EDGEMASK_STEPS", "400"))
STEPS_OF_ONE = 40
SIZES_HW = ((48, 64), (64, 96))
MIN_FREE_BYTES = 3000
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INDEX_BYTES = 2000  # of a file, at most: with its first fragment
NOTICED_S = 1.0  # of a file that was taken away
YEAR_S = 31_536_000.0


class Scripted(Connection):
    """Gives what the test puts in: pictures, None for the end, or an error."""

    def __init__(self, clock):
        self._clock, self._script, self._is_cancelled, self.is_over = clock, [], False, False

    def put(self, what):
        with self._clock.condition:
            self._script.append(what)
            self._clock.condition.notify_all()

    def cancel(self):
        with self._clock.condition:
            self._is_cancelled = True
            self._clock.condition.notify_all()

    def __iter__(self):
        while True:
            self._clock.wait_for(lambda: self._script or self._is_cancelled)
            if self._is_cancelled:
                return
            what = self._script.pop(0)
            if what is None:
                return
            if isinstance(what, Exception):
                raise what
            yield what


class Quick(Engine):
    """The green channel as the mask."""

    description = "quick"

    def __init__(self):
        manifest = SimpleNamespace(frame_size_hw=None, pixels="bgr", task="binary", classes=("subject",))
        super().__init__(SimpleNamespace(manifest=manifest))
        self._masks = []

    def _submit(self, frames_nhwc):
        self._masks.append(frames_nhwc[..., 1].copy())

    def _collect(self):
        return Computed(self._masks.pop(0))

    def _close(self):
        pass


class Tape:
    """What the test knows of a file of the recording."""

    def __init__(self, path, run):
        self.path, self.run = path, run
        self.numbers = []
        self.fate = ""  # what somebody else did to it
        self.fate_s = self.last_s = 0.0
        self.is_finished = False


class WatchedRecording(RecordingSink):
    """The recorder, which tells the test of each frame whether it took it, and into which file."""

    def watch(self, world):
        self._world = world
        return self

    def write(self, frame):
        number = number_of(frame.view)
        try:
            super().write(frame)
        except Exception:
            self._world.refused.append(number)
            raise
        self._world.accept(number, self._segment)


class Told(job._Told):
    """What the command does with events, and which frames have gone out."""

    def __init__(self, world, timer, pulse, signals):
        super().__init__(timer, (), (pulse,), lambda frame, dropped: None, [], signals)
        self._world = world

    def written(self, frame, dropped):
        super().written(frame, dropped)
        self._world.out.append((number_of(frame.image), self._world.recorder.problem))


class Site(RuleBasedStateMachine):
    """A box with a camera, a disk and a page."""

    def __init__(self):
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, here and by the pipeline
        self.base = Path(tempfile.mkdtemp(prefix="edgemask-any-order-"))
        self.folder = self.base / "disk"
        self.folder.mkdir()
        self.clock = TurnedClock()
        self.clock.install(self.patch)
        self._make_disk()
        self.loop = asyncio.new_event_loop()
        self.visitors = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.visitors.start()
        self.connections, self.viewers = [], []
        self.tapes, self.by_segment, self.foreign = [], {}, {}
        self.refused, self.out = [], []
        self.sent, self.captured_s = 0, {}
        self.stamp_s, self.stamp_rate = 0.0, 1.0
        self.jumps = 0.0
        self.runs, self.thread, self.outcome = 0, None, None
        self.came_in = 0
        self.signals = None

    def _make_disk(self):
        """The disk's space and time stamps are the test's."""
        self.room_bytes, self.is_greedy = 10**9, False
        self.deleted_for_nothing = 0
        seen = {}

        def statvfs(_):
            free_bytes = 0 if self.is_greedy else max(0, self.room_bytes - self._used_bytes())
            return SimpleNamespace(f_bavail=free_bytes, f_frsize=1)

        def turned(real):
            def look(*where):
                found = real(*where)
                at_s = seen.setdefault((found.st_ino, found.st_mtime_ns), self.clock.wall_s + self.clock.now_s)
                return SimpleNamespace(
                    st_mode=found.st_mode,
                    st_size=found.st_size,
                    st_dev=found.st_dev,
                    st_ino=found.st_ino,
                    st_mtime=at_s,
                )

            return look

        self.patch.setattr(disk, "os", _with(os, statvfs=statvfs))
        self.patch.setattr(journal, "os", _with(os, lstat=turned(os.lstat), fstat=turned(os.fstat)))

    def _used_bytes(self):
        return sum(path.stat().st_size for path in self.folder.glob("*.mp4"))

    # A run of the command.

    @initialize(
        segment_s=st.sampled_from((4.0, 15.0)),
        keep_segments=st.sampled_from((None, 2, 4)),
        keep_bytes=st.sampled_from((None, 20_000)),
        keep_at_least_s=st.sampled_from((0.0, 0.0, 30.0)),
        has_page=st.booleans(),
    )
    def choose(self, has_page, **chosen):
        self.options = SinkOptions(**chosen, min_free_bytes=MIN_FREE_BYTES)
        self.has_page = has_page
        self.begin()

    @property
    def runs_now(self):
        return self.thread is not None

    def begin(self):
        self.runs += 1
        self.connections.clear()
        self.came_in, self.outcome = 0, None
        self.out_before = len(self.out)
        self.stack = contextlib.ExitStack()
        self.signals = self.stack.enter_context(uninterrupted())
        self.source = LiveSource(SourceInfo("yard", "made up", live=True), self._connect)
        self.renderer = Renderer(Look(), "binary")
        self.recorder = WatchedRecording(str(self.folder / "rec.mp4"), self.source.info, self.renderer, self.options)
        self.lines = JsonLinesSink(str(self.folder / "lines.jsonl"), self.source.info, self.renderer, self.options)
        sinks = [self.recorder.watch(self), self.lines]
        telemetry = self.source.telemetry
        self.health = service.Health([telemetry], sinks)
        timer = StageTimer()
        if self.has_page:
            sinks.append(self._open_page(telemetry, timer))
        views = Views(lambda image, mask: image.copy())
        self.models, self.replacing = [Quick()], None
        self.engine = ReplaceableEngine(self.models[0])
        told = Told(self, timer, service.Service(self.health, {}).pulse, self.signals)

        def work():
            try:
                with ended(sinks, live=True):
                    flow.run(self.source, self.engine, views, sinks, events=told)
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                self.outcome = error
            finally:
                self.engine.close()
                self.clock.leave(threading.current_thread())

        self.thread = threading.Thread(target=work, name="run", daemon=True)
        self.clock.enter(self.thread)
        self.thread.start()
        self.clock.settle()

    def _open_page(self, telemetry, timer):
        manifest = Manifest("u2netp", "binary", ("subject",), (32, 32), "fp32", {}, {}, {}, "")
        annotations = Annotations(manifest, "none", self.renderer, hud=False, legend=False)
        watched = Watched(
            {"yard": telemetry}, ("subject",), {"version": "0"}, self.health.problem, timer, self.health.outputs
        )
        self.page = PageSink(PageOptions("127.0.0.1:0"), watched, self.renderer, annotations)
        return self.page

    def _connect(self):
        self.connections.append(Scripted(self.clock))
        return self.connections[-1]

    def accept(self, number, segment):
        if id(segment) not in self.by_segment:
            for tape in self.tapes:
                tape.is_finished = True
            self.tapes.append(Tape(segment.path, self.runs))
            self.by_segment[id(segment)] = self.tapes[-1], segment
        tape = self.by_segment[id(segment)][0]
        assert tape.fate not in ("taken", "moved") or self.clock.now_s <= tape.fate_s + NOTICED_S + 0.1
        tape.numbers.append(number)
        tape.last_s = self.clock.now_s

    # What may happen.

    @precondition(lambda self: self.runs_now)
    @rule(count=st.integers(1, 12), gap_s=st.sampled_from((0.04, 0.2, 0.9)), size_hw=st.sampled_from(SIZES_HW))
    def frames_arrive(self, count, gap_s, size_hw):
        for _ in range(count):
            self._send(size_hw, gap_s)
            self.clock.settle()

    @precondition(lambda self: self.runs_now)
    @rule(count=st.integers(10, 25))
    def frames_arrive_for_a_while(self, count):
        self.frames_arrive(count, 1.0, SIZES_HW[0])

    @precondition(lambda self: self.runs_now)
    @rule(count=st.integers(2, 6))
    def frames_arrive_faster_than_they_are_taken(self, count):
        for _ in range(count):
            self._send(SIZES_HW[0], 0.001)
        self.clock.settle()

    def _send(self, size_hw, gap_s, *, corrupt=False):
        self.clock.turn(gap_s)
        if not self._is_connected():
            return
        self.stamp_s += gap_s * self.stamp_rate
        self.sent += 1
        self.came_in += 1
        self.captured_s[self.sent % 65536] = self.clock.now_s
        pixels = picture(self.sent % 65536, size_hw)
        stamp_s = None if self.stamp_rate < 0 else self.stamp_s
        self.connections[-1].put(Picture(pixels, stamp_s, corrupt, captured_ns=self.clock.now_ns))

    def _is_connected(self):
        return bool(self.connections) and not self.connections[-1]._is_cancelled and not self.connections[-1].is_over

    @precondition(lambda self: self.runs_now)
    @rule()
    def a_damaged_picture_arrives(self):
        self._send(SIZES_HW[0], 0.1, corrupt=True)
        self.clock.settle()

    @precondition(lambda self: self.runs_now)
    @rule(how=st.sampled_from(("ends", "breaks off", "is refused")))
    def the_camera_drops(self, how):
        if self._is_connected():
            first = self.source.telemetry.snapshot().frames_in == 0
            refusal = LostError("no answer") if first else SourceError("yard: expected to be let in, got 401")
            end = {"ends": None, "breaks off": LostError("broken pipe"), "is refused": refusal}[how]
            self.connections[-1].put(end)
            self.connections[-1].is_over = True
            self.clock.settle()

    @precondition(lambda self: self.runs_now and not (self.replacing and self.replacing.is_alive()))
    @rule()
    def another_model_is_to_take_over(self):
        self.models.append(Quick())
        self.replacing = threading.Thread(target=self.engine.replace, args=(self.models[-1],), daemon=True)
        self.replacing.start()
        while self.engine._next is not self.models[-1]:  # it takes over with the next frame
            time.sleep(0.001)

    @rule(seconds=st.sampled_from((0.5, 2.0, 7.0, 40.0)))
    def nothing_happens(self, seconds):
        self.clock.turn(seconds)

    @rule(jump_s=st.sampled_from((-1000.0, 0.0, 3.0, 1e6)), rate=st.sampled_from((-1.0, 0.0, 0.125, 1.0, 8.0)))
    def time_stamps_go_wrong(self, jump_s, rate):
        self.stamp_s += jump_s
        self.stamp_rate = rate

    @rule(jump_s=st.sampled_from((-10 * YEAR_S, -100.0, 100.0, YEAR_S)))
    def the_clock_jumps(self, jump_s):
        self.clock.wall_s += jump_s
        self.jumps += 1

    @rule(how=st.sampled_from(("not at all", "a little", "wholly", "by who takes all")))
    def the_disk_fills(self, how):
        self.is_greedy, self.deleted_for_nothing = how == "by who takes all", 0
        self.room_bytes = self._used_bytes() + {"a little": MIN_FREE_BYTES - 1000, "wholly": 0}.get(how, 10**9)

    @precondition(lambda self: self._at_work() is not None)
    @rule(how=st.sampled_from(("taken", "moved", "cut", "replaced")))
    def the_recording_goes_under_the_writer(self, how):
        tape = self._at_work()
        self._harm(tape, how)

    @precondition(lambda self: self._at_rest())
    @rule(how=st.sampled_from(("taken", "moved", "edited")), which=st.integers(0, 99))
    def somebody_takes_a_finished_recording(self, how, which):
        tapes = self._at_rest()
        self._harm(tapes[which % len(tapes)], how)

    def _harm(self, tape, how):
        tape.fate, tape.fate_s = "taken" if how == "replaced" else how, self.clock.now_s
        if how == "cut":
            os.truncate(tape.path, tape.path.stat().st_size // 2)
        elif how == "edited":
            with tape.path.open("ab") as file:
                file.write(b"\0" * 64)
            self._claim(tape.path)
        elif how == "moved":
            moved = self.folder / f"kept-{len(self.tapes)}-{tape.path.name}"
            tape.path = tape.path.rename(moved)
            self._claim(moved, grows=not tape.is_finished)
        else:
            tape.path.unlink()
            if how == "replaced":
                tape.path.write_bytes(b"somebody else's")
                self._claim(tape.path)

    @precondition(lambda self: self.runs_now and self.folder.is_dir())
    @rule()
    def the_disk_is_pulled_out(self):
        there = self.base / f"pulled-{len(list(self.base.iterdir()))}"
        self.folder.rename(there)
        for tape in self.tapes:
            if (
                tape.path.parent == self.folder
                and (there / tape.path.name).exists()
                and tape.fate not in ("taken", "deleted")
            ):
                tape.fate, tape.fate_s = tape.fate if tape.fate in ("cut", "edited") else "moved", self.clock.now_s
            if tape.path.parent == self.folder:
                tape.path = there / tape.path.name
        moved = {path: there / path.name for path in self.foreign if path.parent == self.folder}
        self.foreign = {moved.get(path, path): content for path, content in self.foreign.items()}

    @precondition(lambda self: (self.folder / "lines.jsonl").exists())
    @rule(how=st.sampled_from(("deleted", "moved", "emptied")))
    def the_lines_go_under_the_writer(self, how):
        path = self.folder / "lines.jsonl"
        if how == "emptied":
            os.truncate(path, 0)
        elif how == "deleted":
            path.unlink()
        else:
            self._claim(path.rename(self.base / f"lines-{len(list(self.base.iterdir()))}"), grows=True)

    @precondition(lambda self: self.folder.is_dir())
    @rule(ahead=st.integers(0, 2), copied=st.booleans())
    def a_foreign_file_has_a_recordings_name(self, ahead, copied):
        last = max([int(path.stem[4:]) for path in self.folder.glob("rec-*.mp4")], default=0)
        path = self.folder / f"rec-{last + ahead:04d}.mp4"
        if not path.exists():
            finished = self._at_rest()
            path.write_bytes(finished[0].path.read_bytes() if copied and finished else b"not ours")
            self._claim(path)

    def _claim(self, path, *, grows=False):
        self.foreign[path] = None if grows else path.read_bytes()

    def _at_work(self):
        if self.runs_now and self.tapes and not self.tapes[-1].is_finished and not self.tapes[-1].fate:
            return self.tapes[-1] if self.tapes[-1].path.exists() else None
        return None

    def _at_rest(self):
        return [tape for tape in self.tapes if tape.is_finished and not tape.fate and tape.path.exists()]

    @precondition(lambda self: self.runs_now and self.has_page and len(self.viewers) < 3)
    @rule(stalls=st.booleans())
    def a_viewer_comes(self, stalls):
        async def come():
            session = aiohttp.ClientSession()
            socket = await session.ws_connect(f"{self.page.url}live", max_msg_size=0)
            await socket.send_json({"watch": [0]})
            looking = None if stalls else asyncio.create_task(_look(socket))
            return session, looking

        self.viewers.append(self._outside(come()))

    @precondition(lambda self: self.viewers)
    @rule(which=st.integers(0, 2))
    def a_viewer_leaves(self, which):
        self._outside(_leave(*self.viewers.pop(which % len(self.viewers))))

    @precondition(lambda self: self.runs_now)
    @rule(number=st.sampled_from(ENDS))
    def a_signal_comes(self, number):
        signal.raise_signal(number)
        self.clock.turn(flow.IDLE_S)
        self._see_that_it_ended(number)

    @precondition(lambda self: not self.runs_now)
    @rule()
    def it_is_started_again(self):
        self.begin()

    def _see_that_it_ended(self, number):
        self.thread.join(20)
        assert not self.thread.is_alive()
        if self.replacing is not None:
            self.replacing.join(20)
        assert all(model._closed for model in self.models)
        was_cut = any(tape.fate == "cut" and not tape.is_finished for tape in self.tapes)
        if not (was_cut and isinstance(self.outcome, SinkError)):  # which is told as the recording is ended
            assert isinstance(self.outcome, StoppedError), self.outcome
            assert self.outcome.number == number
        for tape in self.tapes:
            tape.is_finished = True
        while self.viewers:
            self._outside(_leave(*self.viewers.pop()))
        self.stack.__exit__(StoppedError, StoppedError(number), None)
        self.thread = None

    def _outside(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    # What holds at any time.

    @invariant()
    def one_model_runs_and_at_most_one_waits(self):
        if self.runs_now:
            assert not self.models[-1]._closed
            waits = self.replacing is not None and self.replacing.is_alive()
            assert sum(not model._closed for model in self.models) <= 1 + waits

    @invariant()
    def it_goes_on(self):
        assert not self.runs_now or (self.thread.is_alive() and self.outcome is None), self.outcome

    @invariant()
    def foreign_files_are_as_they_were(self):
        for path, content in self.foreign.items():
            assert path.exists(), f"{path.name} is gone"
            assert content is None or path.read_bytes() == content

    @invariant()
    def every_frame_is_accounted_for(self):
        if not self.runs_now:
            return
        now = self.source.telemetry.snapshot()
        assert now.in_flight == 0
        assert now.frames_in == now.frames_out + sum(now.dropped.values()) == self.came_in
        assert len(self.out) - self.out_before == now.frames_out
        taken = {number for tape in self.tapes for number in tape.numbers} | set(self.refused)
        for number, problem in self.out:
            assert number in taken or problem, f"frame {number} went out and is in no file"
        assert self.health.outputs() == [problem for problem in (self.recorder.problem, self.lines.failed) if problem]

    @invariant()
    def only_what_may_go_is_deleted(self):
        if self.recorder._segment is None:  # it has stopped
            for tape in self.tapes:
                tape.is_finished = True
        there = [tape for tape in self.tapes if not tape.fate and tape.path.exists()]
        for tape in self.tapes:
            if tape.fate or tape.path.exists():
                continue
            tape.fate = "deleted"
            options = self.options
            assert tape.is_finished
            self.deleted_for_nothing += self.is_greedy
            assert self.deleted_for_nothing <= 1, "files are deleted although another program takes the room"
            assert options.keep_segments is not None or options.keep_bytes is not None
            assert all(other.last_s >= tape.last_s for other in there), "a newer file was deleted before an older one"
            if tape.run == self.runs or not self.jumps:  # the age of an earlier run's is told by the clock alone
                assert self.clock.now_s - tape.last_s >= options.keep_at_least_s
        if self.options.keep_segments is not None and not self.options.keep_at_least_s:
            assert len(there) <= self.options.keep_segments

    def teardown(self):
        try:
            if self.runs_now and self.outcome is None:
                self._all_is_well_again()
                self.a_signal_comes(signal.SIGTERM)
            self._see_what_was_recorded()
        finally:
            if self.runs_now:  # it failed: end it all the same
                self.signals.append(signal.SIGTERM)
                with contextlib.suppress(AssertionError):
                    self.clock.turn(60)
                self.stack.__exit__(StoppedError, StoppedError(signal.SIGTERM), None)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.visitors.join()
            self.loop.close()
            self.patch.undo()
            shutil.rmtree(self.base)

    def _all_is_well_again(self):
        """Then it records again, soon."""
        self.the_disk_fills("not at all")
        wanted = self.sent + 3
        for _ in range(100):  # in seconds: it waits for 30 between two attempts to connect, at most
            self.clock.turn(1.0)
            self._send(SIZES_HW[0], flow.AGAIN_S)
            self.clock.settle()
            if self.sent == wanted:
                break
        assert self.recorder.problem == ""
        assert self.sent % 65536 in self.tapes[-1].numbers
        assert self.lines.failed == ""
        last_line = (self.folder / "lines.jsonl").read_text().splitlines()[-1]
        assert json.loads(last_line)["index"] == self.source._index - 1
        self.it_goes_on()
        self.foreign_files_are_as_they_were()
        self.every_frame_is_accounted_for()
        self.only_what_may_go_is_deleted()

    def _see_what_was_recorded(self):
        for tape in self.tapes:
            if tape.fate in ("taken", "deleted", "edited") or not tape.path.exists():
                continue
            try:
                frames = numbers_in(tape.path)
            except av.error.InvalidDataError:  # it was cut in the middle of its index
                assert tape.fate == "cut"
                assert tape.path.stat().st_size < INDEX_BYTES
                continue
            found = [number for number, _ in frames]
            if tape.fate == "cut" and not found:  # before its first picture was whole
                continue
            if tape.fate != "cut":
                assert found[: len(tape.numbers)] == tape.numbers
            # A frame in which it was noticed that the file had gone is in it, and counted as lost.
            assert set(found[len(tape.numbers) :]) <= set(self.refused)
            assert found[: len(tape.numbers)] == tape.numbers[: len(found)]
            lasts_s = frames[-1][1] - frames[0][1]
            took_s = self.captured_s[found[-1]] - self.captured_s[found[0]]
            assert lasts_s == pytest.approx(took_s, rel=0.01, abs=StreamClock._JUMP_S)


async def _look(socket):
    async for message in socket:
        if message.type is aiohttp.WSMsgType.BINARY:
            await socket.send_json({"shown": message.data[0]})


async def _leave(session, looking):
    if looking is not None:
        looking.cancel()
    await session.close()


def _with(module, **changed):
    """A module with other functions under some of its names."""
    proxy = types.ModuleType(module.__name__)
    proxy.__dict__.update(module.__dict__)
    proxy.__dict__.update(changed)
    return proxy


def test_any_order():
    run_state_machine_as_test(
        Site,
        settings=settings(
            max_examples=max(1, STEPS // STEPS_OF_ONE),
            stateful_step_count=STEPS_OF_ONE,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
