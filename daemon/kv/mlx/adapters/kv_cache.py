"""The adapter of mlx-lm's plain `KVCache`: full attention, any head width, MLA latents included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from daemon.kv.extent_ledger import Run
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.mlx.adapters.base import MergingAdapter
from daemon.kv.mlx.rows_kv import RowsKV
from daemon.kv.nodes import Extent
from daemon.kv.spec import NotHeldError


class KVShape(NamedTuple):
    """Shape and type of one layer's KV. Layers of equal shape can share an extent."""

    heads: int
    key_width: int
    value_width: int
    key_dtype: mx.Dtype
    value_dtype: mx.Dtype

    @classmethod
    def of(cls, cache: KVCache) -> KVShape:
        """Return the shape of a cache that holds at least one token."""
        keys, values = cache.keys, cache.values
        return cls(keys.shape[1], keys.shape[3], values.shape[3], keys.dtype, values.dtype)

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token needs in this layer."""
        return self.heads * (self.key_width * self.key_dtype.size + self.value_width * self.value_dtype.size)

    @property
    def state_bytes(self) -> int:
        """There is no state beside the KV."""
        return 0

    @property
    def window(self) -> int | None:
        """Full attention looks back at all tokens."""
        return None

    def live_bytes(self, capacity: int, chunk: int) -> int:
        """Bytes of the whole capacity: a cache never forgets a token."""
        return capacity * self.bytes_per_token

    def __str__(self) -> str:
        return f"KVCache[{self.heads}x{self.key_width}+{self.value_width},{self.key_dtype},{self.value_dtype}]"


class KVCacheAdapter(MergingAdapter):
    """Copies KV of full attention out of live caches and back into empty ones."""

    cache_class = KVCache
    batch_class = RowsKV

    def describe(self, cache: KVCache) -> KVShape | None:
        """Return the shape of a cache that holds one token; None if it holds another number of them."""
        return KVShape.of(cache) if cache.offset == 1 else None

    def reserve(self, cache: KVCache, shape: KVShape, capacity: int) -> None:
        """Give an empty cache room for `capacity` tokens, so that prefill never regrows it."""
        cache.keys = mx.zeros((1, shape.heads, capacity, shape.key_width), shape.key_dtype)
        cache.values = mx.zeros((1, shape.heads, capacity, shape.value_width), shape.value_dtype)

    def pretend(self, cache: KVCache, shape: KVShape, tokens: int) -> None:
        """Let a cache with room stand as if it held so many tokens."""
        cache.offset = tokens

    def pack(self, caches: Sequence[KVCache], start: int, stop: int) -> Extent:
        """
        Copy blocks `start` to `stop` of layers of equal shape into one extent, see `packed`.

        Raises:
            NotHeldError: If a layer does not hold these tokens.
        """
        return packed(*_between(caches, start * BLOCK_TOKENS, stop * BLOCK_TOKENS), start, stop)

    def tail(self, caches: Sequence[KVCache], first: int, last: int) -> Extent:
        """
        Copy tokens `first` to `last` of layers of equal shape into one extent, see `packed`.

        Raises:
            NotHeldError: If a layer does not hold these tokens.
        """
        block = last // BLOCK_TOKENS
        return packed(*_between(caches, first, last), block, block + 1)

    def restore(self, caches: Sequence[KVCache], runs: Sequence[Run], tokens: int, capacity: int) -> None:
        """
        Fill empty caches with all tokens of `runs`, with room for `capacity` in all. One copy; evaluated.

        The length comes from the runs: the layout then compares it with `tokens`, in all layers at once.

        Raises:
            ValueError: If a cache is not empty, or there are no runs, or they do not fit.
        """
        held = sum(run.stop - run.start for run in runs)
        if not 0 < held <= capacity or any(not cache.empty() for cache in caches):
            raise ValueError("restore needs a prefix, and empty caches with room for it")
        rooms = [empty_room(layer_parts(runs, 0, which)[0], capacity - held) for which in (0, 1)]
        for layer, cache in enumerate(caches):
            cache.keys, cache.values = (joined(layer_parts(runs, layer, which), rooms[which]) for which in (0, 1))
            cache.offset = held
        mx.eval([(cache.keys, cache.values) for cache in caches])

    def shrink(self, cache: KVCache) -> None:
        """Copy keys and values if they are views of a larger array."""
        cache.keys, cache.values = mx.contiguous(cache.keys), mx.contiguous(cache.values)

    def fit(self, cache: KVCache | RowsKV, room: int) -> None:
        """
        Let a cache end at a whole step of mlx-lm's, with room for so many more tokens.

        A row that remains of a longer one's batch begins within the padding: it has more room than it needs, and ends
        between two steps. It would grow by 256 tokens from there, beyond what it is billed. Evaluated.
        """
        held = cache._idx if isinstance(cache, RowsKV) else cache.offset
        capacity = -(-(held + room) // RowsKV.step) * RowsKV.step
        cache.keys = _sized(cache.keys, capacity)
        mx.eval(cache.keys)  # first, so that one of both exists twice at a time
        cache.values = _sized(cache.values, capacity)
        mx.eval(cache.values)

    def to_batch(self, cache: KVCache) -> RowsKV:
        """Return a batch of one row that shares the arrays of a cache."""
        batch = RowsKV([0])
        batch.keys, batch.values = cache.keys, cache.values
        batch.offset = mx.array([cache.offset])
        batch._idx = cache.offset
        return batch

    def to_single(self, batch: RowsKV, row: int) -> KVCache:
        """Return one row as a cache of views, without the padding before its first token."""
        padding = int(batch.left_padding.tolist()[row])
        cache = KVCache()
        cache.keys = batch.keys[row : row + 1, :, padding:]
        cache.values = batch.values[row : row + 1, :, padding:]
        cache.offset = batch.end(row) - padding
        return cache

    def mark(self, cache: KVCache) -> None:
        """Return nothing: the length tells which tokens there are. A pass would copy an array that is kept here."""

    def back(self, cache: KVCache, mark: None, fed: int, kept: int) -> None:
        """Forget the last tokens of a pass."""
        cache.trim(fed - kept)

    def back_rows(self, batch: RowsKV, mark: None, width: int, kept: Sequence[int]) -> None:
        """Let each row end behind what stays of it."""
        batch.forget([width - count for count in kept])

    def merge(self, caches: Sequence[KVCache], kept: Sequence[int], padding: Sequence[int], room: int) -> RowsKV:
        """Copy the first `kept` tokens of each cache into the rows of one batch, which end together."""
        batch = RowsKV(padding)
        longest = max(kept)
        if longest:
            # To a whole step of mlx-lm's: a batch that is joined may grow, and would end between two steps.
            room = -(-(longest + room) // RowsKV.step) * RowsKV.step - longest
            batch.keys = _right_justified([cache.keys for cache in caches], kept, longest, room)
            batch.values = _right_justified([cache.values for cache in caches], kept, longest, room)
            batch.offset = batch.offset + longest
            batch._idx = longest
        return batch


def packed(keys: list[mx.array], values: list[mx.array], start: int, stop: int) -> Extent:
    """
    Copy each layer's keys and values, [heads, tokens, width], into one extent of blocks `start` to `stop`.

    Of a block, the extent may have a part, or more than it: a tail, with the tokens before it that a window sees.

    The payload is one array [2 * layers, heads, tokens, width] with keys and values in turn. Where keys and values
    differ in width or dtype, it is one array [layers, heads, tokens, width] for each. It is evaluated: a lazy slice
    would keep the whole live buffer alive and make its next write a copy.
    """
    if alike(keys[0], values[0]):
        arrays = [mx.stack([array for pair in zip(keys, values, strict=True) for array in pair])]
    else:
        # A stack of one is a view of it: make it a copy, so that it does not keep the live buffer alive.
        arrays = [mx.contiguous(mx.stack(keys)), mx.contiguous(mx.stack(values))]
    return extent_of(arrays, start, stop)


def packed_parts(
    keys: Sequence[Sequence[mx.array]], values: Sequence[Sequence[mx.array]], start: int, stop: int
) -> Extent:
    """
    Copy each layer's keys and values, in parts of [heads, tokens, width], into one extent as `packed` does.

    Parts are written into the extent's array: joined before that, the tokens of all layers would exist twice.
    """
    if all(len(parts) == 1 for parts in keys):
        return packed([part for (part,) in keys], [part for (part,) in values], start, stop)
    if alike(keys[0][0], values[0][0]):
        return extent_of([_stacked([parts for pair in zip(keys, values, strict=True) for parts in pair])], start, stop)
    return extent_of([_stacked(keys), _stacked(values)], start, stop)


def copied(extent: Extent, first: int, last: int) -> Extent:
    """Copy the blocks from one position of an extent to another into an extent that is billed in the same way."""
    tokens = slice(first * BLOCK_TOKENS, last * BLOCK_TOKENS)
    whole = cast("tuple[mx.array, ...]", extent.payload)
    part = extent_of([mx.contiguous(array[:, :, tokens]) for array in whole], extent.start + first, extent.start + last)
    part.nbytes = part.nbytes * extent.nbytes // sum(array.nbytes for array in whole)
    return part


def layer_parts(runs: Sequence[Run], layer: int, which: int) -> list[mx.array]:
    """Return views of the keys (`which` 0) or values (1) of one layer of a group, [1, heads, tokens, width] each."""
    return [_layer(run, layer, which) for run in runs]


def empty_room(like: mx.array, tokens: int) -> mx.array:
    """Return zeros for `tokens` tokens, [1, heads, tokens, width] as in `like`: a view of one zero, without a copy."""
    _, heads, _, width = like.shape
    return mx.broadcast_to(mx.zeros((), like.dtype), (1, heads, tokens, width))


def joined(parts: Sequence[mx.array], behind: mx.array) -> mx.array:
    """Copy parts and the room behind them into one array, [1, heads, tokens, width]."""
    # Empty room counts as a part: the concatenation of a single array is a view of it.
    return mx.concatenate([*parts, behind], axis=2)


def _between(caches: Sequence[KVCache], first: int, last: int) -> tuple[list[mx.array], list[mx.array]]:
    """Return keys and values of tokens `first` to `last` of each layer, [heads, tokens, width] each. No copy."""
    if any(cache.offset < last for cache in caches):
        raise NotHeldError(f"a layer holds fewer than {last} tokens")
    return [cache.keys[0, :, first:last] for cache in caches], [cache.values[0, :, first:last] for cache in caches]


def extent_of(arrays: list[mx.array], start: int, stop: int) -> Extent:
    """Return blocks `start` to `stop` in arrays like those of `packed`, which are evaluated."""
    mx.eval(arrays)
    return Extent(tuple(arrays), sum(a.nbytes for a in arrays), len(arrays), start, stop - start)


def _stacked(layers: Sequence[Sequence[mx.array]]) -> mx.array:
    """Copy the parts of each layer into one array, [layers, heads, tokens, width]."""
    heads, _, width = layers[0][0].shape
    tokens = sum(part.shape[1] for part in layers[0])
    stacked = mx.zeros((len(layers), heads, tokens, width), layers[0][0].dtype)
    for index, parts in enumerate(layers):
        end = 0
        for part in parts:
            begin, end = end, end + part.shape[1]
            stacked[index, :, begin:end] = part
    return stacked


def _right_justified(arrays: Sequence[mx.array | None], kept: Sequence[int], longest: int, room: int) -> mx.array:
    """Return the first tokens of arrays of shape [1, heads, tokens, width] as rows of one array that end together."""
    like = next(array for array in arrays if array is not None)
    rows = mx.zeros((len(arrays), like.shape[1], longest + room, like.shape[3]), like.dtype)
    for index, (array, count) in enumerate(zip(arrays, kept, strict=True)):
        if array is not None and count:
            rows[index : index + 1, :, longest - count : longest] = array[..., :count, :]
    return rows


def _sized(array: mx.array, tokens: int) -> mx.array:
    """Return an array of shape [rows, heads, tokens, width] with so many tokens, and of no larger one."""
    missing = tokens - array.shape[2]
    if not missing:
        return array
    mx.eval(array)  # it may be a choice of rows that is not computed yet: what it was chosen from becomes free
    if missing > 0:
        return mx.pad(array, [(0, 0), (0, 0), (0, missing), (0, 0)])
    return mx.contiguous(array[:, :, :tokens])


def alike(keys: mx.array, values: mx.array) -> bool:
    """Tell whether keys and values can be in one array."""
    return bool(keys.shape == values.shape and keys.dtype == values.dtype)


def _layer(run: Run, layer: int, which: int) -> mx.array:
    arrays = cast("tuple[mx.array, ...]", run.payload)
    source, index = (arrays[0], 2 * layer + which) if len(arrays) == 1 else (arrays[which], layer)
    # A slice of one is a view; an index would copy the layer out of the whole extent first.
    return source[index : index + 1, :, run.start : run.stop]
