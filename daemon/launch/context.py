"""The context that fits: how long a prompt and its answer can be for a model, with the memory that there is now."""

from __future__ import annotations

from mlx_sidecar import ModelInfo, Stats

COPIES = 2
"""The engine bills a request twice its KV, because arrays are copied when they grow."""
UNKNOWN = 32_768
"""For a model without a length in its configuration and with a state that does not grow."""
STEP = 1024
"""Lengths are rounded down to this, so that tools are told the same while little changes."""


def context_that_fits(info: ModelInfo, stats: Stats) -> int:
    """
    Return the longest prompt plus answer, in tokens, that a request can have beside the weights in memory.

    Cached prefixes and running requests do not count: prefixes give way, and requests end.

    Args:
        info: The model; its weights count also if it is not in memory yet.
        stats: Of the daemon, now.
    """
    known = info.context_length or (UNKNOWN if not info.kv_bytes_per_token else 0)
    if not info.kv_bytes_per_token:
        return known
    loaded = any(one.info.fingerprint == info.fingerprint for one in stats.models)
    weights = stats.memory.weights_bytes + (0 if loaded else info.size_bytes)
    fits = max(0, stats.memory.limit_bytes - weights) // (COPIES * info.kv_bytes_per_token)
    fits = fits // STEP * STEP or fits
    return min(known or fits, fits)
