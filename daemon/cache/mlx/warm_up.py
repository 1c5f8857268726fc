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
from daemon.shared.machine_faults import pass_on_device_failure
from daemon.shared.slices import SHORT, Sliced

PROMPT = tuple(range(1, 17))
"""Any short prompt does. These ids are valid in every vocabulary of a real model."""

ENOUGH_SECONDS = 1.0
"""Time after which a warm-up ends early. A large model takes seconds for all tokens, and the first ones compile all."""

LEAST_TOKENS = 3
"""Tokens that are generated however long they take: behind the prompt, behind one token, and once more like that."""

log = structlog.get_logger()


@dataclass(slots=True)
class WarmUp:
    """
    The state of a warm-up.

    Attributes:
        model: mlx-lm's module.
        layout: How it keeps its KV.
        tokens: Most tokens to generate and discard.
        seconds: Time it took; set at its end.
    """

    model: Any
    layout: Layout
    tokens: int
    seconds: float = 0.0


def warm_up(warmup: WarmUp, clock: Callable[[], float]) -> Sliced[None]:
    """
    Generate the tokens, or those that `ENOUGH_SECONDS` allow; a layer of a forward pass for each `next`.

    A failure is logged, and ends the warm-up.
    """
    started = clock()
    try:
        yield from _generate(warmup, lambda: clock() - started >= ENOUGH_SECONDS)
    except Exception as error:
        pass_on_device_failure(error)
        log.warning("warm_up_failed", error=cause(error))
    warmup.seconds = clock() - started


def _generate(warmup: WarmUp, is_enough: Callable[[], bool]) -> Sliced[None]:
    cache = warmup.layout.new_cache(warmup.model, len(PROMPT) + warmup.tokens)
    tokens = mx.array([PROMPT])
    for generated in range(warmup.tokens):
        if generated >= LEAST_TOKENS and is_enough():
            return
        logits = yield from forward_layerwise(warmup.model, tokens, cache)
        tokens = mx.argmax(logits[:, -1:], axis=-1)
        yield SHORT
