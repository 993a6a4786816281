import json

import numpy as np
import pytest

from pipeline.drift.figures import FIGURES, SPREADS
from pipeline.drift.summary import Summary
from pipeline.errors import BundleError


def figures(count, seed=0, scale=1.0):
    random = np.random.default_rng(seed)
    return 0.5 + scale * SPREADS * random.normal(0, 1, (count, len(FIGURES)))


@pytest.fixture(scope="module")
def summary():
    return Summary.of(figures(40), "frames of yard")


def unlike(summary, figures_nf):
    return float(np.mean([summary.distance(one).value > summary.limit for one in figures_nf]))


def test_frames_of_the_same_kind_are_within_the_limit(summary):
    assert unlike(summary, figures(500, seed=1)) < 0.05


@pytest.mark.parametrize("figure", FIGURES)
def test_one_figure_alone_is_enough(summary, figure):
    others = figures(50, seed=2)
    others[:, FIGURES.index(figure)] -= 10 * SPREADS[FIGURES.index(figure)]
    assert unlike(summary, others) > 0.9


def test_the_farthest_figure_is_named(summary):
    one = summary.middle.copy()
    assert summary.distance(one).value == 0
    one[FIGURES.index("sharpness")] -= 1
    assert summary.distance(one).words == "less sharp"
    one[FIGURES.index("brightness")] += 9
    assert summary.distance(one).words == "brighter"


def test_frames_of_one_scene_do_not_make_the_next_day_unlike():
    still = Summary.of(figures(32, scale=0.001), "one scene")
    assert unlike(still, figures(200, seed=3, scale=0.2)) < 0.05
    assert unlike(still, figures(200, seed=3) + 3 * SPREADS) > 0.9


def test_it_is_read_as_it_was_written(summary):
    text = summary.to_json()
    assert len(text) < 4096
    again = Summary.from_json(text, "x")
    assert (again.frames, again.origin) == (40, "frames of yard")
    one = figures(1, seed=4)[0]
    assert again.distance(one).value == pytest.approx(summary.distance(one).value, rel=1e-2)
    assert again.limit == pytest.approx(summary.limit, abs=1e-4)
    assert again.to_json() == text


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"limit": float("nan")},
        {"limit": 0},
        {"limit": None},
        {"figures": {}},
        {"figures": {name: [0.5, 0, 1] for name in FIGURES}},
        {"figures": {name: [0.5, 1] for name in FIGURES}},
        {"figures": [1]},
    ],
)
def test_another_form_is_refused(summary, change):
    text = json.dumps(json.loads(summary.to_json()) | change)
    with pytest.raises(BundleError, match=r"drift\.json: expected a summary of frames of format 1, got another"):
        Summary.from_json(text, "drift.json")


def test_what_is_no_json_is_refused():
    for text in ("", "[1]", "null", "{", "[" * 100_000):
        with pytest.raises(BundleError):
            Summary.from_json(text, "drift.json")
