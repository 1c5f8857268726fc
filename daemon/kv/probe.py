"""The start-up self-test: reuse is offered for a model only if it is proven on the model itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import structlog

from daemon.kv.block import BLOCK_TOKENS
from daemon.kv.extents import Run
from daemon.kv.layout import Layout, describing
from daemon.kv.live import LiveKV
from daemon.kv.passes import in_pieces
from daemon.log_fields import Words
from daemon.machine import machine_fault
from daemon.pieces import Pieces

_BLOCKS = 2
_WARNING = "a restored KV cache computes something else; prefixes of this model are not reused"

log = structlog.get_logger()


def probe(model: Any) -> Layout:
    """Do all of `probing` at once."""
    work = probing(model)
    while True:
        try:
            next(work)
        except StopIteration as end:
            layout: Layout = end.value
            return layout


def probing(model: Any) -> Pieces[Layout]:
    """
    Run a few tokens through a model, a layer for each `next`, and return the layout of the cache that it leaves.

    What a restored cache computes must equal what the cache did that it was packed from. That keeps a cache class or a
    model that changed under us from ever giving wrong answers.
    """
    layout = yield from describing(model)
    if not layout.reusable or (yield from _reuse_is_exact(model, layout)):
        return layout
    log.warning(_WARNING)
    return replace(layout, shapes=(), groups=(), states=(), warning=_WARNING)


def _reuse_is_exact(model: Any, layout: Layout) -> Pieces[bool]:
    """Compare the logits after two blocks, with the cache that computed them and with a restored copy of it."""
    prefix = _BLOCKS * BLOCK_TOKENS
    tokens = mx.array([list(range(1, prefix + 2))])
    cold = layout.new_cache(model, prefix + 1)
    for start in range(0, prefix, BLOCK_TOKENS):
        yield from in_pieces(model, tokens[:, start : start + BLOCK_TOKENS], cold)
    try:
        warm = _copy(model, layout, cold, prefix)
    except (RuntimeError, ValueError) as error:
        if machine_fault(error, "") is not None:
            raise
        said = Words(f"{type(error).__name__}: {error}")  # of fixed tokens: no request is in it
        log.warning("the KV cache of this model cannot be packed and restored", error=said)
        return False
    logits = []
    for caches in (cold, warm):
        after = yield from in_pieces(model, tokens[:, -1:], caches)
        logits.append(after[0, -1].astype(mx.float32))
    expected, got = logits
    close = mx.allclose(got, expected, rtol=1e-3, atol=1e-3, equal_nan=True)
    return bool(close.item()) and bool((mx.argmax(got) == mx.argmax(expected)).item())


def _copy(model: Any, layout: Layout, caches: list[Any], prefix: int) -> list[Any]:
    live = LiveKV(layout, caches, prefix)
    runs = []
    for group, part in enumerate(layout.parts.groups):
        extent = live.pack(group, _BLOCKS - part.visible(_BLOCKS), _BLOCKS)
        runs.append([Run(extent.payload, 0, extent.blocks)])
    checkpoint = live.checkpoint(prefix) if layout.states else None
    return layout.restored_cache(model, runs, checkpoint, prefix, prefix + 1)
