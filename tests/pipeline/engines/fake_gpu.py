"""A GPU that is none: memory is numpy arrays, a stream is a list of work that nobody has done yet.

Queued work is done when somebody waits for it, in an order that CUDA allows and an engine does not hope for (``Gpu.schedule``).
What CUDA leaves undefined, such as freeing memory in use, is a fault here, and a fault fails the test. The file is executed anew
for each test: ``gpu`` is the test's own. ``fake_cuda``, ``fake_cuda_graph`` and ``fake_tensorrt`` are the libraries on top of it.
"""

import threading
import weakref
from collections import Counter, defaultdict

import numpy as np

Error = type("Error", (Exception,), {})
LogicError, OutOfMemory, LaunchError, DriverError = (
    type(name, (Error,), {}) for name in ("LogicError", "MemoryError", "LaunchError", "RuntimeError")
)


class DefaultStream:
    """Stream 0 of a context. As any other here: who wants to be behind it says so."""

    def __init__(self):
        self._queue = []


class Gpu:
    """What a test sets before it starts, and looks at afterwards."""

    def __init__(self):
        self.present = True
        self.integrated = False
        self.capability = (8, 9)
        self.schedule = "late"  # "late": only what is waited for; "others first": other streams first; "eager": at once
        self.allocations_left = None  # how many more mem_alloc succeed; None for any number
        self.broken = ""  # CUDA's words for an error that never goes away again
        self.refuse_push = False
        self.refuse_capture = ""  # "begin", "execute" or "instantiate"
        self.faults = []
        self.calls = []  # names of the driver's functions, in the order of the calls
        self.done = []  # names of the work that was done, in that order
        self.alive = Counter()
        self.memory = {}  # address: bytes
        self.streams = weakref.WeakValueDictionary()  # by handle
        self.default_stream = DefaultStream()
        self.streams[0] = self.default_stream
        self.stacks = defaultdict(list)  # contexts by thread
        self.capture = None
        self._next_address = 0x7F0000000000

    def fault(self, text):
        self.faults.append(text)
        raise AssertionError(text)

    @property
    def stack(self):
        return self.stacks[threading.current_thread()]

    def call(self, name, *, waits=False):
        """What every function of the driver does first."""
        if not self.stack:
            raise LogicError(f"{name} failed: invalid device context")
        if self.broken:
            raise LogicError(f"{name} failed: {self.broken}")
        if waits and self.capture is not None:
            self.capture.spoilt = True
            raise LogicError(f"{name} failed: operation not permitted when stream is capturing")
        self.calls.append(name)

    def map(self, array):
        """Give an array an address on the device."""
        address, self._next_address = self._next_address, self._next_address + array.size + 4096
        self.memory[address] = array
        return address

    def at(self, address, size):
        """The bytes at an address, which must all be allocated."""
        for base, array in list(self.memory.items()):  # a decoder may map more meanwhile
            if base <= address and address + size <= base + array.size:
                return array[address - base : address - base + size]
        return self.fault(f"{size} bytes at {address:#x} are not allocated")

    def unused(self, array, what):
        """Refuse that memory goes while queued work needs it."""
        for stream in self.streams.values():
            for work in stream._queue:
                if not self.broken and any(np.shares_memory(array, used) for used in work.uses):
                    self.faults.append(f"{what} is freed before {work.name} is done")

    def put(self, stream, work):
        if stream is None:
            if self.capture is not None and self.capture.stream._is_blocking:
                raise LogicError("operation would make the legacy stream depend on a capturing blocking stream")
            stream = self.default_stream
        if self.capture is not None and self.capture.stream is stream:
            self.capture.works.append(work)
            return
        work.queue = stream._queue
        stream._queue.append(work)
        if self.schedule == "eager":
            self._run_ready(None)

    def finish(self, work):
        while not work.done:
            self.step(work.queue)

    def step(self, queue):
        """Do the first work of a stream, after what it waits for."""
        work = queue[0]
        if work.needs is not None:
            self.finish(work.needs)
        if self.schedule == "others first":
            self._run_ready(queue)
        if not work.done:
            self._run(work)

    def _run_ready(self, apart_from):
        for stream in list(self.streams.values()):
            queue = stream._queue
            while queue and queue is not apart_from and (queue[0].needs is None or queue[0].needs.done):
                self._run(queue[0])

    def _run(self, work):
        work.run()
        work.done = work.queue.pop(0) is work
        self.done.append(work.name)


gpu = Gpu()


class Work:
    """One entry of a stream's queue, done after ``needs``; ``uses`` is the memory that it reads and writes."""

    def __init__(self, name, run=lambda: None, *, needs=None, uses=(), graph=None):
        self.name, self.run, self.needs, self.uses, self.graph = name, run, needs, uses, graph
        self.queue, self.done = None, False


class Strict:
    """Takes no attribute that its class does not have, as classes of C++ do."""

    def __setattr__(self, name, value):
        if not name.startswith("_") and not hasattr(type(self), name):
            raise AttributeError(f"{type(self).__name__} has no {name}")
        object.__setattr__(self, name, value)
