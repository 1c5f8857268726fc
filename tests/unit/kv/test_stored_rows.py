"""Rows that leave a batch are stored out of its arrays: nothing but the extent that is stored is copied."""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx
import pytest
from mlx_lm.models.cache import BatchRotatingKVCache, KVCache, RotatingKVCache

from daemon.kv.mlx import peak
from daemon.kv.mlx.adapters import BATCH_ADAPTERS, BLOCK_ADAPTERS
from daemon.kv.mlx.batch_cache import to_batch, to_single
from daemon.kv.mlx.sharing import share
from daemon.kv.nodes import Extent

WINDOW, HEADS, WIDTH, LAYERS = 256, 4, 64, 4

SLACK = 64 << 10
"""Bytes of the small arrays that are made on the way."""


def fed(cache: Any, tokens: int, rows: int = 1) -> None:
    """Feed a cache so many tokens, each of its own values."""
    keys = mx.random.normal((rows, HEADS, tokens, WIDTH))
    cache.update_and_fetch(keys, keys + 1)
    mx.eval(cache.keys, cache.values)


def _arrays(extent: Extent) -> tuple[mx.array, ...]:
    return cast("tuple[mx.array, ...]", extent.payload)


def windows(lengths: tuple[int, ...], steps: int) -> BatchRotatingKVCache:
    """Return a batch of windows of such lengths, which have decoded so many tokens since."""
    batch: Any = None
    for length in lengths:
        single = RotatingKVCache(WINDOW)
        fed(single, length)
        if batch is None:
            batch = to_batch(single)
        else:
            batch.extend(to_batch(single))
    for _ in range(steps):
        fed(batch, 1, len(lengths))
    return batch


@pytest.mark.parametrize("lengths", [(300, 290), (256, 300)])
def test_turned_window_of_a_row_is_stored_without_a_copy(lengths: tuple[int, ...]) -> None:
    """A copy of each layer's window in temporal order would exist beside the extent."""
    batches = [windows(lengths, 40) for _ in range(LAYERS)]
    assert all(batch.rotated for batch in batches)
    stop = lengths[1] + 40
    with peak.measuring() as taken:
        rows = [to_single(batch, 1) for batch in batches]
        extent = BLOCK_ADAPTERS[RotatingKVCache].tail(rows, stop - WINDOW, stop)
    assert extent.nbytes == 2 * LAYERS * HEADS * WIDTH * WINDOW * 4
    assert taken.bytes <= extent.nbytes + SLACK


@pytest.mark.parametrize("lengths", [(300, 290), (300, 30), (250, 200), (100, 90)])
@pytest.mark.parametrize("steps", [1, 40])
def test_row_of_windows_holds_what_mlx_lm_extracts(lengths: tuple[int, ...], steps: int) -> None:
    """In a ring or in temporal order, behind padding or not: its tokens are stored as mlx-lm orders them."""
    batch = windows(lengths, steps)
    for row, length in enumerate(lengths):
        stop = length + steps
        first = stop - min(stop, WINDOW)
        extents = [
            BLOCK_ADAPTERS[RotatingKVCache].tail([single], first, stop)
            for single in (to_single(batch, row), batch.extract(row))
        ]
        assert mx.array_equal(_arrays(extents[0])[0], _arrays(extents[1])[0])
    assert BATCH_ADAPTERS[BatchRotatingKVCache].to_single(batch, 0).offset == lengths[0] + steps


@pytest.mark.parametrize(("longest", "steps"), [(200, 10), (250, 40)])
def test_windows_of_shorter_rows_are_cut_when_a_longer_one_leaves(longest: int, steps: int) -> None:
    """What padded them would take as much as the longer row, for as long as their window does not turn."""
    batch = windows((longest, 60, 40), steps)
    stored = [mx.array(to_single(batch, row).keys) for row in (1, 2)]
    batch.filter([1, 2])
    BATCH_ADAPTERS[BatchRotatingKVCache].fit(batch, 0)
    assert batch.keys.shape[2] - batch._idx < batch.step
    assert (batch._idx, batch.left_padding.tolist()) == (60 + steps, [0, 20])
    rows = [to_single(batch, row) for row in (0, 1)]
    assert [row.offset for row in rows] == [60 + steps, 40 + steps]
    assert all(mx.array_equal(row.keys, keys) for row, keys in zip(rows, stored, strict=True))


def test_tail_behind_a_shared_prefix_is_stored_without_a_copy() -> None:
    """Joined with the prefix before that, also where it lends nothing, the layers would exist twice."""
    caches = [KVCache() for _ in range(LAYERS)]
    for cache in caches:
        fed(cache, 1024)
    whole = [mx.array(cache.keys[0, :, 512:1008]) for cache in caches]
    shared, _ = share(caches, 768, 256, copy=True)
    adapter = BLOCK_ADAPTERS[type(shared[0])]
    for start in (768, 512):  # behind the prefix, and across its end
        with peak.measuring() as taken:
            extent = adapter.pack(shared, start // 16, 63)
        assert taken.bytes <= extent.nbytes + SLACK
    assert all(mx.array_equal(_arrays(extent)[0][2 * layer], keys) for layer, keys in enumerate(whole))
