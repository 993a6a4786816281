"""Two frames at once on a CPU."""

import os

import numpy as np
import pytest

from pipeline.engines import open_engine
from pipeline.errors import BundleError


def frames(count):
    return [np.full((1, 8, 12, 3), (10, 20, 5 * index), np.uint8) for index in range(count)]


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


def test_masks_come_in_order_each_with_its_frame(red_bundle):
    with open_engine(red_bundle, "onnxruntime", overlap=True) as engine:
        assert engine.in_flight == 3  # two at once, and one that waits for the first of them
        given = frames(20)
        engine.submit(given[0])
        engine.submit(given[1])
        for before, now in zip(given, given[2:], strict=False):
            engine.submit(now)
            np.testing.assert_array_equal(engine.collect(), before[..., 2])
        for before in given[-2:]:
            np.testing.assert_array_equal(engine.collect(), before[..., 2])


def test_one_at_a_time_without_it_and_on_one_core(red_bundle, monkeypatch):
    with open_engine(red_bundle, "onnxruntime") as engine:
        assert engine.in_flight == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    with open_engine(red_bundle, overlap=True) as engine:
        assert engine.in_flight == 1


def test_a_program_that_cannot_run_is_told_when_it_is_collected(red_bundle, monkeypatch):
    with open_engine(red_bundle, "onnxruntime", overlap=True) as engine:
        good, bad = frames(2)
        engine.submit(good)
        session = engine._session

        class Broken:
            def run(self, *_):
                raise RuntimeError("out of memory\nat somewhere")

        engine.submit(good)
        engine.collect()
        engine.collect()
        engine._session = Broken()
        engine.submit(bad)
        with pytest.raises(BundleError, match=r"cannot run it on frames \(1, 8, 12, 3\) uint8 \(out of memory\)"):
            engine.collect()
        engine._session = session
        engine.submit(good)
        np.testing.assert_array_equal(engine.collect(), good[..., 2])


def test_it_ends_while_frames_are_computed(red_bundle):
    engine = open_engine(red_bundle, "onnxruntime", overlap=True)
    for frame in frames(2):
        engine.submit(frame)
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.collect()
