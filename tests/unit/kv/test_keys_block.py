"""The key of a block is all of its token ids, so that equal keys mean equal tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.kv.keys import BLOCK_TOKENS, block_keys, key_starts_with

TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=70)


@given(TOKENS)
def test_there_is_one_key_for_each_full_block(tokens: list[int]) -> None:
    assert len(block_keys(tokens)) == len(tokens) // BLOCK_TOKENS


@given(TOKENS, TOKENS)
def test_keys_are_equal_exactly_if_the_tokens_of_the_full_blocks_are(one: list[int], two: list[int]) -> None:
    same = one[: len(one) // BLOCK_TOKENS * BLOCK_TOKENS] == two[: len(two) // BLOCK_TOKENS * BLOCK_TOKENS]

    assert (block_keys(one) == block_keys(two)) is same


def test_tokens_that_agree_in_their_low_bits_have_different_keys() -> None:
    assert block_keys([1] * 16) != block_keys([257] * 16) != block_keys([65537] * 16)


@pytest.mark.parametrize("length", [0, 1, 15])
def test_less_than_a_block_has_no_key(length: int) -> None:
    assert block_keys([1] * length) == []


@pytest.mark.parametrize("token", [-1, 2**32])
def test_an_id_that_does_not_fit_is_refused(token: int) -> None:
    with pytest.raises(OverflowError):
        block_keys([token] * 16)


@given(st.lists(st.integers(0, 3), min_size=16, max_size=16), st.lists(st.integers(0, 3), max_size=16))
def test_a_key_starts_with_the_tokens_that_its_block_starts_with(block: list[int], start: list[int]) -> None:
    (key,) = block_keys(block)

    assert key_starts_with(key, start) is (block[: len(start)] == start)
