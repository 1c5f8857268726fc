"""Blocks: the unit in which prompts are cached and compared."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

BLOCK_TOKENS = 16
"""Tokens of a block."""

KEY_BYTES = BLOCK_TOKENS * array("I").itemsize
"""Bytes of a block's key."""


def block_keys(tokens: Sequence[int]) -> list[bytes]:
    """
    Return one key for each full block of `tokens`; a tail shorter than a block has none.

    A key is the token ids themselves (32 bits each), so equal keys mean equal tokens: no hash can collide.

    Raises:
        OverflowError: If a token id is negative or does not fit in 32 bits.
    """
    packed = array("I", tokens).tobytes()
    full = len(tokens) // BLOCK_TOKENS
    return [packed[i * KEY_BYTES : (i + 1) * KEY_BYTES] for i in range(full)]


def key_starts_with(key: bytes, tokens: Sequence[int]) -> bool:
    """Tell whether a block begins with `tokens` (at most a block of them)."""
    return key.startswith(array("I", tokens).tobytes())
