"""Whatever happens to the daemon and its clients: streams are whole or end with a reason, and nothing is left."""

from __future__ import annotations

import random

import pytest

from tests.chaos.driver import Report, run
from tests.chaos.history import OK


def survived(seconds: float) -> Report:
    """Run chaos for so long and fail with its violations."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"python -m tests.chaos --seed {seed}")  # noqa: T201 - shown with a failure
    report = run(seed, seconds)
    assert not report.violations, "\n".join(report.violations)
    assert report.faults
    assert report.samples
    assert report.ends[OK]
    return report


def test_twenty_seconds_of_chaos_tear_no_stream() -> None:
    """The driver of `tests/chaos/driver.py` runs for 20 seconds; `make chaos MINUTES=60` runs it longer."""
    survived(20)


@pytest.mark.slow
def test_ten_minutes_of_chaos_tear_no_stream() -> None:
    """Ten minutes are long enough that prefixes are reused and dropped between deaths of the engine."""
    report = survived(600)
    assert report.reused
    assert report.invalidations
