"""Run a pipeline of GStreamer, as ``gst-launch-1.0 -q`` does: ``gst_child.py PARENT FD``, a program of its own.

The words come through a file, one after the other with a zero byte behind each: command lines are seen by all users, and the words may
hold passwords. It needs GStreamer's library alone, none of this project's packages.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_LIBRARY = "libgstreamer-1.0.so.0"
_NULL, _PAUSED, _PLAYING = 1, 3, 4
_EOS, _ERROR, _CLOCK_LOST, _LATENCY = 1 << 0, 1 << 1, 1 << 10, 1 << 19
_POLL_NS = 50_000_000
_KILL_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG
_SET_NAME = 15


class _Error(ctypes.Structure):
    _fields_ = (("domain", ctypes.c_uint32), ("code", ctypes.c_int), ("message", ctypes.c_char_p))


def main() -> int:
    """Run it to its end; the exit status: 1 after an error, which is told on standard error."""
    parent, words_end = int(sys.argv[1]), int(sys.argv[2])
    if parent and sys.platform.startswith("linux"):
        # The kernel kills it when the thread that started it is gone, and so when our process is, however it ended.
        ctypes.CDLL(None).prctl(_KILL_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:
            return 1
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_SET_NAME, b"edgemask-gst")
    with open(words_end, "rb") as file:
        words = file.read().split(b"\0")[:-1]
    try:
        gst = _library()
    except (OSError, AttributeError) as problem:
        return _fail(f"ERROR: {_LIBRARY} cannot be used ({problem})")
    stopped: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: stopped.append(number))
    gst.gst_init(None, None)
    error = ctypes.POINTER(_Error)()
    pipeline = gst.gst_parse_launchv((ctypes.c_char_p * (len(words) + 1))(*words, None), ctypes.byref(error))
    if error or not pipeline:
        return _fail(f"WARNING: erroneous pipeline: {_text(error)}")
    try:
        return _play(gst, pipeline, stopped)
    finally:
        gst.gst_element_set_state(pipeline, _NULL)


def _play(gst: ctypes.CDLL, pipeline: int, stopped: list[int]) -> int:
    bus = gst.gst_element_get_bus(pipeline)
    gst.gst_element_set_state(pipeline, _PLAYING)  # that it fails is told on the bus
    while not stopped:
        message = gst.gst_bus_timed_pop_filtered(bus, _POLL_NS, _EOS | _ERROR)
        if message:
            if not gst.gst_message_get_structure(message):
                return 0  # the end, which says nothing more
            error = ctypes.POINTER(_Error)()
            gst.gst_message_parse_error(message, ctypes.byref(error), None)
            return _fail(f"ERROR: {_text(error)}")
        while message := gst.gst_bus_timed_pop_filtered(bus, 0, _LATENCY):
            gst.gst_mini_object_unref(message)
            gst.gst_bin_recalculate_latency(pipeline)
        while message := gst.gst_bus_timed_pop_filtered(bus, 0, _CLOCK_LOST):
            gst.gst_mini_object_unref(message)
            gst.gst_element_set_state(pipeline, _PAUSED)
            gst.gst_element_set_state(pipeline, _PLAYING)
    return 0


def _library() -> ctypes.CDLL:
    gst = ctypes.CDLL(_LIBRARY)
    pointer = ctypes.c_void_p
    for name, result, arguments in (
        ("gst_init", None, (pointer, pointer)),
        ("gst_parse_launchv", pointer, (pointer, pointer)),
        ("gst_element_set_state", ctypes.c_int, (pointer, ctypes.c_int)),
        ("gst_element_get_bus", pointer, (pointer,)),
        ("gst_bus_timed_pop_filtered", pointer, (pointer, ctypes.c_uint64, ctypes.c_int)),
        ("gst_message_get_structure", pointer, (pointer,)),
        ("gst_message_parse_error", None, (pointer, pointer, pointer)),
        ("gst_bin_recalculate_latency", ctypes.c_int, (pointer,)),
        ("gst_mini_object_unref", None, (pointer,)),
    ):
        function = getattr(gst, name)
        function.restype, function.argtypes = result, arguments
    return gst


def _text(error: ctypes._Pointer[_Error]) -> str:
    said = error.contents.message if error else None
    return " ".join((said or b"unknown").decode(errors="replace").split())


def _fail(line: str) -> int:
    os.write(2, f"{line}\n".encode())
    return 1


if __name__ == "__main__":
    sys.exit(main())
