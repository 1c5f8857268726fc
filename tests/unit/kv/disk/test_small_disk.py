"""A disk that leaves less than a piece is told once, at the start; one that others fill costs no more than it lacks."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from daemon.kv.disk.limits import Space
from daemon.kv.disk.tier import INDEX_SECONDS
from tests.unit.kv.disk.fake_disk import NAME, FakeDisk, MemoryFiles, written
from tests.unit.kv.fake_kv import PLAIN, FakePrefixes, prompt

MIB = 1 << 20


@pytest.mark.parametrize(
    ("wanted", "total", "free", "budget"),
    [
        (None, 319 * MIB, 319 * MIB, (319 * MIB) // 20),
        (None, 320 * MIB, 320 * MIB, None),
        (MIB, 319 * MIB, 319 * MIB, None),
        (512 * MIB, 1000 * MIB, 110 * MIB, 10 * MIB),
        (512 * MIB, 1000 * MIB, 20 * MIB, 0),
        (512 * MIB, 1000 * MIB, 116 * MIB, None),
        (MIB, 1000 * MIB, 20 * MIB, 0),
        (0, 1000 * MIB, 20 * MIB, None),
    ],
)
def test_budget_below_a_piece_is_logged(wanted: int | None, total: int, free: int, budget: int | None) -> None:
    """A number that is small by itself is meant; one for which the disk has no room is not."""
    files = MemoryFiles()
    files.disk = Space(total, free)
    with capture_logs() as lines:
        FakeDisk(FakePrefixes(parts=PLAIN), files, wanted).settle()
    small = [line for line in lines if line["event"] == "kv_disk_too_small"]
    assert [line["budget_bytes"] for line in small] == ([] if budget is None else [budget])
    assert all("rank" not in line and line["directory"] == "/nowhere" for line in small)


def test_files_that_could_not_be_opened_take_from_the_budget() -> None:
    """They are on the disk all the same, until they are removed."""
    files = MemoryFiles()
    files.disk, files.left = Space(1000 * MIB, 900 * MIB), {"left.kv": 3 * MIB}
    disk = FakeDisk(FakePrefixes(parts=PLAIN), files, 5 * MIB)
    disk.settle()
    assert disk.tier.budget == 2 * MIB
    files.left.clear()
    assert disk.tier.budget == 5 * MIB


def test_room_that_the_tier_made_is_not_made_again() -> None:
    """Between two looks at a disk that others fill, a piece pushes out another one and no more."""
    disk = written(*(prompt(letter, 2) for letter in range(10, 20)))
    taken = disk.tier.catalog.nbytes
    disk.files.disk = Space(10**9, 10**8 + taken - 10)
    disk.now += INDEX_SECONDS
    disk.tier.tick()
    disk.settle()
    assert len(disk.tier.catalog) == 9
    assert disk.tier.budget == taken - 10

    left = set()
    for letter in range(20, 25):
        disk.now += 90_000  # a day later: no limit of writes
        disk.prefixes.store(NAME, prompt(letter, 2))
        disk.prefixes.reuse(NAME, [*prompt(letter, 2), 9])
        disk.settle()
        disk.check()
        left.add(len(disk.tier.catalog))
    assert len(left) == 1
