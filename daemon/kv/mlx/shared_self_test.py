"""The self-test of shared prefixes: two sequences that read one have to compute what each computes alone."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import mlx.core as mx
import structlog
from mlx_lm.models.cache import KVCache, make_prompt_cache

from daemon.kv.mlx import shared_attention
from daemon.kv.mlx.adapters.cache_list import leaves
from daemon.kv.mlx.batch_cache import to_batch
from daemon.kv.mlx.layerwise import forward_layerwise
from daemon.kv.mlx.layout import Layout
from daemon.kv.mlx.self_test import distance, same_row
from daemon.kv.mlx.shared_kv import SharedKV
from daemon.kv.mlx.sharing import share
from daemon.shared.log_fields import Words
from daemon.shared.machine_faults import machine_fault
from daemon.shared.slices import Sliced

log = structlog.get_logger()

_PREFIX = 16
_ENDS = ([5, 6, 7], list(range(9, 9 + shared_attention.FEW + 3)))
"""Ends of two prompts behind the same prefix: one attends in parts, one as a whole."""


def proving_shared(model: Any, layout: Layout) -> Sliced[bool]:
    """
    Tell whether sequences of a model can read one copy of a prefix; a layer for each `next`.

    The model attends through `shared_attention.attend` from now on. If its attention takes another way, or computes
    something else than without sharing, it gets no shared prefixes.
    """
    if not layout.reusable or not any(isinstance(cache, KVCache) for cache in leaves(make_prompt_cache(model))):
        return False
    shared_attention.install(model)
    try:
        exact = yield from _is_exact(model)
    except Exception as error:  # the model's own code may raise anything if it meets a cache of another class
        if machine_fault(error, "") is not None:
            raise
        said = Words(f"{type(error).__name__}: {error}")  # of fixed tokens: no request is in it
        log.info("sharing_self_test_failed", error=said)
        return False
    if not exact:
        log.warning("sharing_disabled")
    return exact


def _is_exact(model: Any) -> Sliced[bool]:
    """Compare prompts behind a shared prefix, and then two rows that decode behind it, with each prompt alone."""
    prefix = mx.array([[index % 13 + 1 for index in range(_PREFIX)]])
    own = make_prompt_cache(model)
    yield from forward_layerwise(model, prefix, own)
    expected: list[list[mx.array]] = []
    for end in _ENDS:
        expected += [(yield from _ended(model, deepcopy(own), end))]
    noise = yield from _noise(model, own)
    caches, _ = share(own, _PREFIX, 0, copy=False)
    got: list[list[mx.array]] = []
    rows: list[Any] = []
    for end in _ENDS:
        alone = deepcopy(caches)
        got.append([(yield from forward_layerwise(model, mx.array([end]), alone))[0, -1]])
        if not all(cache.attended for cache in leaves(alone) if isinstance(cache, SharedKV)):
            return False
        batch = [to_batch(cache) for cache in alone]
        for cache, more in zip(rows, batch, strict=False):
            cache.extend(more)
        rows = rows or batch
    together = yield from forward_layerwise(model, mx.array([[7]] * len(_ENDS)), rows)
    pairs = [*zip(got, expected, strict=True)]
    return all(
        same_row(logits[0], alone[0], noise) and same_row(together[row, -1], alone[1], noise)
        for row, (logits, alone) in enumerate(pairs)
    )


def _ended(model: Any, caches: list[Any], end: list[int]) -> Sliced[list[mx.array]]:
    """Return the logits after the end of a prompt, and after one more token."""
    after = yield from forward_layerwise(model, mx.array([end]), caches)
    more = yield from forward_layerwise(model, mx.array([[7]]), caches)
    return [after[0, -1], more[0, -1]]


def _noise(model: Any, caches: list[Any]) -> Sliced[float]:
    """
    Return the rounding of logits: how far two rows are from one where nothing can confuse them.

    A sum in two parts rounds the parts as well: it is the rounding of the type at least.
    """
    one = yield from forward_layerwise(model, mx.array([[7]]), deepcopy(caches))
    rows = [to_batch(cache) for cache in deepcopy(caches)]
    for cache, more in zip(rows, map(to_batch, deepcopy(caches)), strict=True):
        cache.extend(more)
    two = yield from forward_layerwise(model, mx.array([[7], [7]]), rows)
    expected = one[0, -1]
    spread = distance(mx.max(expected), mx.min(expected))
    return max(distance(two[1, -1], expected), float(mx.finfo(expected.dtype).eps) * spread)
