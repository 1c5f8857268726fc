"""A forward pass layer by layer, for those who must not keep the MLX thread for the whole of one."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import mlx.core as mx

Pass = Generator[None, None, mx.array]
"""A forward pass in pieces: it yields after each and returns the logits, [batch, tokens, vocab], evaluated."""


def in_pieces(model: Any, tokens: mx.array, caches: Sequence[Any]) -> Pass:
    """
    Compute the logits of `tokens`, [batch, tokens], in as many pieces as there are caches, and one.

    The graph is built at once. What a layer leaves in its cache needs all layers before it and none after it, so that
    evaluating one cache after the other computes the pass in slices. The caches end evaluated.
    """
    logits: mx.array = model(tokens, cache=list(caches))
    for cache in caches:
        mx.eval(cache.state)
        yield
    mx.eval(logits)
    return logits
