"""What memory is used for, part by part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mlx_sidecar import Stats

COLOURS = 8
"""So many models have a colour of their own; then they repeat."""


class Part(NamedTuple):
    """
    One part of the memory.

    Attributes:
        style: "model0" to "model7", "other", "trie", "live" or "free".
        name: What a person calls it.
        nbytes: Its bytes; below zero only for "free", when more is used than allowed.
        share: Its part of all, 0 to 1.
    """

    style: str
    name: str
    nbytes: int
    share: float


def memory_parts(stats: Stats) -> list[Part]:
    """Return the parts of the memory below the limit, in the order that a bar shows them; together they are all."""
    parts = list(_used(stats))
    used = sum(nbytes for _, _, nbytes in parts)
    free = stats.memory.limit_bytes - used
    whole = max(stats.memory.limit_bytes, used, 1)
    return [Part(*part, part[2] / whole) for part in [*parts, ("free", "Free below the limit", free)]]


def _used(stats: Stats) -> Iterator[tuple[str, str, int]]:
    memory = stats.memory
    models = [model for model in stats.models if model.state != "loading"]
    for number, model in enumerate(models):
        yield f"model{number % COLOURS}", " = ".join(model.names) or model.info.model, model.info.size_bytes
    if (rest := memory.weights_bytes - sum(model.info.size_bytes for model in models)) > 0:
        yield "other", "Other weights", rest
    yield "trie", "Prefix cache", memory.trie_bytes
    yield "live", "Running requests", memory.live_kv_bytes
