"""When masks that were moved agree with computed ones, and when they are trusted."""

import numpy as np
import pytest

from pipeline.masks.agreement import Trust, agreement, counted_agreement


def mask_of(columns, value=255, rest=0):
    mask = np.full((100, 100), rest, np.uint8)
    mask[:, columns] = value
    return mask


def test_binary_masks_are_compared_at_a_half():
    left, middle = mask_of(slice(0, 40), 128, 127), mask_of(slice(20, 60))
    assert agreement(left, middle, "binary") == pytest.approx(20 / 60)
    assert agreement(left, left, "binary") == 1
    assert agreement(left, 255 - left, "binary") == 0


def test_of_class_maps_a_small_class_counts_as_much_as_a_large_one():
    here, there = mask_of(slice(0, 5), 7, 3), mask_of(slice(50, 55), 7, 3)
    assert agreement(here, there, "classes") == pytest.approx((0 + 90 / 100) / 2)
    assert agreement(here, here, "classes") == 1


@pytest.mark.parametrize("task", ["binary", "classes"])
def test_what_is_tiny_is_not_counted(task):
    empty = np.zeros((100, 100), np.uint8)
    speck, spot = empty.copy(), empty.copy()
    speck[:3, :3] = 255
    spot[:4, :4] = 255
    assert agreement(empty, speck, task) > 0.999
    assert agreement(empty, spot, task) < 0.51


def trust_after(*values, age=5):
    trust = Trust()
    for value in values:
        trust.add(age, value)
    return trust


def test_what_is_not_compared_is_no_agreement():
    empty = np.zeros((100, 100), np.uint8)
    spot = empty.copy()
    spot[:4, :4] = 255
    assert counted_agreement(empty, empty, "binary") is None
    assert counted_agreement(empty, spot, "binary") == 0
    assert counted_agreement(spot, spot, "binary", 0.002) is None


def test_nothing_is_trusted_before_it_was_measured():
    trust = Trust()
    assert not trust.holds
    assert not trust.allows(1)
    assert (trust.expected(1), trust.reach) == (0, 0)


def test_moved_masks_are_trusted_until_they_do_not_agree():
    assert trust_after(*[0.91] * 50).holds
    assert not trust_after(0.7).holds
    lost = trust_after(*[0.98] * 20, *[0.6] * 3)
    assert not lost.holds
    assert lost.expected(5) == pytest.approx(0.6)


def test_after_one_failure_among_many_comparisons_masks_wait_for_the_next():
    trust = trust_after(*[0.98] * 10)
    for value in [0.0, *[0.98] * 10, 0.0, *[0.98] * 10]:
        trust.add(5, value)
        assert trust.holds
        assert trust.allows(5) == (value > 0.9)


def test_masks_may_get_as_old_as_agreement_holds():
    trust = Trust()
    for _ in range(6):
        trust.add(5, 0.97, (10, 0.87))
    assert [trust.expected(age) for age in (3, 5, 8, 10)] == pytest.approx([0.97, 0.97, 0.91, 0.87])
    assert [trust.allows(age) for age in (5, 8, 9)] == [True, True, False]
    assert (trust.reach, trust.oldest) == pytest.approx((8.5, 10))
    # Without an old one, what was lost is lost again.
    assert trust_after(0.96).expected(10) == pytest.approx(0.92)
    assert trust_after(0.96).reach == pytest.approx(12.5)
    assert trust_after(1.0).reach == float("inf")


def test_where_none_are_good_enough_it_says_how_old_they_could_be():
    assert trust_after(0.8, 0.8).reach == pytest.approx(2.5)


def test_they_are_trusted_again_only_when_they_agree_well_and_for_a_while():
    lost = [0.98, *[0.5] * 4]
    assert not trust_after(*lost, *[0.92] * 100).holds  # enough to be kept, not to return
    holding = [trust_after(*lost, *[0.95] * count).holds for count in range(20)]
    assert holding == sorted(holding)
    assert holding.index(True) >= 3
    back = trust_after(*lost, *[0.95] * 20, *[0.91] * 50)
    assert back.holds
    # Also after one bad start.
    assert not trust_after(0.5, *[0.99] * 4).holds
    assert trust_after(0.5, *[0.99] * 5).holds
