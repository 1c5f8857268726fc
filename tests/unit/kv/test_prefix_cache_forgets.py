"""Lookups miss forgotten blocks, leased blocks are freed with their lease, and a dry run is exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from daemon.kv.prefix_cache import Dropped
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


def test_clear_forgets_everything_and_leaks_nothing() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2))
    prefixes.store("m", prompt(1, 3))

    assert _both(prefixes, prefixes.cache.clear) == Dropped(4, 4 * BLOCK_BYTES, 0)

    ledger = prefixes.cache.trie.ledger
    assert (prefixes.cache.trie.blocks, ledger.nbytes, ledger.buffers) == (0, 0, 0)
    assert prefixes.cache.clear() == Dropped(0, 0, 0)


def test_a_namespace_is_forgotten_alone() -> None:
    prefixes = FakePrefixes()
    prefixes.store("model-1 salt", prompt(1, 2))
    prefixes.store("model-2 salt", prompt(1, 2))

    dropped = _both(prefixes, lambda **options: prefixes.cache.clear(lambda n: n.startswith("model-1"), **options))

    assert dropped.blocks == 2
    assert prefixes.reuse("model-1 salt", prompt(1, 2, tail=1)) == []
    assert prefixes.reuse("model-2 salt", prompt(1, 2, tail=1)) == prompt(1, 2)


def test_a_prefix_takes_all_its_sequels_and_its_own_blocks_but_none_that_others_share() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2, 3, 4))
    prefixes.store("n", prompt(1, 2, 3, 5))
    prefixes.store("n", prompt(1, 6))

    assert _prefix(prefixes, prompt(1, 2, 3)).blocks == 4

    assert prefixes.reuse("n", prompt(1, 2, 3, 4, tail=1)) == prompt(1)
    assert prefixes.reuse("n", prompt(1, 6, tail=1)) == prompt(1, 6)


def test_a_prefix_that_ends_inside_a_block_takes_the_blocks_that_begin_so() -> None:
    prefixes = FakePrefixes()
    other = prompt(1, 2)
    other[20] = 99
    prefixes.store("n", prompt(1, 2))
    prefixes.store("n", other)

    assert _prefix(prefixes, prompt(1, 2)[:21]).blocks == 1

    assert prefixes.reuse("n", prompt(1, 2, tail=1)) == prompt(1)
    assert prefixes.reuse("n", [*other, 1]) == other


def test_a_prefix_shorter_than_a_block_takes_every_prompt_that_begins_so() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2))
    prefixes.store("n", prompt(3, 4))

    assert _prefix(prefixes, prompt(1)[:3]).blocks == 2
    assert prefixes.reuse("n", prompt(3, 4, tail=1)) == prompt(3, 4)


def test_the_empty_prefix_begins_every_prompt_of_its_namespace() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2))
    prefixes.store("m", prompt(1))

    assert _prefix(prefixes, []).blocks == 2
    assert prefixes.reuse("m", prompt(1, tail=1)) == prompt(1)


@pytest.mark.parametrize("tokens", [prompt(9), prompt(1, 9), prompt(1, 2, 3)[:40], [5]])
def test_a_prefix_that_no_prompt_begins_with_takes_nothing_others_need(tokens: list[int]) -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2, 4))
    prefixes.store("n", prompt(1, 5))

    assert _prefix(prefixes, tokens) == Dropped(0, 0, 0)
    assert prefixes.cache.forget_prefix("unknown", tokens) == Dropped(0, 0, 0)


def test_a_prompt_whose_last_block_was_not_full_or_was_evicted_is_forgotten_too() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2, tail=9))

    assert _prefix(prefixes, prompt(1, 2, tail=5)).blocks == 2


def test_bytes_of_an_extent_that_other_blocks_still_use_are_not_freed() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2, 3))
    prefixes.store("n", prompt(1, 4))

    assert _prefix(prefixes, prompt(1, 2)) == Dropped(2, 0, 0)  # block 1 is in the same extent
    assert _prefix(prefixes, prompt(1)) == Dropped(2, 4 * BLOCK_BYTES, 0)


def test_what_a_lease_holds_is_in_use_until_it_ends_and_found_by_nobody() -> None:
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


def test_an_extent_that_a_forgotten_prompt_still_leases_is_in_use_for_the_next_invalidation() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n", prompt(1, 2))
    prefixes.store("n", prompt(1, 3))
    lease = prefixes.lookup("n", prompt(1, 2, tail=1))

    assert _prefix(prefixes, prompt(1, 2)) == Dropped(1, 0, 0)
    assert _both(prefixes, prefixes.cache.clear) == Dropped(2, BLOCK_BYTES, 2 * BLOCK_BYTES)

    lease.release()
    assert prefixes.cache.memory_usage() == 0


def test_a_prompt_can_be_stored_again_while_its_forgotten_blocks_are_still_leased() -> None:
    prefixes = FakePrefixes(blocks=2)
    prefixes.store("n", prompt(1, 2))
    lease = prefixes.lookup("n", prompt(1, 2, tail=1))
    prefixes.cache.clear()

    assert prefixes.store("n", prompt(1, 2)) == 2
    prefixes.cache.check_integrity()
    lease.release()

    assert prefixes.reuse("n", prompt(1, 2, tail=1)) == prompt(1, 2)
    prefixes.cache.check_integrity()
