"""Random prompts of a few blocks."""

from __future__ import annotations

from hypothesis import strategies as st

from daemon.kv.keys import BLOCK_TOKENS
from tests.unit.kv.fake_kv import prompt

PROMPTS = st.builds(
    lambda blocks, begun, alike, tail: [*prompt(*blocks), *prompt(begun)[:alike], *[7] * min(tail, 15 - alike)],
    st.lists(st.integers(1, 2), max_size=6),
    st.integers(1, 2),
    st.integers(0, 15),
    st.integers(0, 15),
)
"""Blocks of two letters, then a part of a block that may begin like one of them."""


def floor_to_block(tokens: int) -> int:
    """Return the largest multiple of the block size that is not above `tokens`."""
    return tokens - tokens % BLOCK_TOKENS
