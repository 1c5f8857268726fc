"""Warm-up: a few discarded tokens after a load, so that the first request does not pay for kernels and buffers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import structlog

from daemon.kv.mlx.layerwise import forward_layerwise
from daemon.kv.mlx.layout import Layout
from daemon.shared.log_fields import cause
from daemon.shared.slices import SHORT, Sliced

PROMPT = tuple(range(1, 17))
"""Any short prompt does. These ids are valid in every vocabulary of a real model."""

log = structlog.get_logger()


@dataclass(slots=True)
class WarmUp:
    """
    The state of a warm-up.

    Attributes:
        model: mlx-lm's module.
        layout: How it keeps its KV.
        tokens: Tokens to generate and discard.
        seconds: Time it took; set at its end.
    """

    model: Any
    layout: Layout
    tokens: int
    seconds: float = 0.0


def warm_up(warmup: WarmUp, clock: Callable[[], float]) -> Sliced[None]:
    """Generate the tokens, a layer of a forward pass for each `next`. A failure is logged, and ends the warm-up."""
    started = clock()
    try:
        yield from _generate(warmup)
    except Exception as error:
        log.warning("warm_up_failed", error=cause(error))
    warmup.seconds = clock() - started


def _generate(warmup: WarmUp) -> Sliced[None]:
    cache = warmup.layout.new_cache(warmup.model, len(PROMPT) + warmup.tokens)
    tokens = mx.array([PROMPT])
    for _ in range(warmup.tokens):
        logits = yield from forward_layerwise(warmup.model, tokens, cache)
        tokens = mx.argmax(logits[:, -1:], axis=-1)
        yield SHORT
