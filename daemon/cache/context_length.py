"""
The context length of a model, from its config.json: the stated number of positions, times its RoPE scaling. Pure.

`max_position_embeddings` holds the length before the scaling in some configurations, and after it in others. What tells
them apart is `original_max_position_embeddings`, the length of the training, where the scaling has it:

=====================  ============================================================================
scaling                context length
=====================  ============================================================================
none, or unknown       as stated
yarn, linear, dynamic  `original` times `factor`, or as stated if that is more; without `original`,
                       what is stated times `factor`
llama3, longrope, su   as stated, which is after the scaling; but times `factor` if it is `original`
=====================  ============================================================================

Gemma 3 has a linear scaling without `original`, and states the length after it.

The scaling stands in `rope_scaling`, or since transformers 5 in `rope_parameters`; there each kind of layers may have
its own. Its kind is `rope_type`, or in older files `type`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Config = dict[str, Any]

MOST = 2**31 - 1
"""The largest length that an API message holds."""

_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")
_ORIGINAL = "original_max_position_embeddings"
_NESTED = ("text_config", "language_config", "llm_config")
"""Where models with images keep the configuration of their language model."""
_SCALINGS = ("rope_scaling", "rope_parameters")
_LEARNED = ("gpt2", "gpt_bigcode")
"""Architectures of mlx-lm with a table of positions. Beyond its end, MLX would read whatever is there."""
_STATED_BEFORE = ("linear", "dynamic")
_STATED_AFTER = ("llama3", "longrope", "su")


def context_length(config: Config) -> int:
    """Return the most tokens of prompt and completion together; 0 if the configuration does not say."""
    scopes = [config, *(config[name] for name in _NESTED if isinstance(config.get(name), dict))]
    for scope in scopes:
        if stated := next(filter(None, (_length(scope.get(key)) for key in _LENGTH_KEYS)), 0):
            scaled = [_scaled(stated, part, scalings) for part in (scope, *scopes) for scalings in _scalings(part)]
            return min(max(scaled, default=stated), MOST)
    return 0


def most_positions(config: Config) -> int | None:
    """Return how many positions a model has learned, one vector for each; None if its positions have no end."""
    return _length(config.get("n_positions")) or None if config.get("model_type") in _LEARNED else None


def _scalings(scope: Config) -> Iterator[Config]:
    """Yield the scalings of a configuration: one, or one for each kind of layers."""
    for name in _SCALINGS:
        scaling = scope.get(name)
        if isinstance(scaling, dict):
            yield scaling
            yield from (part for part in scaling.values() if isinstance(part, dict))


def _scaled(stated: int, scope: Config, scaling: Config) -> int:
    """Return a length with a scaling that stands in a part of the configuration."""
    kind, factor = scaling.get("rope_type") or scaling.get("type"), _factor(scaling.get("factor"))
    original = _length(scaling.get(_ORIGINAL)) or _length(scope.get(_ORIGINAL))
    if not isinstance(kind, str) or factor <= 1:
        return stated
    if kind in _STATED_AFTER:
        return round(original * factor) if original >= stated else stated
    if "yarn" not in kind and kind not in _STATED_BEFORE:
        return stated
    if original:
        return max(stated, round(original * factor))
    is_after = kind == "linear" and str(scope.get("model_type")).startswith("gemma3")
    return stated if is_after else round(stated * factor)


def _length(value: object) -> int:
    return value if type(value) is int and 0 < value <= MOST else 0


def _factor(value: object) -> float:
    """Return the factor of a scaling; 1 if it is none."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MOST:
        return float(value)
    return 1.0
