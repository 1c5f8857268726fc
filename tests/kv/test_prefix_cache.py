"""The prefix cache gives back exactly the longest stored prefix, copies new blocks only, and keeps to its budgets."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from daemon.kv.extents import EXTENT_BLOCKS, Extent
from daemon.kv.prefix_cache import Counters
from tests.kv.fake_kv import BLOCK_BYTES, FakePrefixes, fake_extents, prompt


def test_a_prompt_gets_back_its_longest_stored_prefix() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2, 3))
    prefixes.store("n", prompt(1, 2, 4, 5))

    assert prefixes.reuse("n", prompt(1, 2, 4, 6, tail=3)) == prompt(1, 2, 4)
    assert prefixes.reuse("n", prompt(1, 2, 3, 4)) == prompt(1, 2, 3)
    assert prefixes.reuse("n", prompt(2, 3, tail=1)) == []


def test_the_same_blocks_after_another_beginning_are_not_reused() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2))

    assert prefixes.reuse("n", prompt(2, tail=1)) == []
    assert prefixes.reuse("n", prompt(3, 2, tail=1)) == []


@pytest.mark.parametrize(("tail", "reused"), [(0, prompt(1)), (1, prompt(1, 2)), (15, prompt(1, 2))])
def test_at_least_one_token_is_left_to_compute(tail: int, reused: list[int]) -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2, 3))

    assert prefixes.reuse("n", prompt(1, 2, tail=tail)) == reused


@pytest.mark.parametrize("tokens", [[], [1], [1] * 15, [1] * 16])
def test_a_prompt_of_at_most_one_block_reuses_nothing(tokens: list[int]) -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", [1] * 16)

    assert prefixes.reuse("n", tokens) == []


@pytest.mark.parametrize(("least", "reused"), [(16, 32), (32, 32), (33, 0), (48, 0)])
def test_a_match_shorter_than_min_prefix_len_counts_as_none(least: int, reused: int) -> None:
    prefixes = FakePrefixes(min_prefix_len=least)
    prefixes.store("n", prompt(1, 2, 3))

    assert len(prefixes.reuse("n", prompt(1, 2, 4))) == reused
    assert prefixes.cache.counters.hits == (reused > 0)
    prefixes.cache.check_integrity()


def test_a_prompt_shorter_than_min_prefix_len_is_not_stored() -> None:
    prefixes = FakePrefixes(min_prefix_len=48)

    assert prefixes.store("n", prompt(1, 2)) == 0
    assert prefixes.store("n", prompt(1, 2, 3)) == 3


def test_namespaces_share_nothing() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2))

    assert prefixes.reuse("m", prompt(1, 2, tail=1)) == []
    assert prefixes.store("m", prompt(1, 2)) == 2


def test_only_full_blocks_that_are_new_are_packed() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2, tail=9))
    prefixes.store("n", prompt(1, 2, 3, 4))
    prefixes.store("n", prompt(1, 5))

    assert prefixes.packed == [(0, 2), (2, 4), (1, 2)]


def test_storing_again_or_storing_a_prefix_changes_nothing() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2, 3))

    assert prefixes.store("n", prompt(1, 2, 3)) == 0
    assert prefixes.store("n", prompt(1, 2, tail=5)) == 0
    assert prefixes.cache.trie.blocks == 3


def test_a_long_prompt_is_packed_into_extents_of_limited_size() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(*range(2 * EXTENT_BLOCKS + 3)))

    assert prefixes.packed == [(0, 64), (64, 128), (128, 131)]
    assert prefixes.cache.trie.ledger.buffers == 6
    assert prefixes.reuse("n", prompt(*range(100), tail=1)) == prompt(*range(100))


def test_after_a_partial_eviction_only_the_hole_is_filled() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2))
    prefixes.store("n", prompt(1, 2, 3, 4))
    prefixes.cache.shed(1)
    prefixes.packed.clear()
    blocks = prefixes.cache.trie.blocks
    prefixes.store("n", prompt(1, 2, 3, 4))

    assert prefixes.packed == [(blocks, 4)]
    assert prefixes.reuse("n", prompt(1, 2, 3, 4, tail=1)) == prompt(1, 2, 3, 4)


def test_memory_usage_is_that_of_the_extents_with_a_live_block() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2, 3))
    assert prefixes.cache.memory_usage() == 3 * BLOCK_BYTES

    prefixes.store("n", prompt(1, 4))
    assert prefixes.cache.memory_usage() == 4 * BLOCK_BYTES


@pytest.mark.parametrize("limit", [{"blocks": 10}, {"nbytes": 10 * BLOCK_BYTES}, {"buffers": 6}])
def test_every_budget_is_kept_by_forgetting_what_was_used_longest_ago(limit: dict[str, int]) -> None:
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
def test_of_a_prompt_larger_than_the_budget_the_beginning_is_stored(limit: dict[str, int]) -> None:
    prefixes = FakePrefixes(**limit)
    prefixes.store("n", prompt(1000, 1001))

    assert prefixes.store("n", prompt(*range(200))) == 70

    prefixes.cache.check_integrity()
    assert prefixes.reuse("n", prompt(*range(200))) == prompt(*range(70))


@pytest.mark.parametrize("limit", [{"blocks": 0}, {"nbytes": 0}, {"buffers": 0}, {"nbytes": BLOCK_BYTES - 1}])
def test_a_budget_below_one_block_stores_nothing(limit: dict[str, int]) -> None:
    prefixes = FakePrefixes(**limit)

    assert prefixes.store("n", prompt(1)) == 0
    assert prefixes.reuse("n", prompt(1, 2)) == []
    assert prefixes.packed == []


def test_blocks_that_take_more_than_announced_are_stored_but_the_budget_is_restored() -> None:
    prefixes = FakePrefixes(nbytes=4 * BLOCK_BYTES)
    prefixes.store("n", prompt(1, 2))
    tokens = prompt(3, 4)
    prefixes.cache.store("n", tokens, 1, lambda start, stop: fake_extents(tokens, start, stop))
    prefixes.cache.store("n", prompt(5), 1, lambda start, stop: fake_extents(prompt(5), start, stop))

    prefixes.cache.check_integrity()
    assert prefixes.reuse("n", prompt(5, tail=1)) == prompt(5)


def test_a_lease_protects_its_prefix_from_any_pressure() -> None:
    prefixes = FakePrefixes(blocks=4)
    prefixes.store("n", prompt(1, 2, 3))
    lease = prefixes.cache.lookup("n", prompt(1, 2, 9))

    assert prefixes.store("n", prompt(20, 21, 22, 23)) == 2
    prefixes.cache.shed(10**9)

    assert prefixes.restore(lease) == prompt(1, 2)
    lease.release()
    prefixes.cache.check_integrity()


def test_storing_behind_a_leased_prefix_never_evicts_that_prefix() -> None:
    prefixes = FakePrefixes(blocks=3)
    prefixes.store("n", prompt(1, 2))

    assert prefixes.store("n", prompt(1, 2, 3, 4)) == 1
    assert prefixes.reuse("n", prompt(1, 2, 3, 4)) == prompt(1, 2, 3)


def test_shed_returns_the_bytes_that_became_free() -> None:
    prefixes = FakePrefixes()
    for letter in range(5):
        prefixes.store("n", prompt(letter))

    assert prefixes.cache.shed(150) == 200
    assert prefixes.cache.memory_usage() == 300
    assert prefixes.cache.shed(0) == 0
    assert prefixes.cache.counters.evictions == 2


def _fail(start: int, stop: int) -> list[Extent]:
    raise RuntimeError("out of memory")


def _nothing(start: int, stop: int) -> list[Extent]:
    return []


def _short(start: int, stop: int) -> list[Extent]:
    return fake_extents(prompt(1), 0, 1)


@pytest.mark.parametrize("pack", [_fail, _nothing, _short])
def test_a_pack_that_fails_or_lies_leaves_no_trace(pack: Callable[[int, int], list[Extent]]) -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2))
    before = (prefixes.cache.trie.blocks, prefixes.cache.memory_usage(), prefixes.cache.counters)

    for namespace in ("n", "another"):
        with pytest.raises((RuntimeError, ValueError)):
            prefixes.cache.store(namespace, prompt(1, 2, 3, 4), BLOCK_BYTES, pack)

    assert (prefixes.cache.trie.blocks, prefixes.cache.memory_usage(), prefixes.cache.counters) == before
    assert prefixes.cache.trie.leases == 0
    prefixes.cache.check_integrity()
    assert prefixes.store("n", prompt(1, 2, 3, 4)) == 2


def test_what_was_packed_before_a_failure_stays_and_is_counted() -> None:
    prefixes = FakePrefixes()
    tokens = prompt(*range(100))

    def pack(start: int, stop: int) -> list[Extent]:
        return fake_extents(tokens, start, stop) if start == 0 else _fail(start, stop)

    with pytest.raises(RuntimeError, match="out of memory"):
        prefixes.cache.store("n", tokens, BLOCK_BYTES, pack)

    assert prefixes.cache.counters.inserts == prefixes.cache.trie.blocks == EXTENT_BLOCKS
    prefixes.cache.check_integrity()


def test_counters_tell_lookups_hits_and_tokens_but_count_a_hit_only_once_it_was_restored() -> None:
    prefixes = FakePrefixes(blocks=2)
    assert prefixes.cache.counters.hit_rate == 0.0
    prefixes.store("n", prompt(1, 2))
    prefixes.reuse("n", prompt(1, tail=4))
    prefixes.reuse("n", prompt(3, tail=4))
    prefixes.cache.lookup("n", prompt(1, 2, tail=1)).release()
    prefixes.store("n", prompt(4))

    assert prefixes.cache.counters == Counters(
        lookups=3, hits=1, tokens_looked_up=20 + 20 + 33, tokens_reused=16, inserts=3, evictions=1
    )
    assert prefixes.cache.counters.hit_rate == pytest.approx(1 / 3)


def test_an_extent_outlives_its_blocks_only_as_long_as_one_of_them_is_stored() -> None:
    prefixes = FakePrefixes(blocks=3)
    prefixes.store("n", prompt(1, 2, 3))
    lease = prefixes.cache.lookup("n", prompt(1, 9))

    prefixes.store("n", prompt(4))
    assert prefixes.cache.memory_usage() == 4 * BLOCK_BYTES  # block 3 went, but shares its extent with 1 and 2

    lease.release()
    prefixes.cache.shed(3 * BLOCK_BYTES)
    assert prefixes.cache.memory_usage() == BLOCK_BYTES
