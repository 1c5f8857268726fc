"""The start-up self-test: reuse is offered for a model only if it is proven on the model itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import structlog
from mlx_lm.models.cache import (
    make_prompt_cache,
)

from daemon.kv.extent_ledger import Run
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.mlx.batch_cache import (
    _MOST_NOISE,
    _NOISE_MARGIN,
    _apart,
    _number,
    _one_after_the_other,
    joinable,
    merge_caches,
    plain,
    to_batch,
    to_single,
)
from daemon.kv.mlx.layerwise import forward_layerwise
from daemon.kv.mlx.layout import Layout, describing
from daemon.kv.mlx.request_kv import RequestKV
from daemon.shared.log_fields import Words
from daemon.shared.machine_faults import machine_fault
from daemon.shared.slices import Sliced

log = structlog.get_logger()

_BLOCKS = 2
_WARNING = "a restored KV cache computes something else; prefixes of this model are not reused"


def probe(model: Any) -> Layout:
    """Do all of `probing` at once."""
    work = probing(model)
    while True:
        try:
            next(work)
        except StopIteration as end:
            layout: Layout = end.value
            return layout


def probing(model: Any) -> Sliced[Layout]:
    """
    Run a few tokens through a model, a layer for each `next`, and return the layout of the cache that it leaves.

    What a restored cache computes must equal what the cache did that it was packed from. That keeps a cache class or a
    model that changed under us from ever giving wrong answers.
    """
    layout = yield from describing(model)
    if not layout.reusable or (yield from _reuse_is_exact(model, layout)):
        return layout
    log.warning(_WARNING)
    return replace(layout, shapes=(), groups=(), states=(), warning=_WARNING)


def _reuse_is_exact(model: Any, layout: Layout) -> Sliced[bool]:
    """Compare the logits after two blocks, with the cache that computed them and with a restored copy of it."""
    prefix = _BLOCKS * BLOCK_TOKENS
    tokens = mx.array([list(range(1, prefix + 2))])
    cold = layout.new_cache(model, prefix + 1)
    for start in range(0, prefix, BLOCK_TOKENS):
        yield from forward_layerwise(model, tokens[:, start : start + BLOCK_TOKENS], cold)
    try:
        warm = _copy(model, layout, cold, prefix)
    except (RuntimeError, ValueError) as error:
        if machine_fault(error, "") is not None:
            raise
        said = Words(f"{type(error).__name__}: {error}")  # of fixed tokens: no request is in it
        log.warning("the KV cache of this model cannot be packed and restored", error=said)
        return False
    logits = []
    for caches in (cold, warm):
        after = yield from forward_layerwise(model, tokens[:, -1:], caches)
        logits.append(after[0, -1].astype(mx.float32))
    expected, got = logits
    close = mx.allclose(got, expected, rtol=1e-3, atol=1e-3, equal_nan=True)
    return bool(close.item()) and bool((mx.argmax(got) == mx.argmax(expected)).item())


def _copy(model: Any, layout: Layout, caches: list[Any], prefix: int) -> list[Any]:
    live = RequestKV(layout, caches, prefix)
    runs = []
    for group, part in enumerate(layout.parts.groups):
        extent = live.pack(group, _BLOCKS - part.visible(_BLOCKS), _BLOCKS)
        runs.append([Run(extent.payload, 0, extent.blocks)])
    checkpoint = live.checkpoint(prefix) if layout.states else None
    return layout.restored_cache(model, runs, checkpoint, prefix, prefix + 1)


def proving(model: Any) -> Sliced[bool]:
    """
    Tell whether sequences of a model may share forward passes; a layer for each `next`.

    The classes of its caches must be known, and it is tried: two rows of different length must compute what they
    compute alone, prompts and single tokens, and so must the one that stays when the other leaves.
    """
    if not all(map(joinable, make_prompt_cache(model))):
        return False
    try:
        exact = yield from _rows_are_exact(model)
    except Exception as error:  # whatever a model's own code raises that reckons with one row only
        if machine_fault(error, "") is not None:
            raise
        said = Words(f"{type(error).__name__}: {error}")  # of fixed tokens: no request is in it
        log.warning("this model cannot compute several rows; its requests do not share forward passes", error=said)
        return False
    if not exact:
        log.warning("rows of a batch compute something else; requests of this model do not share forward passes")
    return exact


def _rows_are_exact(model: Any) -> Sliced[bool]:
    prompts = [[1, 2], [2, 3, 4]]
    expected = []
    for prompt in prompts:
        expected += yield from _one_after_the_other(model, [prompt])
    rows = yield from (_prefilled_together if plain(make_prompt_cache(model)) else _prefilled_one_by_one)(
        model, prompts
    )
    together = yield from forward_layerwise(model, mx.array([[7], [7]]), rows)
    last = [to_single(cache, 1) for cache in rows]
    after = yield from forward_layerwise(model, mx.array([[8]]), last)
    got = [together[0, -1], together[1, -1], after[0, -1]]
    pairs = list(zip(got, [expected[1], expected[4], expected[5]], strict=True))
    if all(_close(one, other, 0.0) for one, other in pairs):
        return True
    twice = yield from _one_after_the_other(model, [prompts[1], prompts[1]])
    noise = max(_apart(one, other) for one, other in zip(twice, expected[3:], strict=True))
    return all(_close(one, other, noise) for one, other in pairs)


def _prefilled_one_by_one(model: Any, prompts: list[list[int]]) -> Sliced[list[Any]]:
    rows: list[Any] = []
    for prompt in prompts:
        caches = make_prompt_cache(model)
        yield from forward_layerwise(model, mx.array([prompt]), caches)
        more = list(map(to_batch, caches))
        for cache, other in zip(rows, more, strict=False):
            cache.extend(other)
        rows = rows or more
    return rows


def _prefilled_together(model: Any, prompts: list[list[int]]) -> Sliced[list[Any]]:
    """Prefill all but the last tokens in one pass, padded, and then those, each with the one before once more."""
    caches = [make_prompt_cache(model) for _ in prompts]
    lengths = [len(prompt) - 1 for prompt in prompts]
    rows = merge_caches(caches, lengths, max(lengths), 1)
    fed = [[0] * (max(lengths) - len(prompt) + 1) + prompt[:-1] for prompt in prompts]
    yield from forward_layerwise(model, mx.array(fed), rows)
    caches = [[to_single(cache, index) for cache in rows] for index in range(len(prompts))]
    rows = merge_caches(caches, [length + 1 for length in lengths], 2, 2)
    yield from forward_layerwise(model, mx.array([prompt[-2:] for prompt in prompts]), rows)
    return rows


def _close(got: mx.array, expected: mx.array, noise: float) -> bool:
    """
    Tell whether logits are those expected, as far as the device's kernels can.

    On a GPU the kernels of a matrix product depend on its shape, and so do its last bits: `noise` is how far the logits
    of equal rows, which nothing can confuse, are from those of one row. A row that is confused with another, or that
    sees another's padding, is off by a good part of the range of its logits.
    """
    got, expected = got.astype(mx.float32), expected.astype(mx.float32)
    spread = _number(mx.max(expected) - mx.min(expected))
    margin = min(_NOISE_MARGIN * noise, _MOST_NOISE * spread)
    close = mx.allclose(got, expected, rtol=1e-3, atol=1e-3 + margin, equal_nan=True)
    choice = expected[mx.argmax(got)]
    return bool(close.item()) and bool((choice >= mx.max(expected) - 2 * margin).item())
