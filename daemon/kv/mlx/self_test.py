"""Self-tests of a loaded model, which have to pass before prefixes are reused and forward passes are shared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import structlog
from mlx_lm.models.cache import make_prompt_cache

from daemon.kv.extent_ledger import Run
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.mlx.batch_cache import joinable, merge_caches, plain, to_batch, to_single
from daemon.kv.mlx.layerwise import forward_layerwise
from daemon.kv.mlx.layout import Layout, describing
from daemon.kv.mlx.request_kv import RequestKV
from daemon.shared.log_fields import Words
from daemon.shared.machine_faults import machine_fault
from daemon.shared.slices import Sliced, drain

log = structlog.get_logger()

_BLOCKS = 2
"""Length of the prefix that is stored and restored, in blocks."""

_NOISE_MARGIN = 4.0
"""Rows of different length may be so many times as far from exact as equal rows are."""

_MOST_NOISE = 0.05
"""A share of the range of a row's logits. A row that is off by more is refused, however large the noise."""

_SLOT_BLOCKS = "index_block_size"
"""
An attention of mlx-lm with it attends to blocks of its cache, cut by place: padding before a row moves its tokens into
other blocks. A trial does not show that, as a few tokens have all blocks chosen.
"""


def probe(model: Any) -> Layout:
    """Return the layout of a model, proven, at once."""
    return drain(proven(model, drain(describing(model))))


def proven(model: Any, layout: Layout) -> Sliced[Layout]:
    """
    Prove that prefixes of a model can be reused, a layer for each `next`; return its layout without reuse otherwise.

    A restored cache must compute the same as the cache that it was packed from. So a cache class or a model that
    changed in a new release of mlx-lm never gives wrong answers.
    """
    if not layout.reusable or (yield from _reuse_is_exact(model, layout)):
        return layout
    log.warning("prefix_reuse_disabled")
    return without_reuse(layout)


def without_reuse(layout: Layout) -> Layout:
    """Return the layout without reuse, for restored caches of the model compute something else."""
    return replace(layout, shapes=(), groups=(), states=(), warning="prefix_reuse_disabled")


def _reuse_is_exact(model: Any, layout: Layout) -> Sliced[bool]:
    """Compare the logits after two blocks, with the cache that computed them and with a restored copy of it."""
    prefix = _BLOCKS * BLOCK_TOKENS
    tokens = mx.array([list(range(1, prefix + 2))])
    cold = layout.new_cache(model, prefix + 1)
    for start in range(0, prefix, BLOCK_TOKENS):
        yield from forward_layerwise(model, tokens[:, start : start + BLOCK_TOKENS], cold)
    try:
        warm = _copy(model, layout, cold, prefix)
    except (KeyError, RuntimeError, ValueError) as error:  # KeyError: a class that the model did not use before
        if machine_fault(error, "") is not None:
            raise
        said = Words(f"{type(error).__name__}: {error}")  # of fixed tokens: no request is in it
        log.warning("prefix_self_test_failed", error=said)
        return False
    logits = []
    for caches in (cold, warm):
        after = yield from forward_layerwise(model, tokens[:, -1:], caches)
        logits.append(after[0, -1].astype(mx.float32))
    expected, got = logits
    return _close(got, expected) and bool((mx.argmax(got) == mx.argmax(expected)).item())


def _copy(model: Any, layout: Layout, caches: list[Any], prefix: int) -> list[Any]:
    """Pack a live cache and return a cache restored from that, as the prefix cache does."""
    live = RequestKV(layout, caches, prefix)
    runs = []
    for index, group in enumerate(layout.parts.groups):
        extent = live.pack(index, _BLOCKS - group.visible(_BLOCKS), _BLOCKS)
        runs.append([Run(extent.payload, 0, extent.blocks * BLOCK_TOKENS)])
    checkpoint = live.checkpoint(prefix) if layout.states else None
    return layout.restored_cache(model, runs, checkpoint, prefix, prefix + 1)


def proving(model: Any) -> Sliced[bool]:
    """
    Tell whether sequences of a model may share forward passes; a layer for each `next`.

    The classes of its caches must be known, and no attention may go by the places of tokens in a cache. Then it is
    tried with two rows of different length: prompts and single tokens must give the logits that they give alone, and
    so must the row that stays when the other leaves.
    """
    if not all(map(joinable, make_prompt_cache(model))) or _chooses_blocks(model):
        return False
    try:
        exact = yield from _rows_are_exact(model)
    except Exception as error:  # the model's own code may raise anything if it supports one row only
        if machine_fault(error, "") is not None:
            raise
        said = Words(f"{type(error).__name__}: {error}")  # of fixed tokens: no request is in it
        log.warning("batching_self_test_failed", error=said)
        return False
    if not exact:
        log.warning("batching_disabled")
    return exact


def _chooses_blocks(model: Any) -> bool:
    """Whether an attention of a model chooses blocks by their places in the cache."""
    return any(getattr(part, _SLOT_BLOCKS, None) for layer in model.layers for part in layer.modules())


def _rows_are_exact(model: Any) -> Sliced[bool]:
    """Compare the logits of two rows of a batch with the logits of each prompt alone."""
    prompts = [[1, 2], [2, 3, 4]]
    expected = []
    for prompt in prompts:
        expected += yield from _one_after_the_other(model, [prompt])
    prefill = _prefilled_together if plain(make_prompt_cache(model)) else _prefilled_one_by_one
    rows = yield from prefill(model, prompts)
    together = yield from forward_layerwise(model, mx.array([[7], [7]]), rows)
    last = [to_single(cache, 1) for cache in rows]
    after = yield from forward_layerwise(model, mx.array([[8]]), last)
    got = [together[0, -1], together[1, -1], after[0, -1]]
    pairs = list(zip(got, [expected[1], expected[4], expected[5]], strict=True))
    if all(same_row(logits, alone, 0.0) for logits, alone in pairs):
        return True
    # The rounding of this device, measured where rows cannot be confused: twice the same row.
    twice = yield from _one_after_the_other(model, [prompts[1], prompts[1]])
    noise = max(distance(logits, alone) for logits, alone in zip(twice, expected[3:], strict=True))
    return all(same_row(logits, alone, noise) for logits, alone in pairs)


def _one_after_the_other(model: Any, prompts: list[list[int]]) -> Sliced[list[mx.array]]:
    """Feed equally long prompts, then two single tokens, and return the last row's logits after each of the three."""
    caches, logits = make_prompt_cache(model), []
    for tokens in (prompts, [[7]] * len(prompts), [[8]] * len(prompts)):
        after = yield from forward_layerwise(model, mx.array(tokens), caches)
        logits.append(after[-1, -1])
    return logits


def _prefilled_one_by_one(model: Any, prompts: list[list[int]]) -> Sliced[list[Any]]:
    """Prefill each prompt alone, then join the caches to one batch."""
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
    """Prefill all but the last tokens in one padded pass, then the last two of each: one of them a second time."""
    caches = [make_prompt_cache(model) for _ in prompts]
    lengths = [len(prompt) - 1 for prompt in prompts]
    rows = merge_caches(caches, lengths, max(lengths), 1)
    fed = [[0] * (max(lengths) - len(prompt) + 1) + prompt[:-1] for prompt in prompts]
    yield from forward_layerwise(model, mx.array(fed), rows)
    caches = [[to_single(cache, index) for cache in rows] for index in range(len(prompts))]
    rows = merge_caches(caches, [length + 1 for length in lengths], 2, 2)
    yield from forward_layerwise(model, mx.array([prompt[-2:] for prompt in prompts]), rows)
    return rows


def same_row(got: mx.array, expected: mx.array, noise: float) -> bool:
    """
    Tell whether the logits of a row, [vocab], are the expected ones, as exactly as the device's kernels compute.

    On a GPU the kernels of a matrix product depend on its shape, and so do its last bits. A row that is confused with
    another, or that sees another's padding, is off by a good part of the range of its logits.

    Args:
        got: Logits of a row of a batch.
        expected: Logits of the same tokens alone.
        noise: How far the logits of equal rows are from those of one row.
    """
    got, expected = got.astype(mx.float32), expected.astype(mx.float32)
    spread = _number(mx.max(expected) - mx.min(expected))
    margin = min(_NOISE_MARGIN * noise, _MOST_NOISE * spread)
    choice = expected[mx.argmax(got)]
    return _close(got, expected, margin) and bool((choice >= mx.max(expected) - 2 * margin).item())


def _close(got: mx.array, expected: mx.array, margin: float = 0.0) -> bool:
    """Tell whether float32 logits agree to a thousandth, and `margin` more."""
    return bool(mx.allclose(got, expected, rtol=1e-3, atol=1e-3 + margin, equal_nan=True).item())


def distance(logits: mx.array, others: mx.array) -> float:
    """Return the largest difference of two arrays; not finite if any of their numbers is not."""
    return _number(mx.max(mx.abs(logits.astype(mx.float32) - others.astype(mx.float32))))


def _number(scalar: mx.array) -> float:
    return float(scalar.item())  # type: ignore[arg-type]
