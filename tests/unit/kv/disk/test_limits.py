"""The limits of the disk tier: its budget, and the bytes written in a day."""

from __future__ import annotations

import pytest

from daemon.kv.disk.limits import HOUR, Space, WriteLimit, budget, share

GB = 1 << 30


@pytest.mark.parametrize(
    ("wanted", "used", "total", "free", "most"),
    [
        (None, 0, 1000 * GB, 500 * GB, 8 * GB),
        (None, 0, 1000 * GB, 120 * GB, 6 * GB),
        (None, 5 * GB, 1000 * GB, 115 * GB, 6 * GB),
        (20 * GB, 0, 1000 * GB, 500 * GB, 20 * GB),
        (20 * GB, 5 * GB, 1000 * GB, 103 * GB, 8 * GB),
        (20 * GB, 5 * GB, 1000 * GB, 90 * GB, 0),
        (0, 5 * GB, 1000 * GB, 500 * GB, 0),
    ],
)
def test_budget_follows_the_disk(wanted: int | None, used: int, total: int, free: int, most: int) -> None:
    """What the tier has counts as free, and the last tenth of the disk does not."""
    assert budget(wanted, used, Space(total, free)) == most


@pytest.mark.parametrize(
    ("wanted", "each"), [(None, None), (0, 0), (64 << 20, 32 << 20), (3 << 20, 3 << 19), (1 << 20, 1 << 20)]
)
def test_two_tiers_share_a_number(wanted: int | None, each: int | None) -> None:
    """`auto` stays so, and the least number does not turn them off."""
    assert share(wanted, shared=True) == each
    assert share(wanted, shared=False) == wanted


def test_writes_of_a_day_count_by_the_hour() -> None:
    """Those of the last 24 hours."""
    limit = WriteLimit()
    limit.wrote(60, 100 * HOUR)
    limit.wrote(100, 110 * HOUR)
    assert limit.written(123 * HOUR) == 160
    assert limit.written(124 * HOUR) == 100
    assert WriteLimit.of(limit.pairs).written(124 * HOUR) == 100


def test_hour_has_half_of_what_is_left_of_the_day() -> None:
    """So writing goes on, ever less, however much there is to write."""
    limit = WriteLimit()
    for hour, most in [(100, 100), (101, 50), (102, 25), (124, 62), (125, 56)]:
        assert limit.allows(most, 100, hour * HOUR)
        assert not limit.allows(most + 1, 100, hour * HOUR)
        limit.wrote(most // 2, hour * HOUR)
        assert limit.allows(most - most // 2, 100, hour * HOUR)
        limit.wrote(most - most // 2, hour * HOUR)
        assert not limit.allows(2, 100, hour * HOUR)


def test_clock_that_goes_back_frees_nothing_and_blocks_nothing_for_long() -> None:
    """Hours in the future count as this one."""
    limit = WriteLimit()
    limit.wrote(100, 1000 * HOUR)
    assert limit.written(10 * HOUR) == 100
    assert limit.written(33 * HOUR) == 100
    assert limit.written(34 * HOUR) == 0
