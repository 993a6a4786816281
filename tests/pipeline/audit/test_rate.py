import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.audit.rate import AUTO, Rate, parse_rate

UNITS_S = {"s": 1, "min": 60, "h": 3600, "d": 86400}
COUNTS = st.integers(1, 999_999_999)


@given(COUNTS, st.sampled_from(sorted(UNITS_S)))
def test_so_many_in_a_time(count, unit):
    rate = parse_rate(f"{count}/{unit}")
    assert rate.frames is None
    assert rate.period_s * count == pytest.approx(UNITS_S[unit])


@given(COUNTS)
def test_one_of_so_many_frames(count):
    assert parse_rate(f"1/{count}") == Rate(frames=count)


def test_words():
    assert (parse_rate("auto"), parse_rate("off"), parse_rate("1/min")) == ("auto", "off", AUTO)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "min",
        "0/min",
        "1/0",
        "2/10",
        "1/minute",
        "1/Min",
        "-1/min",
        "1.5/min",
        "1/ min",
        "1/min ",
        "01/h",
        "１/min",
    ],
)
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"^expected 1/min, 2/h .* auto or off, got "):
        parse_rate(text)


@given(st.text(max_size=12))
def test_any_text_is_a_rate_or_refused_in_one_way(text):
    try:
        rate = parse_rate(text)
    except argparse.ArgumentTypeError:
        return
    if isinstance(rate, Rate):
        assert (rate.frames is None) != (rate.period_s is None)
        assert (rate.frames or rate.period_s) > 0
    else:
        assert rate == text in ("auto", "off")
