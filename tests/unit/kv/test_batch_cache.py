"""Rows of a batch compute what their sequences compute alone, for every class of cache that can be batched."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ChunkedKVCache, KVCache, RotatingKVCache, make_prompt_cache

from daemon.kv.mlx.adapters import BATCH_ADAPTERS
from daemon.kv.mlx.adapters.cache_list import leaves
from daemon.kv.mlx.batch_cache import joinable, merge_caches, plain, to_batch, to_single
from daemon.kv.mlx.self_test import proving
from daemon.shared.slices import drain
from tests.unit.kv.tiny_models import RECURRENT, REUSABLE, VOCABULARY, WINDOWED, build, same_bits

ALONE = "afm7 with fewer caches than layers"
"""Its layers without a cache compute positions that are right for a single row only (mlx-lm 0.32.2)."""

ONE_TOKEN_DIFFERS = "deepseek_v3 with latents"
"""It expands its latents for several tokens, but folds its weights into the query for a single token."""

MODELS = {name: make for name, make in {**REUSABLE, **WINDOWED, **RECURRENT}.items() if name != ALONE}


class Twin:
    """A sequence that is computed twice: alone, and as a row of a batch."""

    def __init__(self, model: Any, prompt: list[int]) -> None:
        self.alone, self.row = make_prompt_cache(model), make_prompt_cache(model)
        for caches in (self.alone, self.row):
            mx.eval(model(mx.array([prompt]), cache=caches))


@pytest.mark.parametrize("name", MODELS)
def test_batch_rows_compute_what_they_compute_alone(name: str) -> None:
    """
    The lengths are below, at and beyond the windows. Logits agree bit for bit. Only where a window turns,
    its tokens are added up in another order, so that they agree within 1e-5.
    """
    model = build(MODELS[name])
    source = random.Random(5)
    rows: list[Twin] = []
    caches: list[Any] = []
    exact = name not in WINDOWED
    for step in range(60):
        if len(rows) < 4 and step % 5 == 0:
            length = source.choice([3, 17, 31, 40, 50])
            twin = Twin(model, [source.randrange(VOCABULARY) for _ in range(length)])
            merge_caches = [to_batch(cache) for cache in twin.row]
            for cache, other in zip(caches, merge_caches, strict=False):
                cache.extend(other)
            caches = caches or merge_caches
            rows.append(twin)
        elif len(rows) > 1 and step % 7 == 0:
            index = source.randrange(len(rows))
            rows[index].row = [to_single(cache, index) for cache in caches]
            leaver = rows.pop(index)
            for cache in caches:
                cache.filter([position for position in range(len(rows) + 1) if position != index])
            for leaf in leaves(caches):
                BATCH_ADAPTERS[type(leaf)].fit(leaf, 8)
            token = mx.array([[source.randrange(VOCABULARY)]])
            got, expected = (model(token, cache=own) for own in (leaver.row, leaver.alone))
            assert same_bits(got, expected) if exact else mx.allclose(got, expected, atol=1e-5).item()
        tokens = [source.randrange(VOCABULARY) for _ in rows]
        together = model(mx.array(tokens)[:, None], cache=caches)
        for index, (twin, token_id) in enumerate(zip(rows, tokens, strict=True)):
            expected = model(mx.array([[token_id]]), cache=twin.alone)
            got = together[index : index + 1]
            assert same_bits(got, expected) if exact else mx.allclose(got, expected, atol=1e-5).item()


@pytest.mark.parametrize("name", [name for name, make in MODELS.items() if plain(make_prompt_cache(build(make)))])
@pytest.mark.parametrize(
    ("held", "lacking"),
    [([0, 0, 0], [3, 17, 16]), ([48, 0, 16], [1, 16, 5]), ([32, 160, 16], [40, 1, 16]), ([0, 16], [1, 1])],
    ids=["cold", "one cold", "warm", "one token each"],
)
def test_batched_prefill_rows_hold_their_own_kv(name: str, held: list[int], lacking: list[int]) -> None:
    """
    For any number of tokens that each held before, and so does their next token. They agree bit for bit. Only where a
    model computes a single token by another formula than several, logits agree within 1e-5.
    """
    same = same_bits if name != ONE_TOKEN_DIFFERS else lambda got, expected: mx.allclose(got, expected, atol=1e-5)
    model = build(MODELS[name])
    source = random.Random(len(lacking))
    prompts = [[source.randrange(VOCABULARY) for _ in range(a + b)] for a, b in zip(held, lacking, strict=True)]
    alone, rows = ([make_prompt_cache(model) for _ in prompts] for _ in range(2))
    for prompt, count, caches, row in zip(prompts, held, alone, rows, strict=True):
        for caches_ in (caches, row) if count else ():
            mx.eval(model(mx.array([prompt[:count]]), cache=caches_))
        mx.eval(model(mx.array([prompt[count:]]), cache=caches))
    width = max(lacking)
    batch = merge_caches(rows, [len(prompt) for prompt in prompts], width, width + 1)
    fed = [[0] * (width - len(prompt)) + prompt[-width:] for prompt in prompts]
    mx.eval(model(mx.array(fed), cache=batch))
    for index, caches in enumerate(alone):
        for cache, row_ in zip(caches, (to_single(layer, index) for layer in batch), strict=True):
            assert row_.offset == cache.offset
            assert all(
                same(got[..., : cache.offset, :], expected[..., : cache.offset, :])
                for got, expected in ((row_.keys, cache.keys), (row_.values, cache.values))
            )
    together = model(mx.array([[5]] * len(prompts)), cache=batch)
    for index, caches in enumerate(alone):
        assert same(together[index : index + 1], model(mx.array([[5]]), cache=caches))


@pytest.mark.parametrize("name", MODELS)
def test_every_known_model_may_be_batched(name: str) -> None:
    assert drain(proving(build(MODELS[name]))) is True


def test_model_with_differing_rows_is_not_batched() -> None:
    assert all(map(joinable, make_prompt_cache(build(REUSABLE[ALONE]))))
    assert drain(proving(build(REUSABLE[ALONE]))) is False


def test_unknown_cache_classes_are_not_batched() -> None:
    class Subclass(KVCache):  # type: ignore[misc]
        pass

    assert joinable(KVCache())
    assert not joinable(Subclass())
    assert not joinable(ChunkedKVCache(16))
    assert not joinable(RotatingKVCache(16, keep=4))


@pytest.mark.parametrize("fault", ["raises", "differs"])
def test_model_built_for_one_row_is_not_batched(fault: str) -> None:
    """The model either raises for several rows, or computes the first row for all of them."""

    class OneRow:
        """A model with code that takes the first row for all."""

        def __init__(self, model: Any) -> None:
            self._model = model
            self.layers = model.layers

        def __call__(self, tokens: mx.array, cache: Any) -> mx.array:
            if tokens.shape[0] > 1 and fault == "raises":
                raise ValueError("one row only")
            logits: mx.array = self._model(tokens, cache=cache)
            return mx.broadcast_to(logits[:1], logits.shape)

    model: Callable[..., Any] = OneRow(build(REUSABLE["llama with grouped queries"]))
    assert drain(proving(model)) is False


class Rounding:
    """A model on a device that rounds differently for several rows, by a share of the range of its logits."""

    def __init__(self, model: Any, share: float) -> None:
        self._model = model
        self._share = share
        self.layers = model.layers

    def __call__(self, tokens: mx.array, cache: Any) -> mx.array:
        logits: mx.array = self._model(tokens, cache=cache)
        if tokens.shape[0] == 1:
            return logits
        noise = mx.sin(1e4 * logits)
        return logits + self._share * (mx.max(logits) - mx.min(logits)) * noise


def test_rounding_differences_do_not_prevent_batching() -> None:
    """GPUs round so: there, equal rows of a batch differ from a single row by as much."""
    assert drain(proving(Rounding(build(REUSABLE["llama with grouped queries"]), 0.01))) is True


def test_large_differences_prevent_batching() -> None:
    assert drain(proving(Rounding(build(REUSABLE["llama with grouped queries"]), 0.2))) is False


def test_visible_padding_prevents_batching() -> None:
    """A model that does not mask the padding before a row is refused, even on a device that rounds."""

    class Padded(Rounding):
        def __call__(self, tokens: mx.array, cache: Any) -> mx.array:
            for layer in cache:
                if hasattr(layer, "left_padding"):
                    layer.left_padding = mx.zeros_like(layer.left_padding)
            return super().__call__(tokens, cache)

    assert drain(proving(Padded(build(REUSABLE["llama with grouped queries"]), 0.01))) is False
