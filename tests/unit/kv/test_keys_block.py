"""The key of a block is all of its token ids, so that equal keys mean equal tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.kv.keys import BLOCK_TOKENS, block_keys

TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=70)


@given(TOKENS)
def test_each_full_block_has_one_key(tokens: list[int]) -> None:
    assert len(block_keys(tokens)) == len(tokens) // BLOCK_TOKENS


@given(TOKENS, TOKENS)
def test_block_keys_are_equal_iff_tokens_are(one: list[int], two: list[int]) -> None:
    same = one[: len(one) // BLOCK_TOKENS * BLOCK_TOKENS] == two[: len(two) // BLOCK_TOKENS * BLOCK_TOKENS]

    assert (block_keys(one) == block_keys(two)) is same


def test_tokens_equal_in_low_bits_have_different_keys() -> None:
    assert block_keys([1] * 16) != block_keys([257] * 16) != block_keys([65537] * 16)


@pytest.mark.parametrize("length", [0, 1, 15])
def test_partial_block_has_no_key(length: int) -> None:
    assert block_keys([1] * length) == []


@pytest.mark.parametrize("token", [-1, 2**32])
def test_token_id_too_large_for_a_key_is_refused(token: int) -> None:
    with pytest.raises(OverflowError):
        block_keys([token] * 16)
