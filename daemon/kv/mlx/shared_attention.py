"""
Attention of sequences that read a shared prefix, installed at the function of mlx-lm through which models attend.

A pass of few tokens, which is a decode step, attends in parts. A prefix is read once for all rows, where it lies: their
queries are rows of one matrix product. The scores of prefixes and tails stand side by side, and one softmax makes
weights of them. Then the values are added up, part by part, in the order of the tokens:

    weights = softmax([ q . prefix keys | q . tail keys ])
    out     = (0 + weights . prefix values) + weights . tail values

A product that adds to what is there goes on with the same sum. So a row gets the bits that it gets from one array of
its own, where a product adds up in order, as MLX's CPU backend does with float32. Parts with a softmax each, merged by
the logarithms of their sums, would round otherwise, and take more operations.

A pass of more tokens, which is prefill, is bound by its scores and not by reading KV. It attends to prefix and tails as
to one array, which is built for one layer at a time. So a prompt computes the same bits with a prefix of its own and
with a shared one.

Latent attention adds the scores of the positions, for the prefix as for the tails; see `latents.py`.
"""

from __future__ import annotations

import sys
from functools import reduce
from itertools import accumulate
from typing import Any

import mlx.core as mx
from mlx_lm.models import base

from daemon.kv.mlx.shared_kv import SharedBatchKV, SharedKV
from daemon.kv.mlx.shared_prefix import Arrays

FEW = 8
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
        mask: Which keys of the tails a query sees; from latent attention, the scores of their positions.
        sinks: A score of each head that takes weight from all tokens.

    Raises:
        TypeError: If the mask adds to scores: what it would add for the prefix is not known.
    """
    shared = isinstance(cache, SharedKV | SharedBatchKV)
    if not shared or (cache.latent and queries.shape[2] > 1):
        if shared:
            cache.attended = True  # its keys and values are those of prefix and tails
        plain: mx.array = _plain(queries, keys, values, cache, scale, mask, sinks)
        return plain
    positions = None
    if isinstance(mask, mx.array) and mask.dtype != mx.bool_:
        positions = None if cache.positions is None else cache.positions.asked
        if positions is None:
            raise TypeError("scores of a shared prefix cannot be added to")
    cache.attended = True
    if queries.shape[2] > FEW:
        return _as_one(queries, keys, values, cache, scale, mask, sinks)
    return _in_parts(queries, keys, values, cache, scale, mask, sinks, positions)


def _in_parts(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    cache: SharedKV | SharedBatchKV,
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None,
    positions: mx.array | None,
) -> mx.array:
    """Attend to prefixes and tails one after the other. Arrays of both are [groups, rows, heads * tokens, ...]."""
    rows, heads, tokens, width = queries.shape
    groups = keys.shape[1]
    asked = (queries * scale).reshape(rows, groups, heads // groups * tokens, width)
    parts = [(*prefix.layers[cache.layer], readers) for prefix, readers in cache.readers]
    folded = asked.swapaxes(0, 1)
    scores = [] if sinks is None else [_sinks(sinks, folded, tokens)]
    if positions is not None and isinstance(mask, mx.array):  # it is the scores of the positions of the tails
        turned = positions.reshape(rows, groups, -1, positions.shape[-1]).swapaxes(0, 1)
        scores += [_scores([(folded, part), (turned, where)], readers) for part, where, readers in parts]
        own = _tail_scores(asked, keys, None) + mask.reshape(rows, groups, -1, keys.shape[2])
        parts = [(part, part, readers) for part, _, readers in parts]  # latents are keys and values
    else:
        scores += [_scores([(folded, part)], readers) for part, _, readers in parts]
        own = _tail_scores(asked, keys, _mask(mask, tokens, keys.shape[2]))
    scores.append(own.swapaxes(0, 1))
    weights = mx.softmax(mx.concatenate(scores, axis=-1), axis=-1, precise=True)
    shares = mx.split(weights, list(accumulate(part.shape[-1] for part in scores[:-1])), axis=-1)
    out = mx.zeros((groups, rows, asked.shape[2], values.shape[-1]), values.dtype)
    for (_, part, readers), share in zip(parts, shares[len(scores) - 1 - len(parts) :], strict=False):
        out = _added(out, share, part, readers)
    summed = mx.addmm(out.swapaxes(0, 1), shares[-1].swapaxes(0, 1), values)
    return summed.reshape(rows, heads, tokens, -1)


def _scores(asked: list[Arrays], readers: list[int]) -> mx.array:
    """
    Return the scores of a prefix: the queries of all rows are rows of one product. Others see nothing of it.

    Its keys are squeezed, which is a view; an index would copy them.

    Args:
        asked: Queries and the keys that they ask; the scores of several pairs are added up.
        readers: The rows that read it.
    """
    groups, rows, each, _ = asked[0][0].shape
    if len(readers) == rows:
        products = [
            (queries.reshape(groups, rows * each, -1) @ keys.squeeze(0).swapaxes(-1, -2)).reshape(
                groups, rows, each, -1
            )
            for queries, keys in asked
        ]
        return reduce(mx.add, products)
    where = mx.array(readers)
    queries, keys = asked[0]
    scores = mx.full((groups, rows, each, keys.shape[2]), mx.finfo(queries.dtype).min, queries.dtype)
    scores[:, where] = _scores([(some[:, where], of) for some, of in asked], list(range(len(readers))))
    return scores


def _tail_scores(queries: mx.array, keys: mx.array, mask: mx.array | None) -> mx.array:
    """Return the scores of tails, for queries [rows, groups, heads of a group * tokens, width]."""
    scores = queries @ keys.swapaxes(-1, -2)
    if mask is None:
        return scores
    rows, groups, _, length = scores.shape
    split = scores.reshape(rows, groups, -1, mask.shape[-2], length)
    lowest = mx.array(mx.finfo(scores.dtype).min, scores.dtype)
    return mx.where(mask[:, :, None], split, lowest).reshape(scores.shape)


def _sinks(sinks: mx.array, queries: mx.array, tokens: int) -> mx.array:
    """Return the score of each head's sink, for each query."""
    groups, rows, each, _ = queries.shape
    return mx.broadcast_to(mx.repeat(sinks, tokens).reshape(groups, 1, each, 1), (groups, rows, each, 1))


def _added(out: mx.array, weights: mx.array, values: mx.array, readers: list[int]) -> mx.array:
    """Return `out` and the weighted values of a prefix, for the rows that read it."""
    groups, rows, each, width = out.shape
    if len(readers) == rows:
        flat = weights.reshape(groups, rows * each, -1)
        return mx.addmm(out.reshape(groups, rows * each, width), flat, values.squeeze(0)).reshape(out.shape)
    where = mx.array(readers)
    out[:, where] = _added(out[:, where], weights[:, where], values, list(range(len(readers))))
    return out


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
