"""The parts of the memory bar of `top` and `stats --html`: each model, the prefix cache, running requests, free."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mlx_sidecar import Stats

COLOURS = 8
"""Number of distinct colours for models; further models repeat them."""


class Part(NamedTuple):
    """
    One part of the bar.

    Attributes:
        style: "model0" to "model7", "other", "trie", "live" or "free".
        name: Its label.
        nbytes: Its bytes; below zero only for "free", when more is used than the limit.
        share: Its fraction of the whole bar, 0 to 1.
    """

    style: str
    name: str
    nbytes: int
    share: float


def memory_parts(stats: Stats) -> list[Part]:
    """Return the parts in the bar's order. They sum to the memory limit."""
    parts = list(_used(stats))
    used = sum(nbytes for _, _, nbytes in parts)
    free = stats.memory.limit_bytes - used
    whole = max(stats.memory.limit_bytes, used, 1)  # above the limit, the used parts fill the bar
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
