"""The start-up self-test: reuse is offered for a model only if it is proven on the model itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import structlog

from daemon.kv.block import BLOCK_TOKENS
from daemon.kv.extents import Run
from daemon.kv.layout import Layout, describe
from daemon.kv.live import LiveKV

_BLOCKS = 2

log = structlog.get_logger()


def probe(model: Any) -> Layout:
    """
    Run a few tokens through a model and return the layout of the cache that it leaves.

    What a restored cache computes must equal what the cache did that it was packed from. That keeps a cache class or a
    model that changed under us from ever giving wrong answers.
    """
    layout = describe(model)
    if not layout.reusable or _reuse_is_exact(model, layout):
        return layout
    log.warning("a restored KV cache computes something else; prefixes of this model are not reused")
    return replace(layout, shapes=(), groups=(), states=(), joinable=False)


def _reuse_is_exact(model: Any, layout: Layout) -> bool:
    """Compare the logits after two blocks, with the cache that computed them and with a restored copy of it."""
    prefix = _BLOCKS * BLOCK_TOKENS
    tokens = mx.array([list(range(1, prefix + 2))])
    cold = layout.new_cache(model, prefix + 1)
    mx.eval(model(tokens[:, :-1], cache=cold), [cache.state for cache in cold])
    try:
        warm = _copy(model, layout, cold, prefix)
    except (RuntimeError, ValueError):
        log.exception("the KV cache of this model cannot be packed and restored")
        return False
    expected, got = (model(tokens[:, -1:], cache=cache)[0, -1].astype(mx.float32) for cache in (cold, warm))
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
