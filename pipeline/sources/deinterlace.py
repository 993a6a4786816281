"""Fields that were woven into frames, each half of a picture at a time of its own, become whole pictures again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction

import av
import av.error
from av.filter import Graph

# As many pictures as frames, and progressive ones of the same file as they are.
_FILTER = "bwdif", "mode=send_frame:deint=interlaced"
_UNIT = Fraction(1, 25)


class Deinterlacer:
    """Decoded pictures as they come to those to be shown, by FFmpeg's bwdif; for one thread.

    It does nothing up to the first picture that is marked as interlaced. From then on it holds one picture back, for the filter looks
    at the next one too. As many come out as went in, in order, with their times.

    Args:
        note: told in a sentence what is done.
    """

    def __init__(self, note: Callable[[str], None] = lambda _: None) -> None:
        self._note = note
        self._graph: Graph | None = None
        self._of: tuple[int, int, str] | None = None
        self._times: deque[tuple[int | None, Fraction | None]] = deque()
        self._cannot = False

    def __call__(self, decoded: av.VideoFrame) -> Iterator[av.VideoFrame]:
        """Take a picture, and give those that are ready."""
        if self._cannot or (self._graph is None and not decoded.interlaced_frame):
            yield decoded
            return
        if self._of != (kind := (decoded.width, decoded.height, decoded.format.name)):
            yield from self.rest()
            try:
                self._graph, self._of = _graph(decoded), kind
            except (
                av.error.FFmpegError,
                ValueError,
            ):  # an FFmpeg that was built without it: who takes the pictures tells
                self._cannot = True
                yield decoded
                return
            self._note("interlaced: the two fields of a frame are made one picture (bwdif)")
        assert self._graph is not None
        self._times.append((decoded.pts, decoded.time_base))
        decoded.pts, decoded.time_base = len(self._times), _UNIT
        self._graph.push(decoded)
        yield from self._ready()

    def rest(self) -> Iterator[av.VideoFrame]:
        """What was held back, at the end."""
        if self._graph is not None:
            self._graph.push(None)
            yield from self._ready()
        self._graph = self._of = None

    def _ready(self) -> Iterator[av.VideoFrame]:
        assert self._graph is not None
        while self._times:
            try:
                shown = self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            assert isinstance(shown, av.VideoFrame)
            shown.pts, shown.time_base = self._times.popleft()
            yield shown


def _graph(decoded: av.VideoFrame) -> Graph:
    graph = Graph()
    source = graph.add_buffer(width=decoded.width, height=decoded.height, format=decoded.format, time_base=_UNIT)
    graph.link_nodes(source, graph.add(*_FILTER), graph.add("buffersink")).configure()
    return graph
