"""Prefixes that were idle for long leave memory for the disk, and push nothing out there."""

from __future__ import annotations

import pytest

from daemon.kv.idle import IdleRelease
from daemon.kv.spec import PrefixSpec
from tests.unit.kv.disk.fake_disk import NAME, TOKENS, FakeDisk
from tests.unit.kv.fake_kv import LAYOUTS, FakePrefixes, prompt


def idle_for_long(disk: FakeDisk, idle: IdleRelease, seconds: int) -> None:
    """Let time pass as the engine does, with a look each second."""
    for _ in range(seconds):
        disk.now += 1
        idle.release()
        disk.settle()


@pytest.mark.parametrize("parts", LAYOUTS)
def test_idle_prefix_goes_to_the_disk(parts: PrefixSpec) -> None:
    """Although it was used once; it comes back from there, and memory is empty meanwhile."""
    disk = FakeDisk(FakePrefixes(parts=parts))
    idle = IdleRelease(disk.prefixes.cache.trie, lambda: disk.now, 100.0, disk.tier)
    disk.settle()
    disk.knows(NAME)
    disk.prefixes.store(NAME, TOKENS)
    idle_for_long(disk, idle, 80)
    assert disk.tier.catalog.nbytes == 0
    idle_for_long(disk, idle, 40)
    assert disk.prefixes.cache.memory_usage() == 0
    assert disk.restore(NAME, [*TOKENS, 9]) == TOKENS


def test_idle_prefixes_push_nothing_out() -> None:
    """They take what is free of the budget, in one go however many they are, and half of the writes of a day."""
    disk = FakeDisk(FakePrefixes(), wanted=100_000)
    idle = IdleRelease(disk.prefixes.cache.trie, lambda: disk.now, 100.0, disk.tier)
    disk.settle()
    disk.knows(NAME)
    disk.prefixes.store(NAME, TOKENS)
    disk.prefixes.reuse(NAME, [*TOKENS, 9])
    disk.settle()
    for letter in range(10, 110):
        disk.prefixes.store(NAME, prompt(letter, 2))
    idle_for_long(disk, idle, 120)
    assert 40_000 < disk.tier.catalog.nbytes <= 100_000
    assert disk.tier.work.counters.written_bytes <= 100_000
    assert disk.prefixes.cache.memory_usage() == 0
    assert disk.restore(NAME, [*TOKENS, 9]) == TOKENS


def test_idle_prefix_goes_first_from_the_disk() -> None:
    """It was last used before those that were used again since."""
    disk = FakeDisk(FakePrefixes(), wanted=12_000)
    idle = IdleRelease(disk.prefixes.cache.trie, lambda: disk.now, 100.0, disk.tier)
    disk.settle()
    disk.knows(NAME)
    disk.prefixes.store(NAME, TOKENS)
    idle_for_long(disk, idle, 60)
    disk.prefixes.store(NAME, prompt(5, 6))
    disk.prefixes.reuse(NAME, [*prompt(5, 6), 9])
    idle_for_long(disk, idle, 40)
    assert disk.tier.catalog.blocks == 6
    disk.now += 4000
    for letter in range(10, 30):
        disk.prefixes.store(NAME, prompt(letter, 8))
        disk.prefixes.reuse(NAME, [*prompt(letter, 8), 9])
        disk.settle()
        if disk.tier.catalog.blocks < 6 + 2 * (letter - 9):
            break
    disk.prefixes.cache.shed(10**9)
    assert disk.restore(NAME, [*TOKENS, 9]) == []
    assert disk.restore(NAME, [*prompt(5, 6), 9]) == prompt(5, 6)


def test_idle_prefix_waits_for_a_disk_that_rests() -> None:
    """A write that failed shortly before costs it nothing."""
    disk = FakeDisk(FakePrefixes())
    idle = IdleRelease(disk.prefixes.cache.trie, lambda: disk.now, 1000.0, disk.tier)
    disk.settle()
    disk.knows(NAME)
    disk.prefixes.store(NAME, TOKENS)
    idle_for_long(disk, idle, 870)
    disk.files.fault = OSError(28, "full")
    disk.prefixes.store(NAME, prompt(5, 6))
    disk.prefixes.reuse(NAME, [*prompt(5, 6), 9])
    disk.settle()
    disk.files.fault = None
    assert disk.tier.work.paused
    idle_for_long(disk, idle, 150)
    assert disk.restore(NAME, [*TOKENS, 9]) == TOKENS
