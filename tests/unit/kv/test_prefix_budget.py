"""The prefix cache keeps its limits: it evicts the least recently used, compacts, and is fair to every salt."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from daemon.kv.nodes import Extent
from daemon.kv.prefix_cache import PrefixCache
from daemon.shared.machine_faults import DeviceFailedError
from tests.unit.kv.fake_kv import BLOCK_BYTES, FakeKV, FakePrefixes, prompt


@pytest.mark.parametrize("limit", [{"blocks": 10}, {"nbytes": 10 * BLOCK_BYTES}, {"buffers": 6}])
def test_prefix_budgets_are_kept_by_lru_eviction(limit: Any) -> None:
    prefixes = FakePrefixes(**limit)
    for letter in (10, 20, 30):
        prefixes.store("n", prompt(letter, letter + 1, letter + 2))
    prefixes.reuse("n", prompt(10, 11, 12, tail=1))

    prefixes.store("n", prompt(40, 41, 42))

    prefixes.cache.check_integrity()
    assert prefixes.reuse("n", prompt(40, 41, 42, tail=1)) == prompt(40, 41, 42)
    assert prefixes.reuse("n", prompt(10, 11, 12, tail=1)) == prompt(10, 11, 12)
    assert prefixes.reuse("n", prompt(20, 21, 22, tail=1)) != prompt(20, 21, 22)


@pytest.mark.parametrize("limit", [{"blocks": 70}, {"nbytes": 70 * BLOCK_BYTES}])
def test_oversized_prompt_stores_its_beginning(limit: Any) -> None:
    prefixes = FakePrefixes(**limit)
    prefixes.store("n", prompt(1000, 1001))

    assert prefixes.store("n", prompt(*range(200))) == 70

    prefixes.cache.check_integrity()
    assert prefixes.reuse("n", prompt(*range(200))) == prompt(*range(70))


@pytest.mark.parametrize("limit", [{"blocks": 0}, {"nbytes": 0}, {"buffers": 0}, {"nbytes": BLOCK_BYTES - 1}])
def test_budget_below_one_block_stores_nothing(limit: Any) -> None:
    prefixes = FakePrefixes(**limit)

    assert prefixes.store("n", prompt(1)) == 0
    assert prefixes.reuse("n", prompt(1, 2)) == []
    assert prefixes.packed == []


class _Larger(FakeKV):
    """A source with blocks of twice the bytes that were announced."""

    def pack(self, group: int, start: int, stop: int) -> Extent:
        extent = super().pack(group, start, stop)
        extent.nbytes *= 2
        return extent


def test_budget_is_restored_after_oversized_blocks() -> None:
    prefixes = FakePrefixes(nbytes=4 * BLOCK_BYTES)
    prefixes.store("n", prompt(1, 2))
    prefixes.store("n", prompt(3, 4), source=_Larger(prompt(3, 4)))
    prefixes.store("n", prompt(5), source=_Larger(prompt(5)))

    prefixes.cache.check_integrity()
    assert prefixes.reuse("n", prompt(5, tail=1)) == prompt(5)


def test_shed_returns_the_freed_bytes() -> None:
    prefixes = FakePrefixes()
    for letter in range(5):
        prefixes.store("n", prompt(letter))

    assert prefixes.cache.shed(150) == 200
    assert prefixes.cache.memory_usage() == 300
    assert prefixes.cache.shed(0) == 0
    assert prefixes.cache.counters.evictions == 2


def test_half_empty_extent_is_compacted_under_pressure() -> None:
    prefixes = FakePrefixes(nbytes=10 * BLOCK_BYTES)
    prefixes.store("n", prompt(*range(10)))
    lease = prefixes.lookup("n", prompt(0, 1, 2, 99))

    assert prefixes.store("n", prompt(*range(20, 27))) == 7

    prefixes.cache.check_integrity()
    assert prefixes.cache.memory_usage() == 10 * BLOCK_BYTES
    assert prefixes.restore(lease) == prompt(0, 1, 2)
    lease.release()
    assert prefixes.reuse("n", prompt(*range(20, 27), tail=1)) == prompt(*range(20, 27))


def test_failed_compaction_costs_only_blocks() -> None:
    prefixes = FakePrefixes(nbytes=10 * BLOCK_BYTES)
    prefixes.cache = PrefixCache(prefixes.cache.limits, copy=_no_memory)
    prefixes.store("n", prompt(*range(10)))

    with capture_logs() as logs:
        assert prefixes.store("n", prompt(*range(20, 27))) == 7

    assert [line["log_level"] for line in logs] == ["error"]
    prefixes.cache.check_integrity()
    assert prefixes.cache.trie.blocks == 7


def test_compaction_that_the_gpu_dropped_ends_the_engine() -> None:
    """The arrays that were to be copied may hold anything."""
    prefixes = FakePrefixes(nbytes=10 * BLOCK_BYTES)
    prefixes.cache = PrefixCache(prefixes.cache.limits, copy=_dropped)
    prefixes.store("n", prompt(*range(10)))

    with pytest.raises(DeviceFailedError):
        prefixes.store("n", prompt(*range(20, 27)))


def test_salt_leaves_others_half_of_the_budget() -> None:
    prefixes = FakePrefixes(blocks=20)
    prefixes.store("m/quiet", prompt(*range(10)))

    for first in range(100, 200, 10):
        prefixes.store("m/loud", prompt(*range(first, first + 10)))
        prefixes.store("another model/loud", prompt(*range(first, first + 5)))

    prefixes.cache.check_integrity()
    assert prefixes.reuse("m/quiet", prompt(*range(10), tail=1)) == prompt(*range(10))


def test_lone_salt_may_use_the_whole_budget() -> None:
    prefixes = FakePrefixes(blocks=20)
    prefixes.store("m/first", prompt(*range(20)))
    assert prefixes.cache.trie.blocks == 20

    assert prefixes.store("m/second", prompt(*range(8))) == 8
    assert prefixes.reuse("m/second", prompt(*range(8), tail=1)) == prompt(*range(8))


def _no_memory(extent: Extent, first: int, last: int) -> Extent:
    raise RuntimeError("out of memory")


def _dropped(extent: Extent, first: int, last: int) -> Extent:
    raise RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommand")
