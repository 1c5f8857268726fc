"""The judgement of a soak: a leak of 1 MB an hour is one, noise is none, and too short a run says so."""

from __future__ import annotations

import random

import pytest

from tests.soak.fit import slope

MB = 1_000_000


def run(growth: float, noise: float, minutes: float = 60, warm_up: float = 0.0) -> list[tuple[float, int]]:
    """Return samples of a process that grows by `growth` bytes an hour, and by `warm_up` bytes in its first tenth."""
    rng = random.Random(5)
    seconds = 60 * minutes
    samples = []
    for step in range(600):
        when = seconds * step / 600
        warm = warm_up * min(1.0, 10 * when / seconds)
        samples.append((when, int(50 * MB + warm + growth * when / 3600 + rng.gauss(0, noise))))
    return samples


@pytest.mark.parametrize("growth", [1.2 * MB, 5 * MB])
def test_leak_is_found_in_noise(growth: float) -> None:
    """The true slope lies in the fitted interval."""
    found = slope(run(growth, noise=0.3 * MB))
    assert found.leaks
    assert abs(found.value - growth) <= 1.5 * found.margin


@pytest.mark.parametrize("noise", [0.01 * MB, 0.3 * MB])
def test_noise_alone_is_no_leak(noise: float) -> None:
    """Neither noise nor the growth of a warm-up counts as a leak."""
    found = slope(run(0, noise, warm_up=20 * MB))
    assert not found.leaks
    assert found.conclusive


def test_leak_verdict_needs_enough_samples() -> None:
    """A run that is too short neither passes nor fails."""
    found = slope(run(0, noise=2 * MB, minutes=1))
    assert not found.leaks
    assert not found.conclusive


def test_single_memory_step_is_not_a_certain_leak() -> None:
    """A single allocation that stays widens the interval of the slope."""
    samples = [(when, size + (MB if when > 2500 else 0)) for when, size in run(0, noise=0.01 * MB)]
    assert slope(samples).margin > 0.2 * MB


def test_leak_fit_refuses_too_few_samples() -> None:
    """A line cannot be fitted through too few points."""
    with pytest.raises(ValueError, match="too few"):
        slope(run(0, 1)[:10])
