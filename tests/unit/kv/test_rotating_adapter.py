"""Sliding windows restore exactly what the window can see, and a warm answer is the cold one."""

from __future__ import annotations

import gc
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache, RotatingKVCache

from daemon.kv.extent_ledger import Run
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.mlx.adapters import rotating
from daemon.kv.mlx.request_kv import RequestKV
from daemon.kv.spec import NotHeldError, Resume
from tests.support.builders import page_rounding
from tests.unit.kv.tiny_models import WINDOWED, TinyEngine, build, tokens

LENGTHS = [16, 17, 19, 20, 21, 31, 32, 33, 47, 48, 49, 64, 100, 255, 256, 257]
"""Around blocks, both windows and the steps in which caches grow."""

BOUND = 1e-4
"""The window's length changes the shape of matrix products, and with it the last bits of float32 logits."""


@pytest.fixture(name="models", scope="module")
def _models() -> dict[str, Any]:
    return {name: build(make) for name, make in WINDOWED.items()}


@pytest.fixture(name="engine", params=list(WINDOWED))
def _engine(request: pytest.FixtureRequest, models: dict[str, Any]) -> TinyEngine:
    return TinyEngine(models[request.param])


def windows(caches: list[Any]) -> list[RotatingKVCache]:
    """Return the caches that are windows."""
    return [cache for cache in caches if type(cache) is RotatingKVCache]


def window_group(engine: TinyEngine) -> int:
    """Return the number of the layer group with a window."""
    return next(i for i, group in enumerate(engine.layout.parts.groups) if group.window is not None)


def close(one: mx.array, two: mx.array) -> bool:
    """Tell whether logits agree within the bound and choose the same tokens."""
    same = mx.array_equal(mx.argmax(one, axis=-1), mx.argmax(two, axis=-1))
    return bool(same.item()) and bool((mx.abs(one - two).max() <= BOUND).item())


def test_full_and_window_layers_are_reused(engine: TinyEngine) -> None:
    assert engine.layout.reusable
    assert engine.layout.parts.windowed
    kinds = {type(cache) for cache in engine.layout.new_cache(engine.model, 40)}
    assert kinds == {KVCache, RotatingKVCache}


@pytest.mark.parametrize("length", LENGTHS)
def test_warm_window_answer_equals_the_cold_one(engine: TinyEngine, length: int) -> None:
    prompt = tokens(length + 9)
    engine.store(prompt[:length], engine.cold(prompt[:length])[0])
    cold_cache, cold = engine.cold(prompt)

    warm_cache, reused = engine.restored(prompt)
    warm = engine.compute(warm_cache, prompt[reused:])

    assert reused == length
    assert close(warm, cold[reused:])
    for token in tokens(40):
        assert close(engine.compute(warm_cache, [token]), engine.compute(cold_cache, [token]))


@pytest.mark.parametrize("length", LENGTHS)
def test_exactly_the_window_tokens_are_restored(engine: TinyEngine, length: int) -> None:
    prompt = tokens(length + 1)
    engine.store(prompt[:length], engine.cold(prompt[:length])[0])

    caches, reused = engine.restored(prompt)

    assert reused == length
    for cache in windows(caches):
        assert cache.offset == reused
        assert cache.keys.shape[2] == cache._idx == min(reused, cache.max_size)


def test_restoring_a_window_copies_it_once() -> None:
    """Blocks reach back further than the window: tokens before it are cut off before the copy, not after it."""
    blocks, window = 4, 50
    parts = [mx.random.normal((2, 2, 16 * half, 64)) for half in (blocks // 2, blocks // 2)]
    mx.eval(parts)
    runs = [Run((part,), 0, blocks // 2 * BLOCK_TOKENS) for part in parts]
    cache = RotatingKVCache(max_size=window)
    gc.collect()
    limit = mx.set_cache_limit(0)
    before = mx.get_active_memory()
    mx.reset_peak_memory()

    rotating.RotatingAdapter().restore([cache], runs, tokens=16 * blocks, capacity=256)

    copied = mx.get_peak_memory() - before
    mx.set_cache_limit(limit)
    assert cache.nbytes == 2 * 2 * window * 64 * 4
    assert copied <= cache.nbytes + 1000 + page_rounding(4)
    whole = mx.concatenate(parts, axis=2)[:, :, -window:]
    assert mx.array_equal(mx.concatenate([cache.keys, cache.values]), whole).item()


def test_window_chunks_store_like_a_whole_prompt(engine: TinyEngine) -> None:
    prompt = tokens(150)
    caches = engine.layout.new_cache(engine.model, len(prompt))
    for start in range(0, len(prompt), 37):
        engine.compute(caches, prompt[start : start + 37])
        engine.store(prompt[: start + 37], caches)

    warm_cache, reused = engine.restored(prompt)

    assert reused == 148  # the end of a chunk: the last token is always computed
    assert close(engine.compute(warm_cache, prompt[reused:]), engine.cold(prompt)[1][reused:])


def test_third_prompt_resumes_at_a_learned_window_fork(engine: TinyEngine) -> None:
    """The first prompt stored no window at the fork. The second stores it there, and the third goes on from it."""
    prompt = tokens(200)
    engine.store(prompt, engine.cold(prompt)[0])
    other = [*prompt[:70], *reversed(prompt[70:])]
    with engine.lookup(other) as lease:
        assert (lease.tokens, lease.branch) == (0, 64)
    caches = engine.cold(other[:64])[0]
    engine.store(other[:64], caches)

    third = [*prompt[:70], *tokens(50)]
    caches, reused = engine.restored(third)

    assert reused == 64
    assert close(engine.compute(caches, third[reused:]), engine.cold(third)[1][reused:])


def test_window_is_stored_whole_at_the_end_of_an_answer(engine: TinyEngine) -> None:
    """After many generated tokens the window holds only the last of them: the block where it begins is cut."""
    whole = tokens(85)
    caches, _ = engine.cold(whole[:20])
    for token in whole[20:]:
        engine.compute(caches, [token])

    with pytest.raises(NotHeldError):
        RequestKV(engine.layout, caches, 85).pack(window_group(engine), 3, 5)
    engine.store(whole, caches)

    again = [*whole, 5, 6, 7]
    warm_cache, reused = engine.restored(again)
    assert reused == 85
    assert close(engine.compute(warm_cache, again[reused:]), engine.cold(again)[1][reused:])
    engine.prefixes.check_integrity()


def test_long_answer_is_resumable_if_stored_on_the_way(engine: TinyEngine) -> None:
    """In the end, only the windows at the two resume points are stored."""
    prompt = tokens(37)
    caches, _ = engine.cold(prompt[:32])
    engine.store(prompt[:32], caches)
    engine.compute(caches, prompt[32:])
    whole = list(prompt)
    for token in tokens(200):
        engine.compute(caches, [token])
        whole.append(token)
        if len(whole) % engine.layout.parts.stride == 0:
            engine.store(whole, caches, Resume.PASSING)
    engine.store(whole, caches)

    for end in (37, len(whole)):
        again = [*whole[:end], 5, 6, 7]
        warm_cache, reused = engine.restored(again)
        assert reused == (32 if end == 37 else end)
        assert close(engine.compute(warm_cache, again[reused:]), engine.cold(again)[1][reused:])
    with engine.lookup([*whole, 1]) as lease:
        kept = [node.depth for node in lease.nodes if node.extents[window_group(engine)] is not None]
    assert kept == [1, 2, 15]
    engine.prefixes.check_integrity()


def test_generated_tokens_in_the_window_are_stored(engine: TinyEngine) -> None:
    prompt = tokens(36)
    caches, _ = engine.cold(prompt)
    engine.store(prompt, caches)
    generated = tokens(15)
    for token in generated:
        engine.compute(caches, [token])

    whole = [*prompt, *generated]
    assert engine.store(whole, caches) == 2
    warm_cache, reused = engine.restored([*whole, 5])
    assert reused == 51
    assert close(engine.compute(warm_cache, [*whole, 5][reused:]), engine.cold([*whole, 5])[1][reused:])


def test_window_with_attention_sinks_is_not_reused() -> None:
    assert rotating.understood(RotatingKVCache(max_size=32))
    assert not rotating.understood(RotatingKVCache(max_size=32, keep=4))
