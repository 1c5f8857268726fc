"""A forward pass in slices, layer by layer, so that it never occupies the MLX thread as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from daemon.shared.readings import about_to_wait
from daemon.shared.slices import LONG, SHORT, Sliced

Pass = Sliced[mx.array]
"""A sliced forward pass; it returns the logits, [batch, tokens, vocab], evaluated."""


def forward_layerwise(model: Any, tokens: mx.array, caches: Sequence[Any]) -> Pass:
    """
    Compute the logits of `tokens`, [batch, tokens], in about as many slices as there are caches.

    The graph is built in the first slice, which takes tens of milliseconds for hundreds of layers. The KV that a layer
    writes depends on all layers before it and on none after it. So the caches are evaluated in order, a slice for each.
    All of them are evaluated at the end.

    The first layer of a rank in a pipeline waits for the last layer of another one. So there all layers are one slice:
    between slices a rank waits for what the first rank decides.
    """
    yield LONG
    logits: mx.array = model(tokens, cache=list(caches))
    if pipelined(model):
        about_to_wait()
        mx.eval([cache.state for cache in caches], logits)
        return logits
    yield SHORT
    for cache in caches:
        mx.eval(cache.state)
        yield SHORT
    mx.eval(logits)
    return logits


def pipelined(model: Any) -> bool:
    """Return whether other ranks compute layers of this model."""
    return getattr(getattr(model, "model", None), "pipeline_size", 1) > 1
