"""A layout describes exactly how a model keeps its KV; a cache without an exact description is not reused."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache, make_prompt_cache
from structlog.testing import capture_logs

from daemon.kv.mlx.adapters import rotating
from daemon.kv.mlx.adapters.cache_list import leaves
from daemon.kv.mlx.adapters.kv_cache import copied
from daemon.kv.mlx.layout import Layout
from daemon.kv.mlx.request_kv import RequestKV
from daemon.kv.mlx.self_test import probe
from tests.unit.kv.tiny_models import OTHER, RECURRENT, REUSABLE, WINDOWED, TinyEngine, build, same_bits, tokens


@pytest.fixture(name="layouts", scope="module")
def _layouts() -> dict[str, Layout]:
    return {name: probe(build(make)) for name, make in REUSABLE.items()}


def test_layers_of_equal_shape_share_a_group(layouts: dict[str, Layout]) -> None:
    assert {name: layout.groups for name, layout in layouts.items()} == {
        "llama with grouped queries": ((0, 1),),
        "youtu_llm with wide keys and narrow values": ((0, 1),),
        "youtu_llm of one layer": ((0,),),
        "deepseek_v3 with latents": ((0, 1),),
        "afm7 with fewer caches than layers": ((0, 1),),
        "openelm with layers of two shapes": ((0, 2), (1,)),
    }


def test_layout_signatures_are_distinct(layouts: dict[str, Layout]) -> None:
    assert len({layout.signature for layout in layouts.values()}) == len(layouts) - 1  # afm7 is laid out as llama
    assert layouts["openelm with layers of two shapes"].signature == (
        "KVCache[2x8+8,mlx.core.float32,mlx.core.float32];"
        "KVCache[1x8+8,mlx.core.float32,mlx.core.float32];"
        "KVCache[2x8+8,mlx.core.float32,mlx.core.float32]"
    )


def test_another_dtype_is_another_layout() -> None:
    model = build(REUSABLE["llama with grouped queries"])
    wide = probe(model)
    model.set_dtype(mx.bfloat16)
    narrow = probe(model)

    assert narrow.signature != wide.signature
    assert narrow.bytes_per_token * 2 == wide.bytes_per_token == 2 * 2 * (2 * 8) * 4


@pytest.mark.parametrize("name", list(REUSABLE))
def test_bytes_per_token_match_a_real_cache(layouts: dict[str, Layout], name: str) -> None:
    caches = layouts[name].new_cache(build(REUSABLE[name]), 256)

    assert sum(cache.nbytes for cache in caches) == 256 * layouts[name].bytes_per_token


@pytest.mark.parametrize("name", [*REUSABLE, *WINDOWED, *RECURRENT])
@pytest.mark.parametrize("length", [1, 20, 300])
def test_live_bytes_bound_those_of_a_real_cache(name: str, length: int) -> None:
    """The bytes are exact without windows; a window may hold fewer tokens than it makes room for."""
    model = build({**REUSABLE, **WINDOWED, **RECURRENT}[name])
    layout = probe(model)
    caches = layout.new_cache(model, length)
    chunk = 7
    for start in range(0, length, chunk):
        mx.eval(model(mx.array([tokens(length)[start : start + chunk]]), cache=caches))
        held = sum(cache.nbytes for cache in leaves(caches))
        assert held <= layout.live_bytes(length, chunk)
    if name not in WINDOWED:
        assert held == layout.live_bytes(length, chunk)
    assert layout.live_bytes(10_000, chunk) <= layout.bytes_per_token * 10_240 + layout.state_bytes


def test_bytes_of_blocks_are_billed_as_those_of_more_layers() -> None:
    """Also when a part of an extent is copied; the arrays are those of the layers that there are."""
    model = build(REUSABLE["llama with grouped queries"])
    own = probe(model)
    caches = own.new_cache(model, 64)
    mx.eval(model(mx.array([tokens(64)]), cache=caches))
    billed = own.billed_as(3)
    block = billed.parts.block_bytes
    assert block == own.parts.block_bytes * 3 // 2
    extent = billed.pack(caches, 0, 0, 4)
    assert extent.nbytes == 4 * block
    assert copied(extent, 1, 3).nbytes == 2 * block
    assert billed.tail(caches, 0, 16, 24).nbytes == block // 2
    assert own.pack(caches, 0, 0, 4).nbytes == 4 * own.parts.block_bytes


def test_window_and_state_cost_is_constant_in_length() -> None:
    """Only layers with full attention grow with the prompt."""
    mamba = probe(build(RECURRENT["mamba with recurrent state"]))
    assert mamba.live_bytes(100_000, 16) == mamba.live_bytes(1, 16) == mamba.state_bytes
    gemma = probe(build(WINDOWED["gemma3_text with windows of 32"]))
    grown = gemma.live_bytes(2560, 16) - gemma.live_bytes(2304, 16)
    assert grown == 256 * gemma.bytes_per_token // 3  # one of its three layers sees everything


def test_layout_keeps_no_cache_alive() -> None:
    model = build(REUSABLE["llama with grouped queries"])
    probe(model)
    before = mx.get_active_memory()

    layout = probe(model)

    assert layout.reusable
    assert mx.get_active_memory() == before


@pytest.mark.parametrize("name", list(OTHER))
def test_unknown_cache_classes_work_without_reuse(name: str) -> None:
    model = build(OTHER[name])
    layout = probe(model)

    assert not layout.reusable
    assert layout.bytes_per_token > 0
    caches = layout.new_cache(model, 40)
    assert [type(cache) for cache in caches] == [type(cache) for cache in make_prompt_cache(model)]
    engine = TinyEngine(model)
    assert same_bits(engine.compute(caches, tokens(40)), engine.cold(tokens(40))[1])


class _Subclass(KVCache):  # type: ignore[misc]
    """A cache that may keep something unknown to the adapter of its base class."""


class _Fake:
    """A model with given caches, of which it feeds the first `fed`."""

    def __init__(self, caches: list[Any], fed: int) -> None:
        self._caches = caches
        self._fed = fed

    def make_cache(self) -> list[Any]:
        return self._caches

    def __call__(self, ids: mx.array, cache: list[Any]) -> mx.array:
        for one in cache[: self._fed]:
            one.update_and_fetch(mx.zeros((1, 1, 1, 4)), mx.zeros((1, 1, 1, 4)))
        return mx.zeros((1, 1, 8))


def test_cache_subclass_is_not_reused() -> None:
    assert not probe(_Fake([_Subclass()], fed=1)).reusable


def test_model_with_an_unused_cache_is_not_reused() -> None:
    assert not probe(_Fake([KVCache(), KVCache()], fed=1)).reusable


class _Forgetful:
    """A model that keeps a count of its calls beside its KV cache, and computes with it."""

    def __init__(self) -> None:
        self.layers = [None]
        self._calls = 0
        self._model = build(REUSABLE["llama with grouped queries"])

    def make_cache(self) -> list[Any]:
        """Return plain caches, which do not hold the count."""
        caches: list[Any] = make_prompt_cache(self._model)
        return caches

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        self._calls += 1
        logits: mx.array = self._model(inputs, cache=cache)
        return logits * (1 + 0.5 * self._calls)


def test_reuse_requires_an_exact_self_test() -> None:
    """The caches look plain, but a restored copy computes other logits: no reuse, and a warning."""
    assert probe(build(REUSABLE["llama with grouped queries"])).reusable
    with capture_logs() as logs:
        layout = probe(_Forgetful())
    assert not layout.reusable
    assert layout.bytes_per_token > 0
    assert [line["log_level"] for line in logs] == ["warning"]
    assert layout.warning == logs[0]["event"]


def test_layers_of_unequal_length_are_refused() -> None:
    engine = TinyEngine(build(REUSABLE["openelm with layers of two shapes"]))
    engine.store(tokens(32), engine.cold(tokens(32))[0])
    with engine.lookup(tokens(33)) as lease:
        first, second = engine.prefixes.runs(lease, engine.layout.parts)

        with pytest.raises(RuntimeError, match=r"layers hold \[16, 32\] tokens instead of 32"):
            engine.layout.restored_cache(engine.model, [first, [second[0]._replace(stop=16)]], None, 32, 64)


def test_restoring_an_empty_match_is_refused() -> None:
    engine = TinyEngine(build(REUSABLE["llama with grouped queries"]))
    with engine.lookup(tokens(33)) as lease, pytest.raises(ValueError):
        engine.restore(lease, 64)


def test_recurrent_layers_need_their_checkpoint() -> None:
    engine = TinyEngine(build(RECURRENT["qwen3_next with both"]))
    engine.store(tokens(32), engine.cold(tokens(32))[0])
    with engine.lookup(tokens(33)) as lease:
        runs = engine.prefixes.runs(lease, engine.layout.parts)

        with pytest.raises(ValueError, match="without a checkpoint"):
            engine.layout.restored_cache(engine.model, runs, None, 32, 64)


def test_spec_names_windows_and_recurrent_layers() -> None:
    windowed = probe(build(WINDOWED["gemma3_text with windows of 32"]))
    hybrid = probe(build(RECURRENT["qwen3_next with both"]))
    plain = probe(build(REUSABLE["llama with grouped queries"]))

    assert {group.window for group in windowed.parts.groups} == {32, None}
    assert windowed.parts.stride == 16
    assert hybrid.parts.state_bytes == sum(
        array.nbytes
        for cache in TinyEngine(build(RECURRENT["qwen3_next with both"])).cold([1])[0][:1]
        for array in cache.cache
    )
    assert plain.parts.resumes_anywhere
    assert not windowed.parts.resumes_anywhere
    assert not hybrid.parts.resumes_anywhere
    assert isinstance(windowed.shapes[0], rotating.WindowShape)


@pytest.mark.parametrize("name", [*WINDOWED, *RECURRENT])
def test_restored_layers_have_the_models_classes(name: str) -> None:
    engine = TinyEngine(build((WINDOWED | RECURRENT)[name]))
    engine.store(tokens(32), engine.cold(tokens(32))[0])

    restored, reused = engine.restored(tokens(33))

    assert reused == 32
    made = make_prompt_cache(engine.model)
    assert [type(cache) for cache in leaves(restored)] == [type(cache) for cache in leaves(made)]


def test_cache_of_another_length_is_refused_as_source() -> None:
    engine = TinyEngine(build(REUSABLE["llama with grouped queries"]))
    caches, _ = engine.cold(tokens(33))

    with pytest.raises(RuntimeError, match=r"layers hold \[33\] tokens instead of 32"):
        RequestKV(engine.layout, caches, 32)
