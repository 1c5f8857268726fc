"""
Computes the short ends of several prompts of one model in one forward pass.

Rows are fed the same number of tokens, `width`: the most that any of them lacks. A row that lacks fewer computes some
cached tokens again, so that no row needs padding on the right; a prompt shorter than `width` is padded on the left.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from daemon.engine.execution.head_kv import View, compute
from daemon.engine.execution.prefill import Prefill
from daemon.engine.memory.memory_budget import DECODE_ROOM
from daemon.kv.mlx.batch_cache import merge_caches, to_single
from daemon.shared.failpoints import failpoint
from daemon.shared.readings import about_to_wait


class PrefillBatch:
    """
    Prompts with a short rest. All of it is computed but each prompt's last token, which the decoder feeds. Of texts to
    embed, the last token is computed too.

    The prompts become rows of a batch before the pass rather than after it, so their KV is copied only once.

    Args:
        prefills: At least two that may share a pass (`prefill_plan.can_share`).
    """

    def __init__(self, prefills: list[Prefill]) -> None:
        self.prefills = prefills

    def compute(self) -> list[Any]:
        """Compute all of them in one pass, and return the caches of a batch with a row for each, one for each layer."""
        failpoint("prefill.chunk")
        sequences = [prefill.sequence for prefill in self.prefills]
        width = max(prefill.remaining for prefill in self.prefills)
        ends = [sequence.prefill_end for sequence in sequences]
        room = width + max(min(sequence.request.max_tokens, DECODE_ROOM) for sequence in sequences)
        caches = merge_caches([sequence.kv.take() for sequence in sequences], ends, width, room)
        fed = [sequence.prompt[max(0, end - width) : end] for sequence, end in zip(sequences, ends, strict=True)]
        rows = mx.array([[0] * (width - len(ids)) + ids for ids in fed])
        views = [
            View(sequence.head, end - len(ids), slice(width - len(ids), None))
            for sequence, end, ids in zip(sequences, ends, fed, strict=True)
        ]
        after = compute(sequences[0].module(sequences[0].kv), rows, caches, views)
        about_to_wait()
        mx.eval([cache.state for cache in caches])
        for index, prefill in enumerate(self.prefills):
            prefill.was_computed([to_single(cache, index) for cache in caches], after[index])
        return caches
