"""Charts show the numbers they are given."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.train.plot import MOST_POINTS, Chart, Line, drawable, figure, log_ticks, short, ticks

NUMBERS = st.floats(-1e12, 1e12, allow_nan=False)


@given(NUMBERS, NUMBERS)
def test_ticks_span_the_data_in_round_steps(a, b):
    low, high = min(a, b), max(a, b)
    if high - low < 1e-9 * max(abs(low), abs(high), 1):
        return
    found = ticks(low, high)
    assert found[0] <= low + 1e-6 * (high - low) and found[-1] >= high - 1e-6 * (high - low)
    assert 3 <= len(found) <= 9
    gaps = {round(y - x, 9) for x, y in zip(found, found[1:], strict=False)}
    assert max(gaps) - min(gaps) <= 1e-6 * max(gaps)


@given(st.floats(1e-9, 1e9), st.floats(1e-9, 1e9))
def test_logarithmic_ticks_span_the_data(a, b):
    low, high = min(a, b), max(a, b)
    found = log_ticks(low, high)
    assert found[0] <= low * 1.00001 and found[-1] >= high * 0.99999


def coordinates(markup: str) -> list[tuple[float, float]]:
    (points,) = re.findall(r'points="([^"]*)"', markup)
    return [tuple(map(float, pair.split(","))) for pair in points.split()]  # type: ignore[misc]


def test_a_line_is_drawn_to_scale():
    at = coordinates(figure(Chart("x", (Line("a", ((0, 0.0), (5, 5.0), (10, 10.0))),))))
    (x0, y0), (x1, y1), (x2, y2) = at
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11) and y0 - y1 == pytest.approx(y1 - y2, abs=0.11)
    assert y0 > y1 > y2  # up is up


def test_on_a_logarithmic_axis_equal_ratios_are_equal_heights():
    at = coordinates(figure(Chart("x", (Line("a", ((0, 0.1), (5, 1.0), (10, 10.0), (11, 0.0))),), log=True)))
    assert len(at) == 3  # zero has no place on it
    assert at[0][1] - at[1][1] == pytest.approx(at[1][1] - at[2][1], abs=0.11)
    linear = coordinates(figure(Chart("x", (Line("a", ((0, 0.1), (5, 1.0), (10, 10.0))),))))
    assert linear[0][1] - linear[1][1] < 0.2 * (linear[1][1] - linear[2][1])  # the control


def test_thinning_keeps_ends_means_and_drops_what_is_not_a_number():
    points = tuple((float(i), math.nan if i == 7 else float(i % 2)) for i in range(10_000))
    thin = drawable(points, log=False)
    assert len(thin) == MOST_POINTS
    assert (thin[0], thin[-1]) == (points[0], points[-1])
    assert sum(y for _, y in thin) / len(thin) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    "points", [(), ((1.0, math.nan),), ((1.0, 2.0),), ((1.0, 2.0), (2.0, 2.0)), ((3.0, 1.0), (3.0, 2.0))]
)
@pytest.mark.parametrize("log", [False, True])
def test_hardly_any_data_is_no_error(points, log):
    markup = figure(Chart("x", (Line("a", points),), log=log))
    assert "nan" not in markup and "inf" not in markup


def test_numbers_are_short():
    assert [short(n) for n in (0, 0.0003, 12345, 2.5e6, 0.25, -1500)] == [
        "0",
        "3e-4",
        "12.35k",
        "2.5M",
        "0.25",
        "-1.5k",
    ]
