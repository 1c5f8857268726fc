"""Keys of the trie: blocks of token ids, and the namespace under which their KV may be shared."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

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


_SCHEMA = "mlx-sidecar/kv/1"


@dataclass(frozen=True, slots=True)
class Namespace:
    """
    One root of the trie. Every field is part of its identity; a change of any of them shares nothing.

    Attributes:
        weights: Digest of the model's content.
        adapter: Digest of the LoRA adapter's content, or empty.
        layout: Class, shape and dtype of every layer's cache.
        salt: The caller's own partition, or empty.
    """

    weights: str
    adapter: str
    layout: str
    salt: str

    def digest(self) -> str:
        """Return a stable name: the digests of model and layout, and after a slash that of the salt."""
        return model_digest(self.weights, self.adapter) + _digest(layout=self.layout) + "/" + _digest(salt=self.salt)


def model_digest(weights: str, adapter: str) -> str:
    """Return what the digests of all namespaces of one model begin with."""
    return _digest(weights=weights, adapter=adapter)


def _digest(**fields: str) -> str:
    """Digest named fields, tagged and length-prefixed, so that no two of them can be confused."""
    state = hashlib.sha256(_SCHEMA.encode())
    for name, value in fields.items():
        data = value.encode()
        state.update(f"{name}:{len(data)}:".encode())
        state.update(data)
    return state.hexdigest()


def partition_of(namespace: str) -> str:
    """Return whose share of the budget a namespace counts against: its part after the slash."""
    return namespace.partition("/")[2]
