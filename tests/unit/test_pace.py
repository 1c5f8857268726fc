"""Slices of a load grow and shrink until one takes as long as a stream can wait."""

from __future__ import annotations

from daemon.cache.pace import LEAST_BYTES, SLICE_SECONDS, Pace

GIB = 1 << 30


def _settled(bytes_per_second: float) -> int:
    pace = Pace(GIB)
    for _ in range(20):
        pace.measured(pace.nbytes, pace.nbytes / bytes_per_second)
    return pace.nbytes


def test_a_disk_gets_slices_of_the_time_that_streams_can_wait() -> None:
    for speed in (0.5 * GIB, 2 * GIB, 8 * GIB):
        assert 0.9 < _settled(speed) / (speed * SLICE_SECONDS) < 1.1


def test_slices_have_a_least_and_a_most() -> None:
    assert _settled(1e6) == LEAST_BYTES
    assert _settled(1e15) == GIB
    assert Pace(1000).nbytes == 1000


def test_a_slice_that_is_much_smaller_than_planned_teaches_nothing() -> None:
    pace = Pace(GIB)
    before = pace.nbytes
    pace.measured(before // 4, 9.0)
    assert pace.nbytes == before


def test_one_odd_slice_does_not_throw_it_off() -> None:
    pace = Pace(GIB)
    before = pace.nbytes
    pace.measured(before, 60.0)
    assert pace.nbytes == before // 2
    pace.measured(pace.nbytes, 0.0)
    assert pace.nbytes == before
