"""Sources that join a run and leave it."""

import os
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.engines.base import Computed, Engine
from pipeline.errors import SourceError
from pipeline.flow.events import Events
from pipeline.flow.run import run
from pipeline.flow.views import Views
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.masks.governor import Governor
from pipeline.sinks.base import Sink
from pipeline.sinks.of_source import OfSource
from pipeline.sources.base import Source
from pipeline.stages.telemetry import STOPPED

WAIT_S = 60  # only a broken test waits so long


class Red(Engine):
    """The red channel as the mask."""

    def __init__(self):
        super().__init__(SimpleNamespace(manifest=SimpleNamespace(frame_size_hw=None, pixels="bgr")))
        self._masks = []

    def _submit(self, frames_nhwc):
        self._masks.append(frames_nhwc[..., 2].copy())

    def _collect(self):
        return Computed(self._masks.pop(0))

    def _close(self):
        pass


class Endless(Source):
    """Frames of one number, until it is closed or told to fail; live ones at a rate."""

    def __init__(self, name, number=7, live=False):
        self.info = SourceInfo(name, name, live=live)
        self._number, self.fails, self.closed = number, threading.Event(), threading.Event()

    def __iter__(self):
        index = 0
        while not self.closed.is_set():
            if self.fails.is_set():
                raise SourceError(f"{self.info.name}: gone")
            yield Frame(np.full((2, 3, 3), self._number, np.uint8), index, index / 25, self.info.name, str(index))
            index += 1
            if self.info.live:
                self.closed.wait(0.002)

    def close(self):
        self.closed.set()


class Noisy(Endless):
    """Pictures that all differ a little, so that each is worth computing."""

    def __init__(self, name, random):
        super().__init__(name)
        self._random = random

    def __iter__(self):
        for frame in super().__iter__():
            frame.pixels = self._random.integers(100, 140, (16, 16, 3), np.uint8)
            yield frame


class Kept(Sink):
    def __init__(self):
        self.indices, self.last, self.stopped = [], None, False

    def write(self, frame):
        self.indices.append(frame.index)
        self.last = frame


class Told(Events):
    def __init__(self):
        super().__init__()
        self.lineup, self.calls, self.errors = None, [], []

    def begun(self, lineup):
        self.lineup = lineup

    def pulse(self):
        while self.calls:
            self.calls.pop(0)()

    def lost(self, error):
        self.errors.append(error)


class Site:
    """A run on a thread of its own."""

    def __init__(self, *sources, views=None, engine=None):
        self._engine = engine or Red()
        self.events, self.kept, self.error = Told(), {}, None
        self.all = Kept()
        sinks = [self.all, *(self.sink(source) for source in sources)]
        self.thread = threading.Thread(target=self._work, args=(sources, sinks, views), daemon=True)
        self.thread.start()
        self.wait(lambda: self.events.lineup is not None)
        self.lineup = self.events.lineup

    def sink(self, source):
        self.kept[source.info.name] = OfSource(source.info.name, Kept())
        return self.kept[source.info.name]

    def _work(self, sources, sinks, views):
        try:
            self.result = run(
                list(sources), self._engine, views or Views(lambda image, mask: image), sinks, events=self.events
            )
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def indices(self, name):
        return self.kept[name]._sink.indices

    def wait(self, condition):
        deadline_s = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline_s
            time.sleep(0.002)

    def on_run(self, call):
        done = threading.Event()
        self.events.calls.append(lambda: (call(), done.set()))
        assert done.wait(WAIT_S)

    def join(self, source):
        sink = self.sink(source)
        self.on_run(lambda: self.lineup.join(source, [sink]))

    def leave(self, source):
        self.lineup.leave(source)
        self.wait(lambda: self.lineup.has_left(source))
        self.on_run(lambda: self.lineup.forget(source, [self.kept[source.info.name]]))
        source.close()

    def end(self):
        self.all.stopped = True
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()


def pulled(site, count=3):
    wanted = len(site.all.indices) + count
    site.wait(lambda: len(site.all.indices) >= wanted)


@pytest.mark.parametrize("live", [False, True])
def test_one_joins_and_leaves_twenty_times_and_nothing_of_it_stays(live):
    yard = Endless("yard", live=live)
    site = Site(yard)
    pulled(site)
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for number in range(20):
        door = Endless("door", number, live=live)
        site.join(door)
        site.wait(lambda: len(site.indices("door")) >= 3)
        site.leave(door)
        snapshot = door.telemetry.snapshot()
        assert snapshot.in_flight == 0
        assert snapshot.frames_out == len(site.indices("door"))  # all that the engine got are written
        assert set(snapshot.dropped) <= {STOPPED, "newer"}
        assert (site.kept["door"]._sink.last.mask == number).all()
        if not live:
            assert site.indices("door") == list(range(len(site.indices("door"))))
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert threading.active_count() == threads
    site.end()
    if not live:
        assert site.indices("yard") == list(range(len(site.indices("yard"))))
    assert site.error is None
    assert site.result.frames == len(site.all.indices)


def test_the_only_one_is_replaced_while_the_run_is_held():
    first, second = Endless("first"), Endless("second", 9)
    site = Site(first)
    pulled(site)
    site.lineup.hold(on=True)
    site.leave(first)
    time.sleep(0.05)  # in which it would end
    assert site.thread.is_alive()
    site.join(second)
    site.lineup.hold(on=False)
    site.wait(lambda: len(site.indices("second")) >= 3)
    site.end()
    assert site.error is None


def test_when_nobody_is_left_and_nobody_will_come_it_ends():
    first = Endless("first")
    site = Site(first)
    pulled(site)
    site.lineup.hold(on=True)
    site.leave(first)
    site.lineup.hold(on=False)
    site.thread.join(WAIT_S)
    assert not site.thread.is_alive()
    assert site.error is None
    assert site.result.frames == len(site.indices("first"))


def test_the_last_one_may_fail_while_another_is_about_to_join():
    first, second = Endless("first"), Endless("second")
    site = Site(first)
    pulled(site)
    site.lineup.hold(on=True)
    first.fails.set()
    site.wait(lambda: site.events.errors)
    assert site.thread.is_alive()
    site.join(second)
    site.lineup.hold(on=False)
    site.wait(lambda: len(site.indices("second")) >= 3)
    second.fails.set()
    site.thread.join(WAIT_S)
    assert not site.thread.is_alive()
    assert [str(error) for error in site.events.errors] == ["first: gone"]
    assert str(site.error) == "second: gone"


class Slow(Red):
    """Takes longer for a frame than the next few need to come."""

    def _collect(self):
        time.sleep(0.02)
        return super()._collect()


def test_with_a_governor_all_frames_of_who_leaves_are_written_though_one_is_still_computed():
    governor, random = Governor(1000, "binary"), np.random.default_rng(7)
    views = Views(lambda image, mask: image, governor=governor)
    site = Site(Noisy("yard", random), views=views, engine=Slow())
    for _ in range(10):
        door = Noisy("door", random)
        governor.join(door)
        site.join(door)
        site.wait(lambda: len(site.indices("door")) >= 5)
        site.leave(door)
        governor.leave(door)
        assert site.indices("door") == list(range(len(site.indices("door"))))
    pulled(site)
    assert site.error is None
    assert set(governor._sources) == {"yard"}
    site.end()
    assert site.error is None
