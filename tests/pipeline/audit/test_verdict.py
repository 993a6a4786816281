import math

import numpy as np
import pytest

from pipeline.audit.verdict import FEWEST, WINDOW, Gate, Verdict, lower_end
from pipeline.bundles.bundle import Manifest
from pipeline.bundles.plan_entry import PlanEntry
from pipeline.frames.audited import Audited


def gate_of(verification, *plans):
    entries = tuple(PlanEntry(verification=plan) for plan in plans)
    about = ("net", "binary", ("subject",), (8, 8), "fp16", {}, {}, {}, "")
    return Gate.of(Manifest(*about, verification=verification, engines=entries))


def audited(iou, index=0, *, judged=True, mae=0.0, empty=False, source="door"):
    return Audited(source, index, index / 25, "2026-01-01T00:00:00.000000Z", iou, mae, empty, judged)


def told(verdict, values):
    """The lines that so many audits give, each with the number of its audit from 1 on."""
    return [(number, line) for number, value in enumerate(values, 1) if (line := verdict.add(audited(value, number)))]


# 97.5 % of Student's distribution, from its tables.
@pytest.mark.parametrize(
    ("count", "quantile"),
    [(2, 12.7062), (3, 4.3027), (4, 3.1824), (5, 2.7764), (11, 2.2281), (31, 2.0423), (101, 1.9840)],
)
def test_the_interval_is_students(count, quantile):
    values = 0.5 + 0.01 * np.arange(count) / count
    got = (np.mean(values) - lower_end(values)) * math.sqrt(count) / np.std(values, ddof=1)
    assert got == pytest.approx(quantile, abs=0.005)


def test_of_one_value_nothing_is_known():
    assert lower_end([0.999]) == 0
    assert lower_end([1.0, 1.0]) == 1


PROVEN = {
    "iou_low": 0.995,
    "iou_worst": 0.985,
    "gate": {"mean": 0.99, "worst": 0.9},
    "per_frame": [{"iou": 0.985 + 0.0005 * index, "left_out": None} for index in range(30)]
    + [{"iou": 0.1, "left_out": "the subject covers 0.1 %"}],
}


@pytest.mark.parametrize(
    ("verification", "mean", "worst"),
    [
        (PROVEN, 0.99, 0.9),
        ({}, 0.99, 0.9),
        ({"iou_low": 0.97, "iou_worst": 0.8}, 0.97, 0.8),
        ({"iou_low": 0.999, "iou_worst": 0.998}, 0.99, 0.9),
        ({"gate": {"mean": 0.95, "worst": 0.85}, "iou_low": 0.99}, 0.95, 0.85),
        ({"gate": {"mean": 0}}, 0, 0),
        ({"gate": "no", "per_frame": "no", "iou_low": None}, 0.99, 0.9),
        ({"gate": {"mean": True, "worst": 7}, "per_frame": [1, {"iou": "x"}]}, 0.99, 0.9),
    ],
)
def test_what_a_bundle_has_to_reach(verification, mean, worst):
    gate = gate_of(verification)
    assert (gate.mean, gate.worst) == (mean, worst)


def test_audits_are_held_against_the_frames_that_were_proven():
    gate = gate_of(PROVEN)
    assert len(gate.proven) == 30  # without the one that was left out
    limits = [gate.reach(count) for count in (3, 10, WINDOW, 10 * WINDOW)]
    assert limits == sorted(limits)
    assert limits[2] == limits[3]
    # Of many audits and many proven frames the mean is normal: 3.09 of its standard deviations are 0.1 %.
    spread = np.std(gate.proven) * math.sqrt(1 / WINDOW + 1 / 30)
    assert limits[2] == pytest.approx(np.mean(gate.proven) - 3.09 * spread, abs=0.0004)


def test_where_no_frames_were_proven_few_audits_must_be_far_below():
    assert [gate_of({}).reach(count) for count in (3, 19, 20, 100)] == [0.9, 0.9, 0.99, 0.99]


def test_where_a_plan_was_checked_its_own_frames_count():
    worse = {"per_frame": [{"iou": 0.98 + 0.0001 * index} for index in range(10)]}
    assert gate_of(PROVEN, {}).proven == gate_of(PROVEN).proven
    assert gate_of(PROVEN, worse).proven == gate_of(PROVEN, PROVEN, worse).proven == gate_of(worse).proven
    assert gate_of(PROVEN, worse).mean == 0.99


def test_a_program_that_was_compared_with_itself_has_proven_nothing():
    exact = {"per_frame": [{"iou": 1.0, "left_out": None}] * 32, "gate": {"mean": 0.99, "worst": 0.9}}
    assert gate_of(exact).proven == ()
    assert gate_of(exact).reach(3) == 0.9


def test_a_spoiled_program_is_told_at_the_third_audit_and_once():
    verdict = Verdict(gate_of(PROVEN))
    [(number, line)] = told(verdict, [0.97, 0.95, 0.96] + [0.95] * 200)
    assert number == FEWEST
    assert verdict.below
    assert line.startswith(
        "audit: the masks do not agree with the program in FP32: expected a mean IoU whose 95 % interval begins at "
        "0.9900 or more, got 0.9600 (from "
    )
    assert "of 3 audits, worst 0.9500 (frame 2 of door)" in line


def test_a_good_one_is_silent_over_a_thousand():
    for seed in range(20):
        verdict = Verdict(gate_of(PROVEN))
        assert told(verdict, np.random.default_rng(seed).choice(gate_of(PROVEN).proven, 1000)) == []
    assert not verdict.below
    assert verdict.state()["count"] == WINDOW


def test_one_that_goes_bad_later_is_told_too_and_when_it_is_good_again():
    verdict = Verdict(gate_of(PROVEN))
    lines = told(verdict, [0.997, 0.998] * 50 + [0.6] * 5 + [0.997, 0.998] * 100)
    assert [line.partition(": ")[2][:31] for _, line in lines] == [
        "the masks do not agree with the",
        "the masks agree with the progra",
    ]
    assert lines[0][0] <= 105
    assert lines[1][0] > 200  # the bad ones have left the window
    assert not verdict.below


def test_one_that_is_worse_than_it_was_and_still_good_enough_is_told_once():
    better = {"gate": {"mean": 0.99}, "per_frame": [{"iou": 0.9985 + 0.00005 * index} for index in range(30)]}
    verdict = Verdict(gate_of(better))
    [(number, line)] = told(verdict, [0.9960, 0.9962, 0.9964] * 100)
    assert number == FEWEST
    assert line == (
        "audit: the masks agree less with the program in FP32 than when the bundle was verified: mean IoU 0.9962 of 3 audits, of the "
        "frames then 0.9992; its gate, 0.9900, still holds"
    )
    assert not verdict.below
    [(_, line)] = told(verdict, [0.5] * 3)  # and what is worse is told as ever
    assert line.startswith("audit: the masks do not agree ")


def test_around_the_gate_it_is_not_told_again_and_again():
    values = [0.9995, 0.9785] * 600  # their mean is just below 0.99
    assert len(told(Verdict(gate_of({})), values)) == 1


def test_frames_without_a_clear_subject_do_not_count():
    verdict = Verdict(gate_of(PROVEN))
    assert [verdict.add(audited(0.0, judged=False)) for _ in range(50)] == [""] * 50
    state = verdict.state()
    assert (state["total"], state["unclear"], state["count"], state["mean"], state["worst"]) == (50, 50, 0, None, None)


def test_the_state():
    verdict = Verdict(gate_of({}))
    verdict.add(audited(0.9, mae=0.1, source="yard"))
    verdict.add(audited(0.0, mae=0.3, empty=True))
    verdict.add(audited(0.6))
    state = verdict.state()
    assert (state["count"], state["total"], state["values"], state["worst_source"]) == (3, 3, [0.9, 0.0, 0.6], "door")
    assert (state["mean"], state["mae"], state["worst"], state["empties"]) == (0.5, pytest.approx(0.133333), 0.0, 1)
    assert (state["gate"], state["below"], state["low"]) == (0.99, True, 0.0)
    assert 0 <= state["worst_s"] < 60
