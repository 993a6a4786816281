"""Ranges of activations from histograms."""

import numpy as np
import pytest
import torch

from calibration.ranges import LEVELS, METHODS, Histogram


def histogram(*batches):
    counted = Histogram()
    for batch in batches:
        counted.add(torch.as_tensor(batch, dtype=torch.float32))
    return counted


def squared_error(values, limit):
    step = limit / LEVELS
    return float(((np.clip(np.round(values / step), -LEVELS, LEVELS) * step - values) ** 2).sum())


def test_max_is_the_largest_absolute_value_of_all_frames():
    assert histogram([1.0, -3.5], [2.0, 0.0]).range("max") == 3.5
    assert histogram([0.5], [100.0], [-250.0]).range("max") == 250.0


def test_the_smallest_squared_error_is_found():
    values = np.random.default_rng(0).normal(0, 1, 200_000)
    values[:20] = 12.0  # a few outliers are worth clipping
    found = histogram(*np.array_split(values, 7)).range("mse")
    limits = np.linspace(0.2, 1.0, 81) * 12.0
    best = min(squared_error(values, limit) for limit in limits)
    assert found < 11.9
    assert squared_error(values, found) <= 1.02 * best


def test_frames_that_come_later_may_be_larger():
    random = np.random.default_rng(1)
    batches = [random.normal(0, scale, 5000) for scale in (0.01, 1.0, 30.0)]
    grown, at_once = histogram(*batches), histogram(np.concatenate(batches))
    for method in METHODS:
        assert grown.range(method) == pytest.approx(at_once.range(method), rel=0.05)


def test_percentile_leaves_out_the_rarest():
    values = np.linspace(0, 10, 1_000_001)
    assert histogram(values).range("percentile") == pytest.approx(9.999, abs=0.01)
    values[:10] = 1000.0
    assert histogram(values).range("percentile") == pytest.approx(10.0, abs=0.3)


def test_entropy_clips_a_long_tail_and_keeps_an_even_spread():
    random = np.random.default_rng(2)
    tail = np.concatenate([random.exponential(1.0, 400_000), [60.0]])
    assert histogram(tail).range("entropy") < 40
    assert histogram(random.uniform(0, 1, 400_000)).range("entropy") > 0.9


@pytest.mark.parametrize("method", METHODS)
def test_nothing_but_zeros(method):
    assert histogram(np.zeros(100)).range(method) == 0.0
    assert Histogram().range(method) == 0.0
    assert histogram(np.zeros(10), [0.0, 4.0]).range("max") == 4.0


def test_memory_does_not_grow_with_the_frames():
    counted = Histogram()
    counted.add(torch.rand(1000))
    before = counted._counts.nbytes
    for _ in range(50):
        counted.add(torch.rand(1000) * 100)
    assert counted._counts.nbytes == before
    assert counted._counts.sum() == 51_000
