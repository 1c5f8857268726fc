"""Gauges: quantiles within a few per cent, in a space that does not grow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.engine.reporting.timings import Histogram


@given(st.lists(st.floats(1e-5, 1e3), min_size=1, max_size=200), st.sampled_from([0.5, 0.99, 1.0]))
def test_histogram_quantile_is_that_of_its_values(values: list[float], share: float) -> None:
    """Give or take a bucket."""
    distribution = Histogram()
    for value in values:
        distribution.observe(value)
    exact = next(v for rank, v in enumerate(sorted(values), 1) if rank >= share * len(values))
    assert distribution.quantile(share) == pytest.approx(exact, rel=0.03)
    assert distribution.count == len(values)


def test_empty_timing_histogram_has_no_quantile() -> None:
    assert (Histogram().count, Histogram().quantile(0.5)) == (0, 0.0)


def test_histogram_memory_depends_on_its_range() -> None:
    distribution = Histogram()
    for number in range(100_000):
        distribution.observe(0.001 + (number % 1000) / 1000)
    assert len(distribution._buckets) < 200
