"""Prompts computed together: the short ends of several prompts of one model share a forward pass."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from daemon.engine.execution.prefill import Prefill
from daemon.engine.execution.sequence import Sequence
from daemon.engine.memory.memory_budget import DECODE_ROOM
from daemon.kv.mlx.batch_cache import merge_caches, to_single
from daemon.shared.failpoints import failpoint


class PrefillBatch:
    """
    Prompts whose rest is short, all but their last tokens.

    They become rows of a batch at once: their KV is copied into it before the pass rather than after.

    Args:
        prefills: At least two that may share a pass (`prefill_plan.can_share`).
    """

    def __init__(self, prefills: list[Prefill]) -> None:
        self.prefills = prefills

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
