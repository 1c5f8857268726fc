"""With windows or recurrent layers, a request goes on only where their KV or state was stored."""

from __future__ import annotations

import pytest

from daemon.kv.spec import NotHeldError, Resume
from tests.unit.kv.fake_kv import (
    ALL,
    GROUP_BLOCK_BYTES,
    HYBRID,
    RECURRENT,
    STATE_BYTES,
    WINDOWED,
    FakeKV,
    FakePrefixes,
    prompt,
)


@pytest.mark.parametrize("parts", [WINDOWED, HYBRID, RECURRENT, ALL], ids=["windows", "hybrid", "recurrent", "all"])
def test_prompt_resumes_only_at_its_resume_points(parts: object) -> None:
    prefixes = FakePrefixes(parts=parts)  # type: ignore[arg-type]
    prefixes.store("n", prompt(1, 2, 3, 4, 5))
    prefixes.store("n", prompt(1, 2, 3, 4, 5, 6, 7, 8, 9), Resume.NO)

    assert prefixes.reuse("n", prompt(1, 2, 3, 4, 5, 6, 7, 8, tail=1)) == prompt(1, 2, 3, 4, 5)
    with prefixes.lookup("n", prompt(1, 2, 3, 4, 5, 6, 7, 50)) as lease:
        assert (lease.tokens, lease.branch) == (5 * 16, 7 * 16)


def test_window_is_stored_only_at_resume_points() -> None:
    prefixes = FakePrefixes(parts=WINDOWED)
    prefixes.store("n", prompt(*range(10)))

    assert prefixes.cache.memory_usage() == (10 + 2) * GROUP_BLOCK_BYTES
    assert prefixes.reuse("n", prompt(*range(10), tail=1)) == prompt(*range(10))


def test_interim_windows_are_dropped_at_the_end() -> None:
    prefixes = FakePrefixes(parts=WINDOWED)
    prefixes.store("n", prompt(*range(4)))
    for blocks in range(5, 9):
        prefixes.store("n", prompt(*range(blocks)), Resume.PASSING, FakeKV(prompt(*range(blocks)), window=40))
    prefixes.store("n", prompt(*range(9)), Resume.YES, FakeKV(prompt(*range(9)), window=40))

    prefixes.cache.check_integrity()
    assert prefixes.cache.memory_usage() == (9 + 2 + 2) * GROUP_BLOCK_BYTES
    assert prefixes.reuse("n", prompt(*range(9), tail=1)) == prompt(*range(9))
    assert prefixes.reuse("n", prompt(*range(4), tail=1)) == prompt(*range(4))


@pytest.mark.parametrize("tail", [0, 6])
def test_interim_window_of_a_lease_is_kept(tail: int) -> None:
    """Until its end, the lease restores what it found; what no lease needs goes meanwhile."""
    prefixes = FakePrefixes(parts=WINDOWED)
    for blocks in (1, 5):
        prefixes.store("n", prompt(*range(blocks)), Resume.PASSING)
    with prefixes.lookup("n", prompt(0, tail=1)) as lease:
        prefixes.store("n", prompt(*range(9), tail=tail))

        assert prefixes.restore(lease) == prompt(0)
        assert prefixes.reuse("n", prompt(*range(5), tail=1)) == prompt(0)
        prefixes.cache.check_integrity()


def test_window_before_a_fork_is_kept() -> None:
    prefixes = FakePrefixes(parts=WINDOWED)
    prefixes.store("n", prompt(1, 2, 3), Resume.PASSING)
    prefixes.store("n", prompt(1, 2, 3, 4))
    prefixes.store("n", prompt(1, 2, 3, 50, 51, 52, 53))

    assert prefixes.reuse("n", prompt(1, 2, 3, 4, tail=1)) == prompt(1, 2, 3, 4)
    assert prefixes.reuse("n", prompt(1, 2, 3, 50, 51, 52, 53, tail=1)) == prompt(1, 2, 3, 50, 51, 52, 53)


def test_missing_checkpoint_is_filled_in_later() -> None:
    """The blocks are there already; only the window and the state at the new position are copied."""
    prefixes = FakePrefixes(parts=ALL)
    prefixes.store("n", prompt(*range(10)))
    source = FakeKV(prompt(*range(6)))

    assert prefixes.store("n", prompt(*range(6)), source=source) == 0

    assert source.packed == [(1, 3, 6)]
    assert prefixes.reuse("n", prompt(*range(6), 99)) == prompt(*range(6))
    prefixes.cache.check_integrity()


def test_window_that_moved_on_adds_no_resume_point() -> None:
    prefixes = FakePrefixes(parts=WINDOWED)
    with pytest.raises(NotHeldError):
        prefixes.store("n", prompt(*range(6)), source=FakeKV(prompt(*range(6)), window=30))

    prefixes.cache.check_integrity()
    with prefixes.lookup("n", prompt(*range(6), tail=1)) as lease:
        assert (lease.tokens, lease.branch) == (0, 96)


def test_old_checkpoints_are_evicted_before_blocks() -> None:
    prefixes = FakePrefixes(parts=HYBRID, nbytes=6 * GROUP_BLOCK_BYTES + 2 * STATE_BYTES)
    prefixes.store("n", prompt(1, 2))
    prefixes.store("n", prompt(1, 2, 3, 4))
    prefixes.reuse("n", prompt(1, 2, 9))

    prefixes.store("n", prompt(50))

    prefixes.cache.check_integrity()
    assert prefixes.reuse("n", prompt(50, tail=1)) == prompt(50)
    assert prefixes.reuse("n", prompt(1, 2, 9)) == prompt(1, 2)
    with prefixes.lookup("n", prompt(1, 2, 3, 4, tail=1)) as lease:
        assert (lease.tokens, lease.branch) == (32, 64)


def test_checkpoint_stays_while_only_blocks_are_short() -> None:
    prefixes = FakePrefixes(parts=HYBRID, blocks=4)
    prefixes.store("n", prompt(1, 2))
    prefixes.store("n", prompt(3, 4))
    prefixes.store("n", prompt(1, 2, 5), Resume.NO)

    assert prefixes.reuse("n", prompt(1, 2, 9)) == prompt(1, 2)
    assert prefixes.cache.trie.ledger.checkpoints == 1


def test_leased_checkpoint_survives_eviction() -> None:
    prefixes = FakePrefixes(parts=HYBRID)
    prefixes.store("n", prompt(1, 2))
    lease = prefixes.lookup("n", prompt(1, 2, tail=1))

    prefixes.cache.shed(10**9)
    assert prefixes.restore(lease) == prompt(1, 2)
    assert prefixes.cache.clear().bytes_in_use == 2 * GROUP_BLOCK_BYTES + STATE_BYTES
    assert prefixes.restore(lease) == prompt(1, 2)

    lease.release()
    assert prefixes.cache.memory_usage() == 0
    prefixes.cache.check_integrity()


def test_checkpoints_on_the_way_of_a_lease_are_not_evictable() -> None:
    """Memory that only a lease's end gives back is promised to no other."""
    prefixes = FakePrefixes(parts=HYBRID)
    prefixes.store("n", prompt(1))
    prefixes.store("n", prompt(1, 2))
    prefixes.store("n", prompt(3))
    lease = prefixes.lookup("n", prompt(1, 2, tail=1))

    evictable = prefixes.cache.evictable_bytes()
    assert evictable == GROUP_BLOCK_BYTES + STATE_BYTES
    assert prefixes.cache.shed(10**9) == evictable

    lease.release()
    assert prefixes.cache.evictable_bytes() == prefixes.cache.memory_usage()
    prefixes.cache.check_integrity()


def test_oversized_checkpoint_is_not_stored() -> None:
    prefixes = FakePrefixes(parts=HYBRID, nbytes=STATE_BYTES - 1)

    assert prefixes.store("n", prompt(1, 2)) == 2
    assert prefixes.cache.trie.ledger.checkpoints == 0
    prefixes.cache.check_integrity()


def test_evicted_checkpoint_is_never_found_again() -> None:
    prefixes = FakePrefixes(parts=HYBRID, blocks=2)
    prefixes.store("n", prompt(1, 2))
    prefixes.store("n", prompt(3, 4))

    assert prefixes.reuse("n", prompt(1, 2, tail=1)) == []
    assert prefixes.reuse("n", prompt(3, 4, tail=1)) == prompt(3, 4)
