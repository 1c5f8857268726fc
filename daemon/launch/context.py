"""The longest context, prompt and answer, that a model has memory for now; tools have to be told such a length."""

from __future__ import annotations

from mlx_sidecar import ModelInfo, Stats

COPIES = 2
"""An estimate counts KV twice, for the passes over it."""
UNKNOWN = 32_768
"""For a model without a length in its configuration and with a state that does not grow."""
STEP = 1024
"""Lengths are rounded down to this, so that tools are told the same while little changes."""


def context_that_fits(info: ModelInfo, stats: Stats) -> int:
    """
    Return the longest prompt plus answer, in tokens, that the daemon serves; 0 if it serves none.

    Of a loaded model the daemon tells it. Of others it is an estimate: what fits beside the weights in memory. Cached
    prefixes and running requests do not count: prefixes give way, and requests end.

    Args:
        info: The model; its weights count also if it is not in memory yet.
        stats: Of the daemon, now.
    """
    known = info.context_length or (0 if info.kv_bytes_per_token else UNKNOWN)
    fits = _estimated(info, stats, known) if info.outcome == "estimated" else info.max_request_tokens
    return known if 0 < known <= fits else fits // STEP * STEP or fits


def _estimated(info: ModelInfo, stats: Stats, known: int) -> int:
    if not info.kv_bytes_per_token:
        return known
    loaded = any(one.info.fingerprint == info.fingerprint for one in stats.models)
    weights = stats.memory.weights_bytes + (0 if loaded else info.size_bytes)
    return max(0, stats.memory.limit_bytes - weights) // (COPIES * info.kv_bytes_per_token)
