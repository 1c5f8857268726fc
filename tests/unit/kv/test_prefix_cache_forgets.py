"""Lookups miss forgotten blocks, leased blocks are freed with their lease, and a dry run is exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from daemon.kv.dropped import Dropped
from tests.unit.kv.fake_kv import BLOCK_BYTES, FakePrefixes, prompt

Forget = Callable[..., Dropped]


def _both(prefixes: FakePrefixes, forget: Forget) -> Dropped:
    """Forget in a dry run, then in earnest, and return the result of both."""
    before = (prefixes.cache.trie.blocks, prefixes.cache.memory_usage())
    dry = forget(dry_run=True)
    assert (prefixes.cache.trie.blocks, prefixes.cache.memory_usage()) == before
    assert forget() == dry
    prefixes.cache.check_integrity()
    assert prefixes.cache.memory_usage() == before[1] - dry.bytes_freed
    return dry


def _prefix(prefixes: FakePrefixes, tokens: list[int]) -> Dropped:
    return _both(prefixes, lambda **options: prefixes.cache.forget_prefix("n", tokens, **options))


def test_clear_drops_all_prefixes_and_leaks_nothing() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2))
    prefixes.store("m", prompt(1, 3))

    assert _both(prefixes, prefixes.cache.clear) == Dropped(4, 4 * BLOCK_BYTES, 0)

    ledger = prefixes.cache.trie.ledger
    assert (prefixes.cache.trie.blocks, ledger.nbytes, ledger.buffers) == (0, 0, 0)
    assert prefixes.cache.clear() == Dropped(0, 0, 0)


def test_single_namespace_can_be_dropped() -> None:
    prefixes = FakePrefixes()
    prefixes.store("model-1 salt", prompt(1, 2))
    prefixes.store("model-2 salt", prompt(1, 2))

    dropped = _both(prefixes, lambda **options: prefixes.cache.clear(lambda n: n.startswith("model-1"), **options))

    assert dropped.blocks == 2
    assert prefixes.reuse("model-1 salt", prompt(1, 2, tail=1)) == []
    assert prefixes.reuse("model-2 salt", prompt(1, 2, tail=1)) == prompt(1, 2)


def test_dropped_prefix_spares_blocks_of_others() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2, 3, 4))
    prefixes.store("n", prompt(1, 2, 3, 5))
    prefixes.store("n", prompt(1, 6))

    assert _prefix(prefixes, prompt(1, 2, 3)).blocks == 4

    assert prefixes.reuse("n", prompt(1, 2, 3, 4, tail=1)) == prompt(1)
    assert prefixes.reuse("n", prompt(1, 6, tail=1)) == prompt(1, 6)


def test_drop_inside_a_block_takes_matching_blocks() -> None:
    prefixes = FakePrefixes()
    other = prompt(1, 2)
    other[20] = 99
    prefixes.store("n", prompt(1, 2))
    prefixes.store("n", other)

    assert _prefix(prefixes, prompt(1, 2)[:21]).blocks == 1

    assert prefixes.reuse("n", prompt(1, 2, tail=1)) == prompt(1, 2)[:20]
    assert prefixes.reuse("n", [*other, 1]) == other


def test_drop_below_a_block_takes_matching_prompts() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2))
    prefixes.store("n", prompt(3, 4))

    assert _prefix(prefixes, prompt(1)[:3]).blocks == 2
    assert prefixes.reuse("n", prompt(3, 4, tail=1)) == prompt(3, 4)


def test_empty_prefix_drops_its_whole_namespace() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2))
    prefixes.store("m", prompt(1))

    assert _prefix(prefixes, []).blocks == 2
    assert prefixes.reuse("m", prompt(1, tail=1)) == prompt(1)


@pytest.mark.parametrize("tokens", [prompt(9), prompt(1, 9), prompt(1, 2, 3)[:40], [5]])
def test_unmatched_prefix_drops_nothing(tokens: list[int]) -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2, 4))
    prefixes.store("n", prompt(1, 5))

    assert _prefix(prefixes, tokens) == Dropped(0, 0, 0)
    assert prefixes.cache.forget_prefix("unknown", tokens) == Dropped(0, 0, 0)


def test_partly_stored_prompt_is_dropped_too() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2, tail=9))

    assert _prefix(prefixes, prompt(1, 2, tail=5)).blocks == 3


def test_dropped_bytes_exclude_shared_extents() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2, 3))
    prefixes.store("n", prompt(1, 4))

    assert _prefix(prefixes, prompt(1, 2)) == Dropped(2, 0, 0)  # block 1 is in the same extent
    assert _prefix(prefixes, prompt(1)) == Dropped(2, 4 * BLOCK_BYTES, 0)


def test_leased_dropped_prefix_is_in_use_and_not_found() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2))
    prefixes.store("n", prompt(3))
    lease = prefixes.lookup("n", prompt(1, 2, tail=1))

    assert _both(prefixes, prefixes.cache.clear) == Dropped(3, BLOCK_BYTES, 2 * BLOCK_BYTES)

    assert prefixes.reuse("n", prompt(1, 2, tail=1)) == []
    assert prefixes.restore(lease) == prompt(1, 2)
    assert prefixes.cache.memory_usage() == 2 * BLOCK_BYTES
    lease.release()
    assert prefixes.cache.memory_usage() == 0
    prefixes.cache.check_integrity()


def test_leased_extent_counts_for_the_next_drop() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2))
    prefixes.store("n", prompt(1, 3))
    lease = prefixes.lookup("n", prompt(1, 2, tail=1))

    assert _prefix(prefixes, prompt(1, 2)) == Dropped(1, 0, 0)
    assert _both(prefixes, prefixes.cache.clear) == Dropped(2, BLOCK_BYTES, 2 * BLOCK_BYTES)

    lease.release()
    assert prefixes.cache.memory_usage() == 0


def test_dropped_prompt_can_be_stored_while_leased() -> None:
    prefixes = FakePrefixes(blocks=2)
    prefixes.store("n", prompt(1, 2))
    lease = prefixes.lookup("n", prompt(1, 2, tail=1))
    prefixes.cache.clear()

    assert prefixes.store("n", prompt(1, 2)) == 2
    prefixes.cache.check_integrity()
    lease.release()

    assert prefixes.reuse("n", prompt(1, 2, tail=1)) == prompt(1, 2)
    prefixes.cache.check_integrity()
