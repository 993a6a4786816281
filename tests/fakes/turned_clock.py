"""A clock that a test turns, and threads that wait by it: hours in seconds, and the same order of events each time."""

import sys
import threading
import time
from types import SimpleNamespace

_HANGS_S = 30.0  # only a broken test waits so long


class TurnedClock:
    """Stands in for ``time`` and ``threading`` in the pipeline's modules, for as long as `install`'s patch does.

    Every thread that the pipeline starts, and each one that calls `enter`, belongs to the clock. It runs until it waits for
    something; `settle` returns when all of them wait for what is not there yet, or for a time that has not come.
    """

    def __init__(self):
        self.condition = threading.Condition()
        self.told = 0
        self._now_ns = 1_000_000_000_000
        self.wall_s = time.time()  # at 0
        self._threads = set()
        self._waits = {}

    def install(self, patch):
        """Put it into every module of the pipeline that has been imported."""
        turned_time = SimpleNamespace(
            **{
                name: getattr(time, name)
                for name in ("perf_counter", "perf_counter_ns", "process_time", "localtime", "strftime")
            },
            monotonic=lambda: self._now_ns / 1e9,
            monotonic_ns=lambda: self._now_ns,
            time=lambda: self.wall_s + self._now_ns / 1e9,
        )
        for name, module in list(sys.modules.items()):
            if name.startswith("pipeline.") and getattr(module, "time", None) is time:
                patch.setattr(module, "time", turned_time)
        turned_threading = SimpleNamespace(
            **{name: getattr(threading, name) for name in ("Lock", "RLock", "current_thread", "main_thread")},
            Condition=lambda: TurnedCondition(self),
            Event=lambda: TurnedEvent(self),
            Thread=lambda **given: TurnedThread(self, **given),
        )
        for name in ("pipeline.stages.prefetch", "pipeline.flow.reading", "pipeline.sources.live"):
            patch.setattr(sys.modules[name], "threading", turned_threading)

    @property
    def now_s(self):
        return self._now_ns / 1e9

    @property
    def now_ns(self):
        return self._now_ns

    def turn(self, seconds):
        """Let time go on, by steps at which all threads come to rest."""
        end_ns = self._now_ns + round(seconds * 1e9)
        while self._now_ns < end_ns:
            with self.condition:
                self._now_ns = min(end_ns, self._now_ns + max(round(seconds * 1e9) // 4, 100_000_000))
                self.condition.notify_all()
            self.settle()

    def settle(self):
        """Until nothing moves any more."""
        with self.condition:
            if not self.condition.wait_for(self._is_at_rest, _HANGS_S):
                stuck = [thread.name for thread in self._threads if thread not in self._waits]
                raise AssertionError(f"these threads do not come to rest: {stuck}")

    def wait_for(self, is_there, timeout_s=None):
        """On a thread of the clock's: until something is there, or so much later."""
        # Some time at least: what is computed in seconds may be left with less than the clock can tell, and would never end.
        deadline_ns = None if timeout_s is None else self._now_ns + max(1000, round(timeout_s * 1e9))
        thread = threading.current_thread()
        with self.condition:
            while not (found := is_there()) and (deadline_ns is None or self._now_ns < deadline_ns):
                self._waits[thread] = is_there, deadline_ns
                self.condition.notify_all()  # to who settles
                self.condition.wait()
                del self._waits[thread]
            return found

    def enter(self, thread):
        with self.condition:
            self._threads.add(thread)

    def leave(self, thread):
        with self.condition:
            self._threads.discard(thread)
            self.condition.notify_all()

    def _is_at_rest(self):
        return all(thread in self._waits and self._still_waits(*self._waits[thread]) for thread in self._threads)

    def _still_waits(self, is_there, deadline_ns):
        return not is_there() and (deadline_ns is None or self._now_ns < deadline_ns)


class TurnedCondition:
    """All conditions of a clock share one lock, so that it can see whether anybody has something to do."""

    def __init__(self, clock):
        self._clock = clock

    def __enter__(self):
        return self._clock.condition.__enter__()

    def __exit__(self, *what):
        return self._clock.condition.__exit__(*what)

    def wait_for(self, is_there, timeout=None):
        return self._clock.wait_for(is_there, timeout)

    def wait(self):
        before = self._clock.told
        self._clock.wait_for(lambda: self._clock.told != before)

    def notify_all(self):
        self._clock.told += 1
        self._clock.condition.notify_all()


class TurnedEvent:
    def __init__(self, clock):
        self._clock, self._is_set = clock, False

    def is_set(self):
        return self._is_set

    def set(self):
        with self._clock.condition:
            self._is_set = True
            self._clock.condition.notify_all()

    def wait(self, timeout=None):
        return self._clock.wait_for(self.is_set, timeout)


class TurnedThread(threading.Thread):
    """A thread that belongs to a clock from before its start to its end."""

    def __init__(self, clock, **given):
        super().__init__(**given)
        self._clock = clock

    def start(self):
        self._clock.enter(self)
        super().start()

    def run(self):
        try:
            super().run()
        finally:
            self._clock.leave(self)
