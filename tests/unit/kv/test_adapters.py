"""A cache class is supported as soon as it has an adapter in the tables, and before that it is not reused."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import BatchKVCache, KVCache, make_prompt_cache

from daemon.kv.mlx.adapters import ADAPTERS, BATCH_ADAPTERS, BLOCK_ADAPTERS
from daemon.kv.mlx.adapters.cache_list import leaves
from daemon.kv.mlx.adapters.kv_cache import KVCacheAdapter
from daemon.kv.mlx.batch_cache import joinable
from daemon.kv.mlx.self_test import probe
from daemon.kv.mlx.shared_kv import SharedKV
from tests.unit.kv.tiny_models import RECURRENT, REUSABLE, WINDOWED, TinyEngine, build, same_bits, tokens


class _NewCache(KVCache):  # type: ignore[misc]
    """A cache class that no adapter knows."""


class _NewBatch(BatchKVCache):  # type: ignore[misc]
    """The class of its batches."""


class _NewAdapter(KVCacheAdapter):
    """The one file that the new class needs."""

    cache_class = _NewCache
    batch_class = _NewBatch


class _Model:
    """A model whose layers use the new class."""

    def __init__(self) -> None:
        self._model = build(REUSABLE["llama with grouped queries"])
        self.layers = self._model.layers

    def make_cache(self) -> list[Any]:
        return [_NewCache() for _ in make_prompt_cache(self._model)]

    def __call__(self, ids: mx.array, cache: Any = None) -> mx.array:
        logits: mx.array = self._model(ids, cache=cache)
        return logits


def test_an_adapter_and_an_entry_are_all_that_a_cache_class_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same model is not reused without the entry; with it, a restored prefix computes the same bits."""
    assert not probe(_Model()).reusable
    assert not joinable(_NewCache())

    adapter = _NewAdapter()
    monkeypatch.setitem(BLOCK_ADAPTERS, _NewCache, adapter)
    monkeypatch.setitem(ADAPTERS, _NewCache, adapter)
    monkeypatch.setitem(BATCH_ADAPTERS, _NewBatch, adapter)
    engine = TinyEngine(_Model())
    prompt = tokens(40)
    caches, _ = engine.cold(prompt[:32])
    engine.store(prompt[:32], caches)
    warm, reused = engine.restored(prompt)

    assert reused == 32
    assert {type(cache) for cache in warm} == {_NewCache}
    assert joinable(warm[0])
    assert same_bits(engine.compute(warm, prompt[32:]), engine.compute(caches, prompt[32:]))


class _Inconstant(_Model):
    """A model that makes known caches the first time, and caches without an adapter later."""

    def __init__(self) -> None:
        super().__init__()
        self._made = 0

    def make_cache(self) -> list[Any]:
        self._made += 1
        return super().make_cache() if self._made > 1 else [KVCache() for _ in self.layers]


def test_a_model_that_changes_its_cache_class_is_not_reused_but_works() -> None:
    engine = TinyEngine(_Inconstant())

    assert not engine.layout.reusable
    assert same_bits(engine.cold(tokens(40))[1], TinyEngine(_Model()).cold(tokens(40))[1])


def test_every_adapter_is_found_by_the_classes_that_it_names() -> None:
    """An adapter that is missing in a table, or stands under another class, would lose reuse without a message."""
    assert all(ADAPTERS[adapter.cache_class] is adapter for adapter in ADAPTERS.values())
    assert all(BATCH_ADAPTERS[adapter.batch_class] is adapter for adapter in ADAPTERS.values())


def test_each_cache_class_has_a_tiny_model() -> None:
    """An adapter without one is in no test of layouts, batches and reuse."""
    models = (build(make) for make in {**REUSABLE, **WINDOWED, **RECURRENT}.values())
    tried = {type(cache) for model in models for cache in leaves(make_prompt_cache(model))}
    made_of_others = {SharedKV}  # no model has it: see test_sharing.py
    assert set(ADAPTERS) - made_of_others <= tried
