"""Slopes of what is sampled: a leak is found in noise, and noise is no leak."""

import numpy as np
import pytest

from benchmarks.shared.slopes import slope_of

TIMES_S = np.arange(0, 7200, 5.0)


def noise_of(seed):
    """What a process' memory does: steps that come and go, and last for a minute."""
    return np.repeat(np.random.default_rng(seed).normal(0, 3, len(TIMES_S) // 12), 12)


@pytest.mark.parametrize("per_hour", [2.0, -2.0])
def test_a_leak_is_found_in_noise(per_hour):
    found = slope_of(TIMES_S, 180 + TIMES_S / 3600 * per_hour * 3 + noise_of(1))
    assert found.low_per_hour < 3 * per_hour < found.high_per_hour
    assert found.verdict == ("it grows" if per_hour > 0 else "it falls")
    assert found.in_30_days == pytest.approx(found.per_hour * 720)
    assert found.blocks == 30


def test_noise_is_no_leak():
    verdicts = [slope_of(TIMES_S, 180 + noise_of(seed)).verdict for seed in range(40)]
    assert verdicts.count("within noise") >= 37


def test_one_gap_moves_no_slope():
    values = 180 + noise_of(2)
    values[700:720] = 2000
    assert slope_of(TIMES_S, values).verdict == "within noise"


def test_what_never_changes_is_within_noise():
    found = slope_of(TIMES_S, np.full(len(TIMES_S), 36))
    assert (found.per_hour, found.verdict) == (0, "within noise")


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="expected 16 samples or more for a slope, got 15"):
        slope_of(TIMES_S[:15], TIMES_S[:15])
