"""The keys of the trie: blocks of token ids, and the namespaces within which their KV may be shared."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

BLOCK_TOKENS = 16
"""Tokens of a block."""

TOKEN_BYTES = array("I").itemsize
"""Bytes of a token id."""

KEY_BYTES = BLOCK_TOKENS * TOKEN_BYTES
"""Bytes of a block's key."""


def block_keys(tokens: Sequence[int]) -> list[bytes]:
    """
    Return one key for each full block of `tokens`; a tail shorter than a block has none.

    A key is the token ids themselves (32 bits each), so equal keys mean equal tokens: no hash can collide.

    Raises:
        OverflowError: If a token id is negative or does not fit in 32 bits.
    """
    packed = pack(tokens)
    full = len(tokens) // BLOCK_TOKENS
    return [packed[i * KEY_BYTES : (i + 1) * KEY_BYTES] for i in range(full)]


def pack(tokens: Sequence[int]) -> bytes:
    """Return token ids as bytes, 32 bits each: the keys of their blocks one after the other, then those of the tail."""
    return array("I", tokens).tobytes()


_SCHEMA = "mlx-sidecar/kv/1"
"""Goes into every digest. Another format of stored KV gets another number, and shares nothing with this one."""

_SALT_MARK = "/"
"""Ends the digest of the layout. Digests are hexadecimal, so it cannot be a part of one."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """
    One root of the trie. Every field is part of its identity: namespaces that differ in a field share nothing.

    Its name is written by `digest`; this module also holds the only functions that read a part of such a name:

        <weights: 64 hex digits><adapter: 64><layout: 64>/<salt: 64>
        └── model_digest(), model_of() ─────┘             └─ partition_of()

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
        """Return the stable name under which its blocks are stored."""
        model = model_digest(self.weights, self.adapter)
        return f"{model}{_digest(layout=self.layout)}{_SALT_MARK}{_digest(salt=self.salt)}"


def model_digest(weights: str, adapter: str) -> str:
    """Return the beginning of the names of all namespaces of one model."""
    return _digest(weights=weights) + _digest(adapter=adapter)


def model_of(namespace: str) -> str:
    """Return the part of a namespace's name that `model_digest` wrote."""
    return namespace[: 2 * _DIGITS]


def salt_partition(salt: str) -> str:
    """Return the partition of all namespaces with a salt."""
    return _digest(salt=salt)


def partition_of(namespace: str) -> str:
    """Return the partition of the budget that a namespace belongs to: all namespaces of one salt share it."""
    return namespace.partition(_SALT_MARK)[2]


def _digest(**fields: str) -> str:
    """Digest named fields. Each is tagged and length-prefixed, so that text cannot move from one to the next."""
    state = hashlib.sha256(_SCHEMA.encode())
    for name, value in fields.items():
        data = value.encode()
        state.update(f"{name}:{len(data)}:".encode())
        state.update(data)
    return state.hexdigest()


_DIGITS = hashlib.sha256().digest_size * 2
UNSALTED = _digest(salt="")
"""The partition of all requests without a salt."""


def differing(one: str, other: str) -> tuple[str, ...]:
    """Return the parts in which the names of two namespaces differ: weights, adapter, layout, salt."""
    pairs = zip(("weights", "adapter", "layout", "salt"), _parts(one), _parts(other), strict=True)
    return tuple(part for part, mine, theirs in pairs if mine != theirs)


def _parts(namespace: str) -> tuple[str, str, str, str]:
    head, _, salt = namespace.partition(_SALT_MARK)
    return head[:_DIGITS], head[_DIGITS : 2 * _DIGITS], head[2 * _DIGITS :], salt
