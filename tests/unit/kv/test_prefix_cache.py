"""The prefix cache restores exactly the longest stored prefix, copies new blocks only, and keeps its limits."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from daemon.kv.extent_ledger import EXTENT_BLOCKS
from daemon.kv.nodes import Extent
from daemon.kv.prefix_cache import PrefixCounters
from tests.unit.kv.fake_kv import BLOCK_BYTES, FakeKV, FakePrefixes, prompt


def test_lookup_returns_the_longest_stored_prefix() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2, 3))
    prefixes.store("n", prompt(1, 2, 4, 5))

    assert prefixes.reuse("n", prompt(1, 2, 4, 6, tail=3)) == prompt(1, 2, 4)
    assert prefixes.reuse("n", prompt(1, 2, 3, 4)) == prompt(1, 2, 3)
    assert prefixes.reuse("n", prompt(2, 3, tail=1)) == []


def test_blocks_after_another_beginning_do_not_match() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2))

    assert prefixes.reuse("n", prompt(2, tail=1)) == []
    assert prefixes.reuse("n", prompt(3, 2, tail=1)) == []


@pytest.mark.parametrize(("tail", "reused"), [(0, prompt(1, 2)[:31]), (1, prompt(1, 2)), (15, prompt(1, 2))])
def test_match_leaves_one_token_to_compute(tail: int, reused: list[int]) -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2, 3))

    assert prefixes.reuse("n", prompt(1, 2, tail=tail)) == reused


@pytest.mark.parametrize("tokens", [[], [1], [1] * 15, [1] * 16])
def test_prompt_of_one_block_reuses_nothing(tokens: list[int]) -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", [1] * 16)

    assert prefixes.reuse("n", tokens) == []


@pytest.mark.parametrize(("least", "reused"), [(16, 32), (32, 32), (33, 0), (48, 0)])
def test_match_below_min_prefix_len_is_a_miss(least: int, reused: int) -> None:
    prefixes = FakePrefixes(min_prefix_len=least)
    prefixes.store("n", prompt(1, 2, 3))

    assert len(prefixes.reuse("n", prompt(1, 2, 4))) == reused
    assert prefixes.cache.counters.hits == (reused > 0)
    prefixes.cache.check_integrity()


def test_prompt_below_min_prefix_len_is_not_stored() -> None:
    prefixes = FakePrefixes(min_prefix_len=48)

    assert prefixes.store("n", prompt(1, 2)) == 0
    assert prefixes.store("n", prompt(1, 2, 3)) == 3


def test_prefix_namespaces_share_nothing() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2))

    assert prefixes.reuse("m", prompt(1, 2, tail=1)) == []
    assert prefixes.store("m", prompt(1, 2)) == 2


def test_only_new_full_blocks_are_packed() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2, tail=9))
    prefixes.store("n", prompt(1, 2, 3, 4))
    prefixes.store("n", prompt(1, 5))

    assert prefixes.packed == [(0, 2), (2, 4), (1, 2)]


def test_storing_a_known_prefix_changes_nothing() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2, 3))

    assert prefixes.store("n", prompt(1, 2, 3)) == 0
    assert prefixes.store("n", prompt(1, 2, 3)[:37]) == 0
    assert prefixes.cache.trie.blocks == 3


def test_long_prompt_is_packed_into_limited_extents() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(*range(2 * EXTENT_BLOCKS + 3)))

    assert prefixes.packed == [(0, 64), (64, 128), (128, 131)]
    assert prefixes.cache.trie.ledger.buffers == 6
    assert prefixes.reuse("n", prompt(*range(100), tail=1)) == prompt(*range(100))


def test_partly_evicted_prefix_is_refilled() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2))
    prefixes.store("n", prompt(1, 2, 3, 4))
    prefixes.cache.shed(1)
    prefixes.packed.clear()
    blocks = prefixes.cache.trie.blocks
    prefixes.store("n", prompt(1, 2, 3, 4))

    assert prefixes.packed == [(blocks, 4)]
    assert prefixes.reuse("n", prompt(1, 2, 3, 4, tail=1)) == prompt(1, 2, 3, 4)


def test_memory_usage_counts_extents_with_live_blocks() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2, 3))
    assert prefixes.cache.memory_usage() == 3 * BLOCK_BYTES

    prefixes.store("n", prompt(1, 4))
    assert prefixes.cache.memory_usage() == 4 * BLOCK_BYTES


def test_lease_protects_its_prefix_from_eviction() -> None:
    prefixes = FakePrefixes(blocks=4)
    prefixes.store("n", prompt(1, 2, 3))
    lease = prefixes.lookup("n", prompt(1, 2, 9))

    assert prefixes.store("n", prompt(20, 21, 22, 23)) == 2
    prefixes.cache.shed(10**9)

    assert prefixes.restore(lease) == prompt(1, 2)
    lease.release()
    prefixes.cache.check_integrity()


def test_store_never_evicts_the_leased_prefix() -> None:
    prefixes = FakePrefixes(blocks=3)
    prefixes.store("n", prompt(1, 2))

    assert prefixes.store("n", prompt(1, 2, 3, 4)) == 1
    assert prefixes.reuse("n", prompt(1, 2, 3, 4)) == prompt(1, 2, 3)


class _Fails(FakeKV):
    """A source that runs out of memory at some block."""

    def __init__(self, tokens: Sequence[int], at: int = 0) -> None:
        super().__init__(tokens)
        self._at = at

    def pack(self, group: int, start: int, stop: int) -> Extent:
        if stop > self._at:
            raise RuntimeError("out of memory")
        return super().pack(group, start, stop)


class _Short(FakeKV):
    """A source that copies fewer blocks than it is asked for."""

    def pack(self, group: int, start: int, stop: int) -> Extent:
        return super().pack(group, start, stop - 1)


class _Elsewhere(FakeKV):
    """A source that copies other blocks than it is asked for."""

    def pack(self, group: int, start: int, stop: int) -> Extent:
        return super().pack(group, 0, stop - start)


@pytest.mark.parametrize("source", [_Fails, _Short, _Elsewhere])
def test_failing_kv_source_leaves_no_trace(source: type[FakeKV]) -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2))
    before = (prefixes.cache.trie.blocks, prefixes.cache.memory_usage(), prefixes.cache.counters)

    with pytest.raises((RuntimeError, ValueError)):
        prefixes.store("n", prompt(1, 2, 3, 4), source=source(prompt(1, 2, 3, 4)))

    assert (prefixes.cache.trie.blocks, prefixes.cache.memory_usage(), prefixes.cache.counters) == before
    assert prefixes.cache.trie.leases == 0
    prefixes.cache.check_integrity()
    assert prefixes.store("n", prompt(1, 2, 3, 4)) == 2


def test_blocks_packed_before_a_failure_stay() -> None:
    prefixes = FakePrefixes()
    tokens = prompt(*range(100))

    with pytest.raises(RuntimeError, match="out of memory"):
        prefixes.store("n", tokens, source=_Fails(tokens, at=EXTENT_BLOCKS))

    assert prefixes.cache.counters.inserts == prefixes.cache.trie.blocks == EXTENT_BLOCKS
    prefixes.cache.check_integrity()


def test_hit_counter_counts_only_restored_prefixes() -> None:
    prefixes = FakePrefixes(blocks=2)
    assert prefixes.cache.counters.hit_rate == 0.0
    prefixes.store("n", prompt(1, 2))
    prefixes.reuse("n", prompt(1, tail=4))
    prefixes.reuse("n", prompt(3, tail=4))
    prefixes.lookup("n", prompt(1, 2, tail=1)).release()
    prefixes.store("n", prompt(4))

    assert prefixes.cache.counters == PrefixCounters(
        lookups=3, hits=1, tokens_looked_up=20 + 20 + 33, tokens_reused=16, inserts=3, evictions=1
    )
    assert prefixes.cache.counters.hit_rate == pytest.approx(1 / 3)


def test_extent_lives_while_one_block_is_stored() -> None:
    prefixes = FakePrefixes(blocks=4)
    prefixes.store("n", prompt(1, 2, 3, 4))
    lease = prefixes.lookup("n", prompt(1, 2, 9))

    prefixes.store("n", prompt(5))
    assert prefixes.cache.memory_usage() == 5 * BLOCK_BYTES  # block 4 went, but shares its extent with three others

    lease.release()
    prefixes.cache.shed(4 * BLOCK_BYTES)
    assert prefixes.cache.memory_usage() == BLOCK_BYTES


def test_shared_beginning_is_stored_once() -> None:
    """32 conversations over a beginning of 2,048 tokens: the bytes are those of the unique blocks."""
    prefixes = FakePrefixes()
    beginning = list(range(1000, 1128))
    for number in range(32):
        prefixes.store("n", prompt(*beginning, number, number + 100))

    assert prefixes.cache.memory_usage() == (128 + 32 * 2) * BLOCK_BYTES


def test_prebuilt_snapshot_is_stored_like_a_live_cache() -> None:
    """A source is any object that packs blocks: blocks of one prefix cache can be stored in another."""
    kept, other = FakePrefixes(), FakePrefixes()
    kept.store("n", prompt(1, 2, 3))
    with kept.lookup("n", prompt(1, 2, 3, tail=1)) as lease:
        tokens = kept.restore(lease)

    assert other.store("n", tokens, source=FakeKV(tokens)) == 3
    assert other.reuse("n", prompt(1, 2, 3, tail=1)) == prompt(1, 2, 3)
