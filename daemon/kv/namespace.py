"""Namespaces: what must be equal before one request may reuse the KV of another."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

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
