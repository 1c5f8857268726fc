"""Requests that come at the same time are computed together; one that is alone never waits."""

from __future__ import annotations

import pytest

from daemon.engine.scheduling.batching_window import (
    LINGER_SECONDS,
    MOST_SECONDS,
    SLOW_SHARE,
    BatchingWindow,
    most_seconds,
)
from tests.support.builders import Clock


@pytest.fixture(name="clock")
def _clock() -> Clock:
    return Clock()


@pytest.fixture(name="window")
def _window(clock: Clock) -> BatchingWindow:
    return BatchingWindow(clock)


def test_batching_window_is_zero_for_a_fast_model(window: BatchingWindow) -> None:
    assert window.remaining(1, 0) == 0


def test_batching_window_is_short_for_a_slow_model(window: BatchingWindow, clock: Clock) -> None:
    assert window.remaining(1, 0, 0.2) == pytest.approx(SLOW_SHARE * 0.2)
    clock.pass_(SLOW_SHARE * 0.1)
    assert window.remaining(1, 0, 0.2) == pytest.approx(SLOW_SHARE * 0.1)
    assert window.remaining(2, 0, 0.2) == pytest.approx(LINGER_SECONDS + SLOW_SHARE * 0.2), "one followed"


@pytest.mark.parametrize("step", [0.0, 0.1, 1.0])
def test_batching_window_is_at_most_a_tenth_of_a_step(window: BatchingWindow, clock: Clock, step: float) -> None:
    """Though one after the other comes, or is being tokenised for ever."""
    for coming in (0, 1):
        window.remaining(0, 0)
        waited = 0.0
        for number in range(1, 1000):
            left = window.remaining(number + 1, coming, step)
            if not left:
                break
            pause = min(left, LINGER_SECONDS / 2)
            clock.pass_(pause)
            waited += pause
        assert waited == pytest.approx(most_seconds(step)) == pytest.approx(MOST_SECONDS + 0.1 * step)


def test_batching_window_is_zero_while_others_prefill(window: BatchingWindow) -> None:
    """Then a chunk is the unit in which they take turns."""
    assert window.remaining(0, 3) == 0


def test_second_request_extends_the_batching_window(window: BatchingWindow, clock: Clock) -> None:
    assert window.remaining(2, 0) == pytest.approx(LINGER_SECONDS)
    clock.pass_(LINGER_SECONDS / 2)
    assert window.remaining(2, 0) == pytest.approx(LINGER_SECONDS / 2)
    assert window.remaining(3, 0) == pytest.approx(LINGER_SECONDS)
    clock.pass_(LINGER_SECONDS)
    assert window.remaining(3, 0) == 0


def test_batching_window_waits_for_tokenizing_briefly(window: BatchingWindow, clock: Clock) -> None:
    assert window.remaining(1, 1) == pytest.approx(MOST_SECONDS)
    clock.pass_(MOST_SECONDS)
    assert window.remaining(1, 1) == 0


def test_batching_window_restarts_for_the_next_burst(window: BatchingWindow, clock: Clock) -> None:
    window.remaining(2, 0)
    clock.pass_(1)
    assert window.remaining(2, 0) == 0
    assert window.remaining(0, 0) == 0
    assert window.remaining(2, 0) == pytest.approx(LINGER_SECONDS)
