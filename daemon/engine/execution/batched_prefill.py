"""Prompts computed together: the short ends of several prompts of one model share a forward pass."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from daemon.engine.execution.batch import fits
from daemon.engine.execution.prefill import Prefill
from daemon.engine.execution.sequence import Sequence
from daemon.engine.memory.memory_budget import DECODE_ROOM
from daemon.kv.mlx.batch_cache import merge_caches, to_single
from daemon.shared.failpoints import failpoint

PASS_TOKENS = 32
"""Reading a model's weights once takes about as long as computing so many tokens: less padding a row than that pays."""


class PrefillBatch:
    """
    Prompts whose rest is short, all but their last tokens.

    They become rows of a batch at once: their KV is copied into it before the pass rather than after.
    """

    def __init__(self) -> None:
        self.prefills: list[Prefill] = []

    def __contains__(self, sequence: Sequence) -> bool:
        return any(prefill.sequence is sequence for prefill in self.prefills)

    def has_room_for(self, prefill: Prefill, most: int) -> bool:
        """Whether a prompt can be computed with these, `most` tokens in all, without padding them or it too much."""
        if not (self.prefills and prefill.short):
            return not self.prefills
        rows = [*self.prefills, prefill]
        lacking = [row.remaining for row in rows]
        return (
            all(row.short for row in rows)
            and sum(lacking) <= most
            and rows[0].sequence.model_key == prefill.sequence.model_key
            and fits([len(row.sequence.prompt) for row in rows])
            and max(lacking) * len(rows) - sum(lacking) <= PASS_TOKENS * len(rows)
        )

    def compute(self) -> list[Any]:
        """Compute all of them in one pass, and return their KV as the caches of a batch with a row for each."""
        failpoint("prefill.chunk")
        sequences = [prefill.sequence for prefill in self.prefills]
        width = max(prefill.remaining for prefill in self.prefills)
        held = [len(sequence.prompt) - 1 for sequence in sequences]
        room = width + max(min(sequence.max_tokens, DECODE_ROOM) for sequence in sequences)
        caches = merge_caches([_taken_cache(sequence) for sequence in sequences], held, width, room)
        fed = [sequence.prompt[max(0, count - width) : count] for sequence, count in zip(sequences, held, strict=True)]
        sequences[0].loaded.model(mx.array([[0] * (width - len(ids)) + ids for ids in fed]), cache=list(caches))
        mx.eval([cache.state for cache in caches])
        for index, prefill in enumerate(self.prefills):
            prefill.was_computed([to_single(cache, index) for cache in caches])
        return caches


def _taken_cache(sequence: Sequence) -> list[Any]:
    caches, sequence.cache = sequence.cache, None
    assert caches is not None, "a prompt that was not begun cannot be computed"
    return caches
