"""Tiny models whose caches are fed tokens that may be taken back."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.utils import _get_classes

from tests.support.models import TINY

CLOSE = 1e-4
"""A pass over several tokens has other last bits in some families."""


def model_of(family: str) -> Any:
    """Return a tiny random model."""
    model_class, arguments = _get_classes(TINY[family])
    mx.random.seed(7)
    model = model_class(arguments.from_dict(TINY[family]))
    mx.eval(model.parameters())
    return model


def fed(model: Any, tokens: list[int], caches: list[Any]) -> mx.array:
    """Feed tokens in one pass, and return the logits after them."""
    logits: mx.array = model(mx.array([tokens]), cache=caches)[0]
    mx.eval(logits)
    return logits


def close(logits: mx.array, others: mx.array) -> bool:
    """Whether logits are equal but for their last bits."""
    return bool(mx.allclose(logits, others, rtol=0, atol=CLOSE).item())
