"""Ranges of activations from histograms."""

import numpy as np
import pytest
import torch

from calibration.int8.ranges import LEVELS, METHODS, Histograms


def histogram(*batches):
    counted = Histograms()
    for batch in batches:
        values = torch.as_tensor(np.array(batch), dtype=torch.float32)
        for part in values.split(16_000):  # of larger maps a sample would do
            counted.add(part.view(1, 1, -1, 1))
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
        assert grown.range(method) == pytest.approx(at_once.range(method), rel=0.1)


def test_percentile_leaves_out_the_rarest():
    values = np.linspace(0, 10, 1_000_001)
    assert histogram(values).range("percentile") == pytest.approx(9.999, abs=0.01)
    values[:10] = 1000.0
    assert histogram(values).range("percentile") == pytest.approx(10.0, abs=1.0)


def test_entropy_clips_a_long_tail_and_keeps_an_even_spread():
    random = np.random.default_rng(2)
    tail = np.concatenate([random.exponential(1.0, 400_000), [60.0]])
    assert histogram(tail).range("entropy") < 40
    assert histogram(random.uniform(0, 1, 400_000)).range("entropy") > 0.9


@pytest.mark.parametrize("method", METHODS)
def test_nothing_but_zeros(method):
    assert histogram(np.zeros(100)).range(method) == 0.0
    assert Histograms().range(method) == 0.0
    assert histogram(np.zeros(10), [0.0, 4.0]).range("max") == 4.0


def test_memory_does_not_grow_with_the_frames():
    counted = Histograms()
    counted.add(torch.rand(1, 3, 20, 20))
    before = counted._counts.nbytes
    for _ in range(50):
        counted.add(torch.rand(1, 3, 20, 20) * 100)
    assert counted._counts.nbytes == before
    assert counted._counts.sum() == 51 * 1200


def test_of_a_large_map_a_sample_is_counted_but_the_largest_value_is_known():
    x = torch.rand(1, 2, 600, 500)
    x[0, 1, 123, 77] = 9.0
    counted = Histograms()
    counted.add(x)
    assert counted._counts.sum() < 2 * 40_000
    assert counted.reach.tolist() == [float(x[0, 0].max()), 9.0]


def test_some_channels_multiplied_are_as_if_counted_so():
    random = np.random.default_rng(3)
    x = torch.from_numpy(random.normal(0, 1, (2, 4, 50, 50)).astype(np.float32)) * torch.tensor([1.0, 50, 3, 0.1]).view(
        1, -1, 1, 1
    )
    factors = np.array([2.0, 1.0, 0.5, 30.0])
    counted, directly = Histograms(), Histograms()
    counted.add(x)
    chosen = np.array([0, 2, 3])
    directly.add((x * torch.from_numpy(factors).float().view(1, -1, 1, 1))[:, chosen])
    for method in METHODS:
        assert counted.range(method, chosen, factors) == pytest.approx(directly.range(method), rel=0.05)
