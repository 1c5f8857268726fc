"""A kept prefix is evicted after everything else, for its time, within half of the cache; and it stays restorable."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from daemon.kv.keeps import MOST_KEPT
from daemon.kv.spec import PrefixSpec, Resume
from tests.support.builders import Clock
from tests.unit.kv.fake_kv import BLOCK_BYTES, LAYOUTS, PLAIN, WINDOWED, FakePrefixes, prompt

HOUR = 3600.0


def kept(prefixes: FakePrefixes, tokens: list[int], seconds: float = HOUR, namespace: str = "n") -> bool:
    """Store a prompt with one more token, and keep its blocks."""
    prefixes.store(namespace, tokens)
    return prefixes.cache.keep(namespace, [*tokens, 7], prefixes.parts, seconds)


@pytest.mark.parametrize("limit", [{"blocks": 12}, {"nbytes": 12 * BLOCK_BYTES}])
@pytest.mark.parametrize("parts", LAYOUTS)
def test_kept_prefix_outlives_all_others(parts: PrefixSpec, limit: Any) -> None:
    """Though it was used longest ago; what a restore needs of windows and states stays with it."""
    prefixes = FakePrefixes(parts=parts, **limit)
    assert kept(prefixes, prompt(1, 2, 3, 4))

    for letter in range(10, 40, 3):
        prefixes.store("n", prompt(letter, letter + 1, letter + 2))

    prefixes.cache.check_integrity()
    assert prefixes.reuse("n", prompt(1, 2, 3, 4, 99)) == prompt(1, 2, 3, 4)


def test_windows_of_a_kept_prefix_are_not_thinned() -> None:
    """A resume point that was stored in passing loses its windows to a later one, unless it is kept."""
    prefixes = FakePrefixes(parts=WINDOWED)
    prefixes.store("n", prompt(1, 2, 3, 4), Resume.PASSING)
    assert prefixes.cache.keep("n", prompt(1, 2, 3, 4, tail=1), WINDOWED, HOUR)

    prefixes.store("n", prompt(*range(1, 11)))

    assert prefixes.reuse("n", prompt(1, 2, 3, 4, tail=1)) == prompt(1, 2, 3, 4)


def test_leased_prefix_does_not_yield_in_vain() -> None:
    prefixes = FakePrefixes()
    kept(prefixes, prompt(1, 2))

    with prefixes.lookup("n", prompt(1, 2, tail=1)):
        prefixes.cache.shed(10**9)

    assert len(prefixes.cache.keeps) == 1


def test_kept_prefix_is_ordinary_after_its_time() -> None:
    clock = Clock()
    prefixes = FakePrefixes(blocks=8, clock=clock)
    kept(prefixes, prompt(1, 2, 3), 10.0)
    assert prefixes.cache.keeps.free_bytes == 3 * BLOCK_BYTES
    clock.pass_(10.0)
    assert prefixes.cache.keeps.free_bytes == 0

    prefixes.store("n", prompt(*range(20, 28)))

    assert prefixes.reuse("n", prompt(1, 2, 3, tail=1)) == []
    assert not prefixes.cache.keeps
    assert prefixes.cache.keeps.yielded == 0


def test_keep_can_be_renewed_but_not_shortened() -> None:
    clock = Clock()
    prefixes = FakePrefixes(clock=clock)
    kept(prefixes, prompt(1, 2), 100.0)
    kept(prefixes, prompt(1, 2), 10.0)
    (keep,) = prefixes.cache.keeps
    assert prefixes.cache.keeps.expires_in(keep) == 100

    clock.pass_(50.0)
    kept(prefixes, prompt(1, 2), 100.0)
    assert prefixes.cache.keeps.expires_in(keep) == 100


def test_kept_prefixes_take_half_of_the_cache_at_most() -> None:
    """The one whose time would be over first yields, and is cached as any other."""
    prefixes = FakePrefixes(nbytes=10 * BLOCK_BYTES)
    kept(prefixes, prompt(1, 2), 3 * HOUR)
    kept(prefixes, prompt(3, 4), HOUR)

    with capture_logs() as logs:
        assert kept(prefixes, prompt(5, 6), 2 * HOUR)

    assert [(line["event"], line["blocks"], line["prefix_bytes"]) for line in logs] == [
        ("kept_prefix_over_cap", 2, 2 * BLOCK_BYTES)
    ]
    assert prefixes.cache.keeps.yielded == 1
    assert prefixes.cache.keeps.nbytes == 4 * BLOCK_BYTES
    assert prefixes.reuse("n", prompt(3, 4, tail=1)) == prompt(3, 4)
    prefixes.cache.check_integrity()


def test_shared_blocks_of_kept_prefixes_count_once() -> None:
    prefixes = FakePrefixes()
    kept(prefixes, prompt(1, 2, 3))
    kept(prefixes, prompt(1, 2, 4))

    assert prefixes.cache.keeps.blocks == 4
    assert [keep.nbytes for keep in prefixes.cache.keeps] == [3 * BLOCK_BYTES, 3 * BLOCK_BYTES]


def test_prefix_beyond_the_share_is_not_kept() -> None:
    """It does not push out the others on the way."""
    prefixes = FakePrefixes(blocks=10)
    kept(prefixes, prompt(1, 2))

    assert not kept(prefixes, prompt(*range(10, 16)), 2 * HOUR)
    assert [keep.tokens for keep in prefixes.cache.keeps] == [32]
    assert prefixes.cache.keeps.yielded == 1


def test_kept_prefix_yields_when_all_else_is_gone() -> None:
    prefixes = FakePrefixes()
    kept(prefixes, prompt(1, 2), 2 * HOUR)
    kept(prefixes, prompt(3), HOUR)
    prefixes.store("n", prompt(4))

    prefixes.cache.shed(2 * BLOCK_BYTES)

    assert [keep.tokens for keep in prefixes.cache.keeps] == [32]
    assert prefixes.cache.trie.blocks == 2


@pytest.mark.parametrize("limit", [{"blocks": 12}, {"nbytes": 12 * BLOCK_BYTES}])
@pytest.mark.parametrize("parts", LAYOUTS)
def test_store_of_an_ordinary_prompt_ends_no_keep(parts: PrefixSpec, limit: Any) -> None:
    """Though the limit leaves room for what is kept alone: the prompt is not stored, or as far as there is room."""
    prefixes = FakePrefixes(parts=parts, **limit)
    assert kept(prefixes, prompt(1, 2))
    prefixes.cache.limit(prefixes.cache.memory_usage())

    for letter in range(10, 20):
        prefixes.store("n", prompt(letter, letter + 1, letter + 2, *range(letter + 3, letter + 30)))

    assert (len(prefixes.cache.keeps), prefixes.cache.keeps.yielded) == (1, 0)
    assert prefixes.reuse("n", prompt(1, 2, tail=1)) == prompt(1, 2)
    prefixes.cache.check_integrity()


def test_keep_with_the_least_time_left_yields_to_a_prompt_that_is_to_be_kept() -> None:
    prefixes = FakePrefixes()
    kept(prefixes, prompt(1, 2), 2 * HOUR)
    kept(prefixes, prompt(3), HOUR)
    prefixes.cache.limit(prefixes.cache.memory_usage())

    prefixes.store("n", prompt(4), kept=True)

    assert [keep.tokens for keep in prefixes.cache.keeps] == [32]
    assert prefixes.cache.keep("n", prompt(4, tail=1), prefixes.parts, HOUR)


def test_kept_prefix_survives_a_flood_of_another_salt() -> None:
    prefixes = FakePrefixes(blocks=20)
    kept(prefixes, prompt(*range(8)), namespace="m/quiet")

    for first in range(100, 200, 5):
        prefixes.store("m/loud", prompt(*range(first, first + 5)))

    assert prefixes.reuse("m/quiet", prompt(*range(8), tail=1)) == prompt(*range(8))


def test_salt_that_exceeds_its_half_evicts_its_kept_prefix_last() -> None:
    """Its other prefixes go first, and those of the other salt stay."""
    prefixes = FakePrefixes(blocks=20)
    prefixes.store("m/other", prompt(*range(10)))
    kept(prefixes, prompt(50, 51, 52, 53), namespace="m/own")
    for letter in range(60, 80):
        prefixes.store("m/own", prompt(letter, letter, letter))

    assert prefixes.reuse("m/other", prompt(*range(10), tail=1)) == prompt(*range(10))
    assert prefixes.reuse("m/own", prompt(50, 51, 52, 53, tail=1)) == prompt(50, 51, 52, 53)
    prefixes.store("m/own", prompt(*range(100, 110)))
    assert not prefixes.cache.keeps


def test_invalidated_prefix_is_kept_no_longer() -> None:
    prefixes = FakePrefixes()
    kept(prefixes, prompt(1, 2))
    kept(prefixes, prompt(1, 3))

    prefixes.cache.forget_prefix("n", prompt(1, 2))
    assert [keep.tokens for keep in prefixes.cache.keeps] == [32]
    prefixes.cache.clear()

    assert not prefixes.cache.keeps
    assert prefixes.cache.keeps.nbytes == 0
    prefixes.cache.check_integrity()


def test_prefix_that_is_not_stored_is_not_kept() -> None:
    prefixes = FakePrefixes(min_prefix_len=32)
    prefixes.store("n", prompt(1, 2, 3))

    assert not prefixes.cache.keep("n", prompt(9, 9), PLAIN, HOUR)
    assert not prefixes.cache.keep("n", prompt(1, tail=1), PLAIN, HOUR)


def test_number_of_kept_prefixes_is_bounded() -> None:
    prefixes = FakePrefixes()
    for letter in range(MOST_KEPT + 5):
        kept(prefixes, prompt(letter), HOUR + letter)

    assert len(prefixes.cache.keeps) == MOST_KEPT
    assert prefixes.cache.keeps.yielded == 5
