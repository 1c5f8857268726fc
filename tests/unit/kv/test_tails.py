"""Ends that fill no block are kept as tails: a request goes on after exactly the last token that was computed."""

from __future__ import annotations

import pytest

from daemon.kv.place import MOST_CHILDREN
from daemon.kv.spec import PrefixSpec, Resume
from tests.unit.kv.fake_kv import (
    ALL,
    BLOCK_BYTES,
    GROUP_BLOCK_BYTES,
    HYBRID,
    LAYOUTS,
    PLAIN,
    RECURRENT,
    STATE_BYTES,
    WINDOWED,
    FakeKV,
    FakePrefixes,
    prompt,
)

EACH_LAYOUT = pytest.mark.parametrize("parts", LAYOUTS, ids=str)
RIGID = pytest.mark.parametrize("parts", [WINDOWED, HYBRID, RECURRENT, ALL], ids=str)


@EACH_LAYOUT
@pytest.mark.parametrize("tail", range(16))
def test_next_turn_goes_on_after_the_last_token(parts: PrefixSpec, tail: int) -> None:
    prefixes = FakePrefixes(parts=parts)
    turn = [*prompt(1, 2), *prompt(3)[:tail]]
    prefixes.store("n", turn)

    assert prefixes.reuse("n", [*turn, 9]) == turn
    assert prefixes.cache.trie.tails == (tail > 0)
    assert prefixes.cache.counters.tail_tokens_reused == tail
    prefixes.cache.check_integrity()


@pytest.mark.parametrize("common", [16, 17, 31, 33, 37])
def test_full_attention_goes_on_inside_a_block_or_a_tail(common: int) -> None:
    prefixes = FakePrefixes()
    stored = prompt(1, 2, 3)[:38]
    prefixes.store("n", stored)

    assert prefixes.reuse("n", [*stored[:common], 9, 9]) == stored[:common]


@RIGID
def test_states_and_windows_go_on_after_a_whole_tail_only(parts: PrefixSpec) -> None:
    prefixes = FakePrefixes(parts=parts)
    stored = prompt(1, 2, 3)[:38]
    prefixes.store("n", stored)

    assert prefixes.reuse("n", [*stored[:37], 9, 9]) == []
    assert prefixes.reuse("n", stored) == []  # its last token is always computed
    assert prefixes.reuse("n", [*stored, 9]) == stored


@RIGID
def test_prompt_that_leaves_later_goes_on_at_the_last_tail(parts: PrefixSpec) -> None:
    """The blocks behind the tail are stored, and no resume point among them."""
    prefixes = FakePrefixes(parts=parts)
    whole = prompt(1, 2, 3, 4)
    for end in (19, 20, 37):
        prefixes.store("n", whole[:end])
    prefixes.store("n", whole, Resume.NO)

    assert prefixes.reuse("n", [*whole[:50], 9]) == whole[:37]
    assert prefixes.reuse("n", [*whole[:36], 9]) == whole[:20]
    assert prefixes.reuse("n", [*whole[:20], 9]) == whole[:20]
    assert prefixes.reuse("n", [*whole[:19], 9]) == whole[:19]


def test_longer_block_or_tail_takes_the_place_of_a_tail() -> None:
    """With full attention alone it has the same KV; a kept tail stays."""
    prefixes = FakePrefixes()
    whole = prompt(1, 2)
    for end in (20, 25, 22):
        prefixes.store("n", whole[:end])
        assert prefixes.cache.trie.tails == 1
    prefixes.store("n", [*whole[:16], 9])
    assert prefixes.store("n", whole) == 1

    assert prefixes.cache.trie.tails == 1
    assert prefixes.reuse("n", [*whole[:16], 9, 8]) == [*whole[:16], 9]
    prefixes.cache.keep("n", [*whole[:16], 9, 8], PLAIN, 60)
    prefixes.store("n", [*whole[:16], 9, 8, 7])
    assert prefixes.cache.trie.tails == 2
    prefixes.cache.check_integrity()


@RIGID
def test_tail_stays_when_the_conversation_goes_on(parts: PrefixSpec) -> None:
    """Another branch may leave there."""
    prefixes = FakePrefixes(parts=parts)
    whole = prompt(1, 2, 3)
    prefixes.store("n", whole[:20])
    prefixes.store("n", whole)

    assert prefixes.reuse("n", [*whole[:20], 9]) == whole[:20]


def test_tail_takes_exactly_the_bytes_of_what_it_needs() -> None:
    """The KV of its tokens, all that the window sees, and the state."""
    prefixes = FakePrefixes(parts=ALL)
    prefixes.store("n", prompt(1, 2, 3, 4)[:61])

    expected = 3 * GROUP_BLOCK_BYTES + 13 * GROUP_BLOCK_BYTES // 16 + 40 * GROUP_BLOCK_BYTES // 16 + STATE_BYTES
    assert prefixes.cache.memory_usage() == expected
    assert prefixes.cache.trie.ledger.buffers == 4


def test_tail_goes_before_the_block_that_it_follows() -> None:
    prefixes = FakePrefixes()
    stored = prompt(1, 2)[:25]
    prefixes.store("n", stored)

    prefixes.cache.shed(1)

    assert prefixes.reuse("n", [*stored, 9]) == stored[:16]
    prefixes.cache.shed(1)
    assert prefixes.reuse("n", [*stored, 9]) == []
    assert prefixes.cache.memory_usage() == 0


def test_tail_without_room_is_not_stored() -> None:
    """Neither its blocks nor what others hold make room for it."""
    prefixes = FakePrefixes(nbytes=2 * GROUP_BLOCK_BYTES + STATE_BYTES, parts=HYBRID)

    assert prefixes.store("n", prompt(1, 2, tail=5)) == 2
    assert prefixes.cache.trie.tails == 0
    prefixes.cache.check_integrity()


def test_lost_checkpoint_of_a_tail_is_filled_in_later() -> None:
    prefixes = FakePrefixes(parts=HYBRID)
    stored = prompt(1, 2, tail=5)
    prefixes.store("n", stored)
    prefixes.cache.shed(1)
    assert prefixes.cache.trie.tails == 1
    assert prefixes.reuse("n", [*stored, 9]) == []

    assert prefixes.store("n", stored) == 0

    assert prefixes.reuse("n", [*stored, 9]) == stored
    prefixes.cache.check_integrity()


@EACH_LAYOUT
def test_leased_tail_outlives_eviction_and_invalidation(parts: PrefixSpec) -> None:
    prefixes = FakePrefixes(parts=parts)
    stored = prompt(1, 2, tail=5)
    prefixes.store("n", stored)
    lease = prefixes.lookup("n", [*stored, 9])

    prefixes.cache.shed(10**9)
    assert prefixes.restore(lease) == stored
    prefixes.cache.clear()
    assert prefixes.restore(lease) == stored
    assert prefixes.reuse("n", [*stored, 9]) == []

    lease.release()
    assert prefixes.cache.memory_usage() == 0
    prefixes.cache.check_integrity()


@RIGID
def test_kept_tail_stays(parts: PrefixSpec) -> None:
    prefixes = FakePrefixes(parts=parts, clock=lambda: 0.0)
    stored = prompt(1, 2, tail=5)
    prefixes.store("n", stored)
    assert prefixes.cache.keep("n", [*stored, 9], parts, 60)
    (keep,) = prefixes.cache.keeps
    assert keep.tokens == 37
    prefixes.store("n", prompt(3, 4, tail=3))

    prefixes.cache.shed(1)
    prefixes.cache.check_integrity()
    assert prefixes.reuse("n", [*stored, 9]) == stored


@EACH_LAYOUT
@pytest.mark.parametrize("tail", [4, 5, 6])
def test_invalidated_end_of_a_prompt_takes_its_tail(parts: PrefixSpec, tail: int) -> None:
    """Whether the tail is as long as the prefix, shorter or longer; what others share stays."""
    prefixes = FakePrefixes(parts=parts)
    other = prompt(1, 2, 4)
    prefixes.store("n", other)
    prefixes.store("n", [*prompt(1, 2), *prompt(3)[:5]])

    assert prefixes.cache.forget_prefix("n", [*prompt(1, 2), *prompt(3)[:tail]]).blocks == 1

    assert prefixes.cache.trie.tails == 0
    assert prefixes.reuse("n", [*other, 9]) == other


@EACH_LAYOUT
@pytest.mark.parametrize("shared", [False, True])
def test_invalidated_prompt_takes_the_tails_on_its_way(parts: PrefixSpec, shared: bool) -> None:
    """They are resume points of its beginning. What others share stays."""
    prefixes = FakePrefixes(parts=parts)
    whole, other = prompt(1, 2, 3, 4), prompt(1, 2, 5)
    for end in (19, 37, 41, 64):
        prefixes.store("n", whole[:end])
    if shared:
        prefixes.store("n", other)

    prefixes.cache.forget_prefix("n", whole)

    assert prefixes.cache.trie.blocks - prefixes.cache.trie.tails == 3 * shared
    assert prefixes.reuse("n", [*whole, 9]) in ([], whole[:19], whole[:32])
    assert not shared or prefixes.reuse("n", [*other, 9]) == other
    prefixes.cache.check_integrity()


def test_salts_share_no_tail() -> None:
    prefixes = FakePrefixes()
    prefixes.store("n/one", prompt(1, tail=5))

    assert prefixes.reuse("n/two", prompt(1, tail=6)) == []


def test_failing_tail_leaves_the_blocks() -> None:
    class Failing(FakeKV):
        def tail(self, group: int, first: int, last: int) -> object:  # type: ignore[override]
            raise RuntimeError("no device")

    prefixes = FakePrefixes()
    with pytest.raises(RuntimeError, match="no device"):
        prefixes.store("n", prompt(1, 2, tail=5), source=Failing(prompt(1, 2, tail=5)))

    assert prefixes.reuse("n", prompt(1, 2, tail=5)) == prompt(1, 2)
    assert prefixes.cache.memory_usage() == 2 * BLOCK_BYTES
    prefixes.cache.check_integrity()


def test_comparison_inside_blocks_is_bounded() -> None:
    """Behind a block with very many successors a lookup does not look at all of them, and stays right."""
    prefixes = FakePrefixes(blocks=10_000)
    for letter in range(MOST_CHILDREN + 50):
        prefixes.store("n", prompt(1, 100 + letter))

    for letter in (0, MOST_CHILDREN + 49):
        stored = prompt(1, 100 + letter)
        assert prefixes.reuse("n", [*stored, 9]) == stored
        assert prefixes.reuse("n", [*stored[:20], 9]) in (stored[:20], stored[:16])


@pytest.mark.parametrize("parts", [HYBRID, ALL], ids=str)
@pytest.mark.parametrize("nbytes", range(330, 500, 10))
def test_tail_is_not_evicted_by_its_own_checkpoint(parts: PrefixSpec, nbytes: int) -> None:
    """It lost the checkpoint for want of memory, and is the oldest of what may be evicted when it is stored again."""
    prefixes = FakePrefixes(parts=parts, nbytes=nbytes)
    prompts = [[*prompt(1), *prompt(2)[:5]], [*prompt(3), *prompt(4)[:5]]]
    for stored in prompts * 3:
        prefixes.store("n", stored)
        prefixes.cache.check_integrity()
        assert prefixes.reuse("n", [*stored, 9]) in ([], stored[:16], stored)
        nodes = prefixes.cache.trie.subtree(prefixes.cache.trie.tops(lambda _: True))
        assert {len(node.extents) for node in nodes} == {len(parts.groups)}
