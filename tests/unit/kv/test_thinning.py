"""Checkpoints are thinned by distance, within a share of the budget, and those on the disk go first."""

from __future__ import annotations

import pytest

from daemon.kv.spec import PrefixSpec, Resume
from daemon.kv.thinning import SHARE
from tests.unit.kv.disk.fake_disk import FakeDisk
from tests.unit.kv.fake_kv import HYBRID, RECURRENT, STATE_BYTES, FakePrefixes, prompt

NAME = "n/one"
BLOCK = HYBRID.block_bytes


def resumable(prefixes: FakePrefixes, tokens: list[int]) -> list[int]:
    """Return after how many blocks of a stored prompt there is a checkpoint."""
    with prefixes.lookup(NAME, [*tokens, 9]) as lease:
        path = prefixes.cache.trie.walk(NAME, [node.key for node in lease.nodes])
    return [node.depth for node in path if node.checkpoint is not None]


def stored(prefixes: FakePrefixes, letters: range, *ends: int) -> list[int]:
    """Store a prompt with a block for each letter, resumable after some of them."""
    for end in ends:
        prefixes.store(NAME, prompt(*letters[:end]))
    return prompt(*letters[: ends[-1]])


def test_shortest_distance_goes_first() -> None:
    """When blocks need memory, the checkpoint goes that costs least to do without; the latest stay."""
    most = 10 * BLOCK + 5 * STATE_BYTES
    prefixes = FakePrefixes(nbytes=most, parts=HYBRID)
    old = stored(prefixes, range(10, 30), 2, 3, 5, 7)
    second = stored(prefixes, range(30, 50), 2)
    assert prefixes.cache.trie.ledger.checkpoint_bytes > SHARE * most
    third = stored(prefixes, range(50, 60), 1)
    assert resumable(prefixes, old) == [2, 5, 7]
    assert (resumable(prefixes, second), resumable(prefixes, third)) == ([2], [1])
    assert prefixes.cache.trie.blocks == 10
    prefixes.cache.check_integrity()


def test_checkpoints_stay_while_there_is_memory() -> None:
    """However large their share is: nothing needs what they take."""
    prefixes = FakePrefixes(parts=RECURRENT)
    tokens = stored(prefixes, range(10, 60), *range(1, 41))
    assert resumable(prefixes, tokens) == list(range(1, 41))


def test_blocks_go_as_before_below_the_share() -> None:
    """The least recently used prompt goes, with its checkpoint."""
    prefixes = FakePrefixes(nbytes=40 * BLOCK + 2 * STATE_BYTES, parts=HYBRID)
    old, new = stored(prefixes, range(100, 120), 20), stored(prefixes, range(200, 220), 20)
    newest = stored(prefixes, range(300, 305), 5)
    assert resumable(prefixes, old) == []
    assert (resumable(prefixes, new), resumable(prefixes, newest)) == ([20], [5])


@pytest.mark.parametrize("parts", [HYBRID, RECURRENT])
def test_checkpoint_on_the_disk_goes_first(parts: PrefixSpec) -> None:
    """Memory gets room for others, and a request has it back from the disk."""
    prefixes = FakePrefixes(nbytes=12 * parts.block_bytes + 6 * STATE_BYTES, parts=parts)
    disk = FakeDisk(prefixes)
    disk.settle()
    disk.knows(NAME)
    kept = stored(prefixes, range(10, 20), 6)
    prefixes.reuse(NAME, [*kept, 9])
    disk.settle()
    assert disk.tier.catalog.blocks == 6
    for letter in range(20, 27):
        prefixes.store(NAME, prompt(letter), Resume.YES)
    assert resumable(prefixes, kept) == []
    assert disk.restore(NAME, [*kept, 9]) == kept


def test_checkpoint_that_is_near_to_going_is_offered_to_the_disk() -> None:
    """Before it goes, although its prompt was used once."""
    prefixes = FakePrefixes(nbytes=20 * STATE_BYTES, parts=RECURRENT)
    disk = FakeDisk(prefixes)
    disk.settle()
    disk.knows(NAME)
    prompts = [prompt(letter, letter + 100) for letter in range(10, 40)]
    for tokens in prompts:
        prefixes.store(NAME, tokens)
        disk.settle()
    prefixes.cache.shed(10**9)
    restored = [disk.restore(NAME, [*tokens, 9]) == tokens for tokens in prompts]
    assert sum(restored) >= 20
