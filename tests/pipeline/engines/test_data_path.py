"""What computes several frames at once, in the data path."""

import os

import numpy as np
import pytest

from pipeline.engines import open_engine
from pipeline.flow.run import run
from pipeline.flow.views import Views
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.sinks.base import Sink
from pipeline.sources.base import Source


class Clip(Source):
    """30 frames whose red channel is five times their number."""

    info = SourceInfo("clip", "")

    def __iter__(self):
        for index in range(30):
            yield Frame(np.full((8, 12, 3), (10, 20, 5 * index), np.uint8), index, index / 25, "clip", str(index))


class Kept(Sink):
    def __init__(self):
        self.seen = []

    def write(self, frame):
        assert (frame.mask == 5 * frame.index).all()
        self.seen.append(frame.index)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_every_frame_comes_once(red_bundle, backend, request, monkeypatch):
    if backend == "openvino":
        request.getfixturevalue("openvino")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    sink = Kept()
    with open_engine(red_bundle, backend, overlap=True) as engine:
        assert engine.in_flight > 1
        assert run(Clip(), engine, Views(lambda image, mask: image), [sink]).frames == 30
    assert sink.seen == list(range(30))
