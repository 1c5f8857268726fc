"""
Attention of sequences that read a shared prefix, installed at the function of mlx-lm through which models attend.

A pass of few tokens, which is a decode step, attends in parts. The prefix is read once for all rows: their queries are
rows of one matrix product. Each part gives a weighted mean `o` of its values and the logarithm `l` of the sum of its
weights. Two parts merge to

    w = 1 / (1 + exp(lse_a - lse_b)),    o = o_a + w * (o_b - o_a),    l = log(exp(lse_a) + exp(lse_b))

No exponential is computed twice: softmax gives the weights `p`, and the largest of them is `exp(0) / sum`. So with the
largest score `m`, the logarithm of the sum is `m - log(max(p))`.

A pass of more tokens, which is prefill, is bound by its scores and not by reading KV. It attends to prefix and tails as
to one array, which is built for one layer at a time. So a prompt computes the same bits with a prefix of its own and
with a shared one.
"""

from __future__ import annotations

import sys
from typing import Any

import mlx.core as mx
from mlx_lm.models import base

from daemon.kv.mlx.shared_kv import SharedBatchKV, SharedKV

FEW = 16
"""Most tokens of a row that attend in parts."""

_SEAM = "scaled_dot_product_attention"
_plain = base.scaled_dot_product_attention


def install(model: Any) -> None:
    """Let the modules of a model attend through `attend`; those that attend in another way stay as they are."""
    for module in {type(part).__module__ for part in model.modules()}:
        code = sys.modules[module]
        if getattr(code, _SEAM, None) is _plain:
            setattr(code, _SEAM, attend)


def attend(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    cache: Any,
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None = None,
) -> mx.array:
    """
    Attend as mlx-lm's function does, and to the shared prefixes of `cache` if it has any.

    Args:
        queries: Of shape [rows, heads, tokens, width].
        keys: Of the tails, [rows, KV heads, tokens, width].
        values: The same for values.
        cache: The layer's cache.
        scale: Factor of the scores.
        mask: Which keys of the tails a query sees.
        sinks: A score of each head that takes weight from all tokens.

    Raises:
        TypeError: If the mask adds to scores: what it would add for the prefix is not known.
    """
    if not isinstance(cache, SharedKV | SharedBatchKV):
        plain: mx.array = _plain(queries, keys, values, cache, scale, mask, sinks)
        return plain
    if isinstance(mask, mx.array) and mask.dtype != mx.bool_:
        raise TypeError("scores of a shared prefix cannot be added to")
    if queries.shape[2] > FEW:
        return _as_one(queries, keys, values, cache, scale, mask, sinks)
    return _in_parts(queries, keys, values, cache, scale, mask, sinks)


def _in_parts(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    cache: SharedKV | SharedBatchKV,
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None,
) -> mx.array:
    rows, heads, tokens, width = queries.shape
    groups = keys.shape[1]
    folded = (queries * scale).reshape(rows, groups, heads // groups * tokens, width)
    out, total = _tails(folded, keys, values, _mask(mask, tokens, keys.shape[2]))
    for prefix, readers in cache.readers:
        part, weight = _prefix(
            folded if len(readers) == rows else folded[mx.array(readers)], *prefix.layers[cache.layer]
        )
        if len(readers) == rows:
            out, total = _merged(out, total, part, weight)
        else:
            where = mx.array(readers)
            out[where], total[where] = _merged(out[where], total[where], part, weight)
    if sinks is not None:
        sink = mx.repeat(sinks.astype(mx.float32), tokens).reshape(1, groups, -1, 1)
        out = out * mx.sigmoid(total - sink)
    return out.astype(queries.dtype).reshape(rows, heads, tokens, -1)


def _tails(queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | None) -> tuple[mx.array, mx.array]:
    """Attend to the tails: queries [rows, groups, heads of a group * tokens, width]."""
    scores = queries @ keys.swapaxes(-1, -2)
    if mask is not None:
        rows, groups, _, length = scores.shape
        split = scores.reshape(rows, groups, -1, mask.shape[-2], length)
        lowest = mx.array(mx.finfo(scores.dtype).min, scores.dtype)
        scores = mx.where(mask[:, :, None], split, lowest).reshape(scores.shape)
    return _weighted(scores, values)


def _prefix(queries: mx.array, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
    """Attend to a prefix: the queries of all rows are rows of one product."""
    rows, groups, each, width = queries.shape
    together = queries.swapaxes(0, 1).reshape(1, groups, rows * each, width)
    out, total = _weighted(together @ keys.swapaxes(-1, -2), values)
    return tuple(part.reshape(groups, rows, each, -1).swapaxes(0, 1) for part in (out, total))  # type: ignore[return-value]


def _weighted(scores: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
    """Return the mean of values, weighted by scores, and the logarithm of the sum of the weights; float32."""
    scores = scores.astype(mx.float32)
    largest = scores.max(axis=-1, keepdims=True)
    weights = mx.softmax(scores, axis=-1)
    total = largest - mx.log(weights.max(axis=-1, keepdims=True))
    return (weights.astype(values.dtype) @ values).astype(mx.float32), total


def _merged(out: mx.array, total: mx.array, more: mx.array, weight: mx.array) -> tuple[mx.array, mx.array]:
    return out + mx.sigmoid(weight - total) * (more - out), mx.logaddexp(total, weight)


def _as_one(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    cache: SharedKV | SharedBatchKV,
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None,
) -> mx.array:
    """Attend to prefix and tails as to one array. Rows with the same prefix become one row, so it is built once."""
    rows, _, tokens, _ = queries.shape
    by_prefix: dict[Any, list[int]] = {}
    for row, prefix in enumerate(cache.prefixes):
        by_prefix.setdefault(prefix, []).append(row)
    out: list[mx.array] = [queries] * rows
    for prefix, readers in by_prefix.items():
        arrays = [part.layers[cache.layer] for part in prefix.path]
        where, count = mx.array(readers), len(readers)
        tails = [_in_a_row(array[where] if count < rows else array) for array in (keys, values)]
        whole = [
            mx.concatenate([*parts, tail], axis=2) for parts, tail in zip(zip(*arrays, strict=True), tails, strict=True)
        ]
        seen = (
            mask
            if count == rows == 1 and isinstance(mask, str)
            else _block_mask(mask, where, tokens, tails[0], prefix.stop)
        )
        asked = _in_a_row(queries[where] if count < rows else queries)
        got = mx.fast.scaled_dot_product_attention(asked, *whole, scale=scale, mask=seen, sinks=sinks)
        for place, row in enumerate(readers):
            out[row] = got[:, :, place * tokens : (place + 1) * tokens]
    return mx.concatenate(out) if rows > 1 else out[0]


def _in_a_row(array: mx.array) -> mx.array:
    """Return rows of shape [rows, heads, tokens, width] one behind the other, [1, heads, rows * tokens, width]."""
    rows, heads, tokens, width = array.shape
    return array if rows == 1 else array.swapaxes(0, 1).reshape(1, heads, rows * tokens, width)


def _block_mask(mask: mx.array | str | None, rows: mx.array, tokens: int, tails: mx.array, prefix: int) -> mx.array:
    """Return what each query sees of prefix and tails: all of the prefix, and of the tails its own row."""
    count = rows.shape[0]
    length = tails.shape[2] // count
    own = _mask(mask, tokens, length)
    if own is None:
        own = mx.ones((1, 1, tokens, length), mx.bool_)
    each = mx.broadcast_to(own[:, 0], (own.shape[0], tokens, length))
    each = each[rows] if each.shape[0] > 1 else mx.broadcast_to(each, (count, tokens, length))
    same = mx.eye(count, dtype=mx.bool_)[:, None, :, None]
    blocks = (each[:, :, None] & same).reshape(count * tokens, count * length)
    return mx.concatenate([mx.ones((count * tokens, prefix), mx.bool_), blocks], axis=1)


def _mask(mask: mx.array | str | None, tokens: int, length: int) -> mx.array | None:
    """Return a mask as an array, [rows, 1, tokens, length]; None if all is seen."""
    if isinstance(mask, str):
        return base.create_causal_mask(tokens, length - tokens)[None, None] if tokens > 1 else None
    if mask is not None and mask.ndim == 2:
        return mask[None, None]
    return mask
