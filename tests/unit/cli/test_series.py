"""Counters as rates and shares, across gaps and restarts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.cli.output.charts import HEIGHT, WIDTH, chart, nice_ceiling
from daemon.cli.output.series import MOST_POINTS, Point, rates, shares
from mlx_sidecar import HistorySample


def sample(age: float, generated: int = 0, lookups: int = 0, hits: int = 0) -> HistorySample:
    """Return a sample with the counters that matter here."""
    return HistorySample(age, lookups, hits, 0, 0, 0, generated, 0, 0, 0, 0)


def test_rate_is_counter_growth_per_second() -> None:
    """A rate belongs to the end of its step; steps may have different lengths."""
    history = [sample(30, 100), sample(20, 150), sample(0, 350)]
    assert rates(history, "generated_tokens") == [Point(20, 5.0), Point(0, 10.0)]


def test_counter_that_fell_was_reset() -> None:
    """The value after a reset counts as growth, so no rate is negative."""
    assert rates([sample(10, 500), sample(0, 40)], "generated_tokens") == [Point(0, 4.0)]


def test_ratio_without_a_denominator_is_a_gap() -> None:
    """A ratio without lookups is a gap and not zero."""
    history = [sample(30), sample(20, lookups=4, hits=3), sample(10, lookups=4, hits=3), sample(0, lookups=6, hits=3)]
    assert shares(history, "hits", "lookups") == [Point(20, 0.75), Point(10, None), Point(0, 0.0)]


@pytest.mark.parametrize("history", [[], [sample(0)], [sample(5), sample(5)]], ids=["none", "one", "at once"])
def test_short_history_has_no_points(history: list[HistorySample]) -> None:
    """A rate needs two samples."""
    assert rates(history, "generated_tokens") == []
    assert chart("x", [("y", rates(history, "generated_tokens"))], str).empty


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=400))
def test_joined_samples_keep_the_total_growth(growths: list[int]) -> None:
    """The sum of rates times their durations is the total growth, for any number of samples."""
    total, history = 0, [sample(10.0 * len(growths))]
    for number, growth in enumerate(growths, 1):
        total += growth
        history.append(sample(10.0 * (len(growths) - number), total))
    points = rates(history, "generated_tokens")
    assert len(points) <= MOST_POINTS
    starts = [10.0 * len(growths), *(point.age for point in points)]
    counted = sum((point.value or 0) * (start - point.age) for start, point in zip(starts, points, strict=False))
    assert counted == pytest.approx(total)


def test_chart_lines_stay_in_their_axes_and_show_gaps() -> None:
    """The oldest point is left, now is right, zero is at the bottom."""
    points = [
        Point(60, 0.0),
        Point(50, 4.0),
        Point(40, None),
        Point(30, 2.0),
        Point(20, None),
        Point(10, 1.0),
        Point(0, 4.0),
    ]
    (line,) = chart("x", [("y", points)], str).lines
    assert line.pieces == (f"0.0,{HEIGHT}.0 {WIDTH / 6:.1f},{HEIGHT * 0.2:.1f}", "466.7,120.0 560.0,30.0")
    assert line.dots == ((280.0, 90.0),)


def test_chart_axes_end_at_round_numbers() -> None:
    """The axis ends at a round number at or above the largest value."""
    assert [nice_ceiling(value) for value in (0, 0.3, 1, 7, 21, 60, 1000, 1001)] == [1, 0.5, 1, 10, 25, 100, 1000, 2000]
