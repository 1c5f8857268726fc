"""The slices of a load grow and shrink until a slice takes as long as a stream can wait."""

from __future__ import annotations

import pytest

from daemon.cache.pace import LEAST_BYTES, SLICE_SECONDS, Pace, Share, paced
from daemon.shared.slices import LONG, SHORT, Sliced
from tests.support.builders import Clock

GIB = 1 << 30


def _settled(bytes_per_second: float) -> int:
    pace = Pace(GIB)
    for _ in range(20):
        pace.measured(pace.nbytes, pace.nbytes / bytes_per_second)
    return pace.nbytes


def test_load_slice_fits_the_time_streams_can_wait() -> None:
    for speed in (0.5 * GIB, 2 * GIB, 8 * GIB):
        assert 0.9 < _settled(speed) / (speed * SLICE_SECONDS) < 1.1


def test_load_slice_size_has_a_minimum_and_maximum() -> None:
    assert _settled(1e6) == LEAST_BYTES
    assert _settled(1e15) == GIB
    assert Pace(1000).nbytes == 1000


def test_short_load_slice_keeps_the_estimate() -> None:
    pace = Pace(GIB)
    before = pace.nbytes
    pace.measured(before // 4, 9.0)
    assert pace.nbytes == before


def test_outlier_load_slice_keeps_the_estimate() -> None:
    pace = Pace(GIB)
    before = pace.nbytes
    pace.measured(before, 60.0)
    assert pace.nbytes == before // 2
    pace.measured(pace.nbytes, 0.0)
    assert pace.nbytes == before


@pytest.mark.parametrize(
    ("pieces", "slices"),
    [
        ([1, 1, 1, 1, 1, 1], [3, 3]),  # a fourth would make it four seconds
        ([5, 1, 1, 1, 1], [5, 3]),  # a piece longer than a slice is a slice of its own
        ([1, 5, 1, 1], [6]),
    ],
)
def test_load_units_are_joined_up_to_the_time_limit(pieces: list[int], slices: list[int]) -> None:
    clock = Clock()

    def work() -> Sliced[str]:
        for seconds in pieces:
            clock.pass_(seconds)
            yield SHORT
        return "done"

    taken, began = [], clock.now
    steps = paced(work(), "report", clock, lambda: 3.0)
    for report in steps:
        assert report == "report"
        taken.append(clock.now - began)
        clock.pass_(100)  # the engine does other work meanwhile
        began = clock.now
    assert taken == slices


def test_long_load_unit_begins_its_own_slice() -> None:
    clock = Clock()

    def work() -> Sliced[str]:
        clock.pass_(1)
        yield LONG
        clock.pass_(5)
        yield SHORT
        clock.pass_(1)
        return "done"

    taken, began = [], clock.now
    for _ in paced(work(), "report", clock, lambda: 3.0):
        taken.append(clock.now - began)
        began = clock.now
    assert taken == [1, 5]


def test_time_that_streams_can_wait_may_change() -> None:
    waits = 1.0
    pace = Pace(GIB, lambda: waits)
    pace.measured(pace.nbytes, 1.0)
    before = pace.nbytes
    waits = 0.5
    pace.measured(pace.nbytes, 1.0)
    assert pace.nbytes == before // 2


def test_load_gets_half_of_the_time_beside_streams() -> None:
    share = Share()
    turns = []
    for _ in range(1000):
        share.served(0.002)
        turns.append(share.due)
        if share.due:
            share.loaded(0.04)

    assert turns.count(True) == 50
    assert turns[0]


def test_short_load_slice_follows_each_decode_step() -> None:
    share = Share()
    for _ in range(10):
        share.served(0.02)
        assert share.due
        share.loaded(0.02)
