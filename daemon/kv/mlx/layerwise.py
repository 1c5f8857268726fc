"""A forward pass layer by layer, for those who must not keep the MLX thread for the whole of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from daemon.shared.slices import LONG, SHORT, Sliced

Pass = Sliced[mx.array]
"""A forward pass in pieces, which returns the logits, [batch, tokens, vocab], evaluated."""


def forward_layerwise(model: Any, tokens: mx.array, caches: Sequence[Any]) -> Pass:
    """
    Compute the logits of `tokens`, [batch, tokens], in as many pieces as there are caches, and a few.

    The graph is built in one piece, which for hundreds of layers takes tens of milliseconds. What a layer leaves in its
    cache needs all layers before it and none after it, so that evaluating one cache after the other computes the pass
    in slices. The caches end evaluated.
    """
    yield LONG
    logits: mx.array = model(tokens, cache=list(caches))
    yield SHORT
    for cache in caches:
        mx.eval(cache.state)
        yield SHORT
    mx.eval(logits)
    return logits
