"""A reused prefix computes bit for bit what a cold run computes, and stored KV is never written to."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any, cast

import mlx.core as mx
import pytest
from mlx_lm.models.cache import BatchRotatingKVCache, KVCache

from daemon.kv.extent_ledger import Run
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.mlx import peak
from daemon.kv.mlx.adapters.kv_cache import KVCacheAdapter
from daemon.kv.mlx.adapters.rotating import RotatingAdapter
from daemon.kv.mlx.growth import ROOM_STEP
from daemon.kv.mlx.layout import capacity_for
from daemon.kv.mlx.rows_kv import RowsKV
from tests.support.builders import page_rounding
from tests.unit.kv.tiny_models import REUSABLE, TinyEngine, build, raw, same_bits, tokens

LENGTHS = [15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 257]


@pytest.fixture(name="models", scope="module")
def _models() -> dict[str, Any]:
    return {name: build(make) for name, make in REUSABLE.items()}


@pytest.fixture(name="engine", params=list(REUSABLE))
def _engine(request: pytest.FixtureRequest, models: dict[str, Any]) -> Iterator[TinyEngine]:
    engine = TinyEngine(models[request.param])
    yield engine
    engine.prefixes.clear()


@pytest.fixture(name="llama")
def _llama(models: dict[str, Any]) -> TinyEngine:
    return TinyEngine(models["llama with grouped queries"])


@pytest.fixture(name="exact_memory")
def _exact_memory() -> Iterator[None]:
    """Let no buffer be reused: the allocator counts a reused buffer with its original size."""
    gc.collect()
    limit = mx.set_cache_limit(0)
    yield
    mx.set_cache_limit(limit)


@pytest.mark.parametrize("length", LENGTHS)
def test_warm_logits_equal_cold_logits_bit_for_bit(engine: TinyEngine, length: int) -> None:
    prompt = tokens(length + 7)
    engine.store(prompt[:length], engine.cold(prompt[:length])[0])
    cold_cache, cold = engine.cold(prompt)

    warm_cache, reused = engine.restored(prompt)
    warm = engine.compute(warm_cache, prompt[reused:])

    assert reused == (length if length >= BLOCK_TOKENS else 0)
    assert same_bits(warm, cold[reused:])
    for token in (3, 1, 4):
        assert same_bits(engine.compute(warm_cache, [token]), engine.compute(cold_cache, [token]))


@pytest.mark.parametrize("common", [32, 33, 40, 47, 97, 99])
def test_match_inside_an_extent_restores_part_of_it(engine: TinyEngine, common: int) -> None:
    """Up to the token where two prompts diverge, in a block or in the tail."""
    prompt = tokens(100)
    engine.store(prompt, engine.cold(prompt)[0])
    other = [*prompt[:common], prompt[common] + 1, *prompt[:50]]

    caches, reused = engine.restored(other)

    assert reused == common
    assert same_bits(engine.compute(caches, other[common:]), engine.cold(other)[1][common:])


def test_prefix_stored_in_pieces_restores_as_one(engine: TinyEngine) -> None:
    prompt = tokens(130)
    caches = engine.layout.new_cache(engine.model, len(prompt))
    for start in range(0, len(prompt), 26):
        engine.compute(caches, prompt[start : start + 26])
        engine.store(prompt[: start + 26], caches)

    again = [*prompt, 5, 6]
    restored, reused = engine.restored(again)

    assert reused == 130
    assert same_bits(engine.compute(restored, again[130:]), engine.cold(again)[1][130:])


def test_restored_kv_equals_the_live_cache_exactly(engine: TinyEngine) -> None:
    prompt = tokens(49)
    live, _ = engine.cold(prompt)
    engine.store(prompt, live)

    restored, reused = engine.restored(prompt)

    assert [cache.offset for cache in restored] == [reused] * len(live)
    for one, two in zip(restored, live, strict=True):
        assert same_bits(mx.contiguous(one.keys[..., :48, :]), mx.contiguous(two.keys[..., :48, :]))
        assert same_bits(mx.contiguous(one.values[..., :48, :]), mx.contiguous(two.values[..., :48, :]))
        assert not mx.any(one.keys[..., 48:, :]).item()
        assert not mx.any(one.values[..., 48:, :]).item()


def test_stored_kv_is_unchanged_by_later_decoding(engine: TinyEngine) -> None:
    prompt = tokens(40)
    live, _ = engine.cold(prompt)
    engine.store(prompt, live)
    before = engine.payloads()

    for cache in live:
        cache.trim(30)
    engine.compute(live, [5] * 30)
    restored, reused = engine.restored(prompt)
    engine.compute(restored, prompt[reused:])
    for cache in restored:
        cache.trim(cache.offset)
    engine.compute(restored, [7] * 300)

    assert engine.payloads() == before


def test_two_restores_are_independent(engine: TinyEngine) -> None:
    prompt = tokens(42)
    engine.store(prompt[:40], engine.cold(prompt[:40])[0])
    one, reused = engine.restored(prompt)
    two, _ = engine.restored(prompt)

    engine.compute(one, [9] * 8)

    assert same_bits(engine.compute(two, prompt[reused:]), engine.cold(prompt)[1][reused:])


def test_stored_kv_affects_the_logits(llama: TinyEngine) -> None:
    prompt = tokens(40)
    llama.store(prompt, llama.cold(prompt)[0])
    (node,) = llama.prefixes.trie.tops(lambda _: True)
    extent = node.extents[0]
    assert extent is not None
    (array,) = cast("tuple[mx.array]", extent.payload)
    extent.payload = (array + 1e-3,)

    caches, reused = llama.restored(prompt)

    assert not same_bits(llama.compute(caches, prompt[reused:]), llama.cold(prompt)[1][reused:])


def test_stored_kv_can_be_read_on_another_thread(engine: TinyEngine) -> None:
    prompt = tokens(40)
    engine.store(prompt, engine.cold(prompt)[0])
    read: list[list[bytes]] = []
    thread = threading.Thread(target=lambda: read.append(engine.payloads()))
    thread.start()
    thread.join()

    assert read == [engine.payloads()]


@pytest.mark.usefixtures("exact_memory")
def test_memory_usage_matches_the_allocator(engine: TinyEngine) -> None:
    prompt = tokens(200)
    before = mx.get_active_memory()
    live, logits = engine.cold(prompt, room=1000)
    engine.store(prompt, live)
    del live, logits

    assert engine.prefixes.memory_usage() == 200 * engine.layout.bytes_per_token
    excess = mx.get_active_memory() - before - engine.prefixes.memory_usage()
    assert 0 <= excess <= page_rounding(engine.prefixes.trie.ledger.buffers)

    engine.prefixes.clear()
    assert mx.get_active_memory() == before


@pytest.mark.usefixtures("exact_memory")
@pytest.mark.parametrize("room", [0, 1, 500])
def test_restored_cache_takes_exactly_its_capacity(engine: TinyEngine, room: int) -> None:
    prompt = tokens(257)
    engine.store(prompt, engine.cold(prompt)[0])
    before = mx.get_active_memory()

    restored, _ = engine.restored(prompt, room)

    expected = capacity_for(257 + room) * engine.layout.bytes_per_token
    assert 0 <= mx.get_active_memory() - before - expected <= page_rounding(2 * len(restored))
    engine.prefixes.clear()
    assert sum(cache.nbytes for cache in restored) == expected


@pytest.mark.usefixtures("exact_memory")
@pytest.mark.parametrize("room", [0, 500])
def test_restoring_copies_the_prefix_once(engine: TinyEngine, room: int) -> None:
    """A second copy would take twice the time, and for a moment the memory of a prefix that no budget counts."""
    prompt = tokens(257)
    engine.store(prompt, engine.cold(prompt)[0])
    before = mx.get_active_memory()
    mx.reset_peak_memory()

    restored, _ = engine.restored(prompt, room)

    expected = capacity_for(257 + room) * engine.layout.bytes_per_token
    zeros = 1000  # one number for each kind of layer
    assert mx.get_peak_memory() - before <= expected + zeros + page_rounding(2 * len(restored) + 2)


@pytest.mark.parametrize("warm", [False, True])
def test_prefill_after_restore_regrows_no_buffer(engine: TinyEngine, warm: bool) -> None:
    prompt = tokens(600)
    if warm:
        engine.store(prompt[:64], engine.cold(prompt[:64])[0])
    caches, reused = engine.restored(prompt, room=100)
    capacities = [cache.keys.shape[2] for cache in caches]

    engine.compute(caches, prompt[reused:])
    engine.compute(caches, [1] * 100)

    assert reused == (64 if warm else 0)
    assert [cache.keys.shape[2] for cache in caches] == capacities == [768] * len(caches)


@pytest.mark.usefixtures("exact_memory")
def test_restored_view_does_not_keep_its_extent_alive(llama: TinyEngine) -> None:
    prompt = tokens(256)
    live, _ = llama.cold(prompt)
    extent = llama.layout.pack(live, 0, 0, 16)
    caches = [KVCache() for _ in live]
    KVCacheAdapter().restore(caches, [Run(extent.payload, 0, 256)], tokens=256, capacity=256)
    before = mx.get_active_memory()

    extent.payload = None

    assert 0 <= before - mx.get_active_memory() - extent.nbytes <= page_rounding(1)
    assert raw(mx.contiguous(caches[0].keys)) == raw(mx.contiguous(live[0].keys[..., :256, :]))


def test_packing_absent_tokens_is_refused(engine: TinyEngine) -> None:
    caches, _ = engine.cold(tokens(31))

    with pytest.raises(ValueError, match="fewer than 32 tokens"):
        engine.layout.pack(caches, 0, 0, 2)

    caches[-1].trim(20)
    with pytest.raises(ValueError, match="fewer than 16 tokens"):
        engine.layout.pack(caches, 0, 0, 1)


def test_restoring_into_an_unfit_cache_is_refused(llama: TinyEngine) -> None:
    live, _ = llama.cold(tokens(32))
    extent = llama.layout.pack(live, 0, 0, 2)
    run = Run(extent.payload, 0, 32)
    empty: list[Any] = [KVCache() for _ in live]

    for caches, runs, capacity in ((live, [run], 256), (empty, [run], 31), (empty, [], 256)):
        with pytest.raises(ValueError, match="restore needs"):
            KVCacheAdapter().restore(caches, runs, 32, capacity)
    assert all(cache.empty() for cache in empty)


def test_cache_with_zero_capacity_works(engine: TinyEngine) -> None:
    caches = engine.layout.new_cache(engine.model, 0)

    assert same_bits(engine.compute(caches, tokens(20)), engine.cold(tokens(20))[1])
    assert capacity_for(0) == 0
    assert capacity_for(1) == ROOM_STEP == capacity_for(256)


def test_rows_that_stay_exist_twice_at_most(exact_memory: None) -> None:
    """Chosen from the rows of before, and given more room: what they were chosen from is free by then."""
    batch = RowsKV([0] * 8)
    batch.update_and_fetch(*(mx.ones((8, 1, ROOM_STEP, 256)) for _ in range(2)))
    mx.eval(batch.keys, batch.values)
    one = batch.keys.nbytes
    with peak.measuring() as taken:
        batch.filter(list(range(7)))
        KVCacheAdapter().fit(batch, 1)
    assert batch.keys.shape[2] == 2 * ROOM_STEP
    # Of keys or values: what was chosen, and it with its room, which is twice as long. Those of before are free.
    assert taken.bytes <= 7 / 8 * (1 + 2) * one + page_rounding(8)


def test_row_that_is_taken_out_is_no_copy(exact_memory: None) -> None:
    """Of a window that has not turned; and the row that stays keeps nothing of the others, once it is shrunk."""
    adapter, rows = RotatingAdapter(), BatchRotatingKVCache(512, [3, 0])
    rows.update_and_fetch(*(mx.random.normal((2, 2, 200, 64)) for _ in range(2)))
    mx.eval(rows.keys, rows.values)
    before = mx.get_active_memory()
    with peak.measuring() as taken:
        row = adapter.to_single(rows, 0)
        mx.eval(row.keys, row.values)
    copied = rows.extract(0)
    assert taken.bytes <= page_rounding(2)
    assert mx.array_equal(row.keys, copied.keys)
    assert mx.array_equal(row.values, copied.values)
    assert (row.offset, row._idx) == (copied.offset, copied._idx)
    own = copied.keys.nbytes + copied.values.nbytes
    del rows, copied
    adapter.shrink(row)
    mx.eval(row.keys, row.values)
    gc.collect()
    assert mx.get_active_memory() - before <= own - 2 * own + page_rounding(4)
