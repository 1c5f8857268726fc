"""Stores the KV of a sequence in the prefix cache: during prefill, during long answers, and at its end."""

from __future__ import annotations

from typing import Any

import structlog

from daemon.engine.execution.sequence import Sequence
from daemon.engine.execution.sequence_kv import SequenceKV
from daemon.kv.mlx.request_kv import RequestKV
from daemon.kv.prefix_cache import PrefixCache
from daemon.kv.source import NotHeldError, Resume

log = structlog.get_logger()


def store(
    sequence: Sequence,
    kv: SequenceKV,
    prefixes: PrefixCache,
    resume: Resume,
    caches: list[Any] | None = None,
    *,
    first: int | None = None,
) -> None:
    """
    Store every full block of a sequence that is not stored yet; a fault is only logged.

    Args:
        sequence: The request.
        kv: The KV that is stored: of its model, or of its draft model.
        prefixes: The prefix cache.
        resume: Whether requests shall be able to resume where it is now, or after its `first` tokens.
        caches: The arrays, if they are in a batch.
        first: How many of its tokens to store; None for all. Nothing if their state is not held any more.
    """
    layout = kv.loaded.layout
    caches = caches or kv.cache
    if not (kv.writes and layout.reusable and caches and kv.held):
        return
    if first is not None and layout.states and (kv.boundary is None or kv.boundary.tokens != first):
        return
    try:
        live = RequestKV(layout, caches, kv.held, kv.boundary)
        prefixes.store(kv.namespace, sequence.tokens_in(kv)[:first], layout.parts, live, resume=resume)
    except NotHeldError:
        return  # a window has passed these tokens; the blocks that were stored before it did remain
    except Exception:
        log.exception("prefix_store_failed", request_id=sequence.request.request_id)
