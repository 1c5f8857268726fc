"""Shared prefixes: attention to one copy of a prefix and to tails computes what attention to one array computes."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache, make_prompt_cache

from daemon.kv.extent_ledger import Run
from daemon.kv.mlx import shared_attention, sharing
from daemon.kv.mlx.adapters import BLOCK_ADAPTERS
from daemon.kv.mlx.adapters.cache_list import leaves
from daemon.kv.mlx.adapters.kv_cache import KVCacheAdapter
from daemon.kv.mlx.adapters.shared import SharedAdapter
from daemon.kv.mlx.batch_cache import merge_caches, to_batch, to_single
from daemon.kv.mlx.peak import measuring
from daemon.kv.mlx.self_test import probe
from daemon.kv.mlx.shared_kv import SharedBatchKV, SharedKV
from daemon.kv.mlx.shared_self_test import proving_shared
from daemon.kv.mlx.sharing import behind, prefix_of, share
from daemon.kv.spec import NotHeldError
from daemon.shared.slices import drain
from tests.unit.kv.tiny_models import RECURRENT, REUSABLE, WINDOWED, build, same_bits

HEADS, GROUPS, WIDTH = 4, 2, 8
PREFIX = 48


def arrays(tokens: int, rows: int = 1) -> tuple[mx.array, mx.array]:
    """Return random keys and values."""
    shape = (rows, GROUPS, tokens, WIDTH)
    return mx.random.normal(shape), mx.random.normal(shape)


def cache_of(tokens: int) -> KVCache:
    """Return a cache that holds random KV."""
    cache = KVCache()
    cache.update_and_fetch(*arrays(tokens))
    mx.eval(cache.state)
    return cache


def shared(cache: KVCache, tokens: int) -> SharedKV:
    """Return a cache of the same tokens of which the first are a shared prefix."""
    (made,), _ = share([cache], tokens, 16, copy=False)
    assert isinstance(made, SharedKV)
    return made


def attended(cache: Any, queries: mx.array, keys: mx.array, values: mx.array, sinks: mx.array | None) -> mx.array:
    """Feed tokens to a cache, and attend as a layer of a model does."""
    mask = cache.make_mask(queries.shape[2], return_array=False, window_size=None)
    keys, values = cache.update_and_fetch(keys, values)
    return shared_attention.attend(queries, keys, values, cache, WIDTH**-0.5, mask, sinks)


@pytest.mark.parametrize("tokens", [1, 3, shared_attention.FEW + 1])
@pytest.mark.parametrize("sinks", [None, mx.array([0.5, -1.0, 2.0, 0.0])], ids=["", "sinks"])
def test_attention_behind_a_shared_prefix_has_the_same_bits(tokens: int, sinks: mx.array | None) -> None:
    """Of a sequence alone: one token, a few, and more."""
    mx.random.seed(tokens)
    own = cache_of(PREFIX + 5)
    reader = shared(own, PREFIX)
    queries, new = mx.random.normal((1, HEADS, tokens, WIDTH)), arrays(tokens)
    assert same_bits(attended(reader, queries, *new, sinks), attended(own, queries, *new, sinks))
    assert reader.offset == own.offset


def test_caches_that_could_not_be_cut_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layer is cut already, and its own arrays are gone, when the second one fails."""
    caches = [cache_of(PREFIX + 5) for _ in range(2)]
    before = [tuple(mx.array(array[..., : PREFIX + 5, :]) for array in (one.keys, one.values)) for one in caches]
    mx.eval(before)
    tails: list[KVCache] = []

    def failing(cache: KVCache, tokens: int, room: int) -> KVCache:
        if tails:
            raise RuntimeError("no memory")
        tails.append(tail(cache, tokens, room))
        return tails[0]

    tail = sharing._tail
    monkeypatch.setattr(sharing, "_tail", failing)
    with pytest.raises(RuntimeError, match="no memory"):
        share(caches, PREFIX, 16, copy=True)
    assert caches[0].keys.shape[2] == PREFIX + 16
    for cache, (keys, values) in zip(caches, before, strict=True):
        assert same_bits(cache.keys_and_values()[0], keys)
        assert same_bits(cache.keys_and_values()[1], values)


@pytest.mark.parametrize("tokens", [1, 3, shared_attention.FEW + 1])
def test_rows_behind_prefixes_have_the_bits_of_one_array(tokens: int) -> None:
    """Tails differ in length, and one row reads a longer prefix than the others."""
    mx.random.seed(7)
    base = shared(cache_of(PREFIX + 2), PREFIX)
    readers = [base]
    for more in (1, 9, 17):
        reader = SharedKV(base.prefix, 0, KVCache())
        reader.update_and_fetch(*arrays(more))
        readers.append(reader)
    (readers[3],), longer = share([readers[3]], PREFIX + 16, 8, copy=False)
    assert longer.parent is base.prefix
    alone = [whole(reader) for reader in readers]
    batch = to_batch(readers[0])
    for reader in readers[1:]:
        batch.extend(to_batch(reader))
    assert batch.offset.tolist() == [cache.offset for cache in alone]
    queries, new = mx.random.normal((4, HEADS, tokens, WIDTH)), arrays(tokens, 4)
    got = attended(batch, queries, *new, None)
    for row, cache in enumerate(alone):
        part = slice(row, row + 1)
        assert same_bits(got[part], attended(cache, queries[part], new[0][part], new[1][part], None))


def test_attention_copies_nothing_of_a_prefix() -> None:
    """A decode step takes less memory than the keys of the prefix."""
    held, one = (1, GROUPS, 4096, 64), (1, GROUPS, 1, 64)
    cache = KVCache()
    cache.update_and_fetch(mx.random.normal(held), mx.random.normal(held))
    reader = shared(cache, 4000)
    batch = to_batch(reader)
    batch.extend(to_batch(shared_copy(reader)))
    queries, new = mx.random.normal((2, HEADS, 1, 64)), mx.broadcast_to(mx.random.normal(one), (2, *one[1:]))
    mx.eval(batch.state, queries, new)
    with measuring() as taken:
        mx.eval(attended(batch, queries, new, new, None))
    assert taken.bytes < reader.prefix.layers[0][0].nbytes / 2


def whole(reader: SharedKV) -> KVCache:
    """Return a plain cache of the tokens that a reader holds."""
    parts = [*(prefix.layers[0] for prefix in reader.prefix.path), reader.tail.keys_and_values()]
    cache = KVCache()
    cache.update_and_fetch(*(mx.concatenate(list(pieces), axis=2) for pieces in zip(*parts, strict=True)))
    return cache


def test_splitting_a_prefix_copies_nothing() -> None:
    """Its parts are views; the last of them keeps its readers."""
    reader = shared(cache_of(4096), 4080)
    expected = whole(reader)
    mx.eval(expected.state)
    mx.synchronize()
    before = mx.get_active_memory()
    front = reader.prefix.split(1024)
    assert mx.get_active_memory() - before < reader.prefix.nbytes / 8
    assert (front.start, front.stop, reader.prefix.start, reader.prefix.stop) == (0, 1024, 1024, 4080)
    middle = reader.prefix.split(2048)
    assert (middle.parent, middle.start, middle.stop, reader.prefix.start) == (front, 1024, 2048, 2048)
    assert reader.prefix.root is front
    assert [part.layers[0][0].shape[2] for part in reader.prefix.path] == [1024, 1024, 2032]
    pairs = zip(whole(reader).state[:2], expected.state[:2], strict=True)
    assert all(same_bits(one, other) for one, other in pairs)


def test_blocks_are_packed_across_prefix_and_tail() -> None:
    """What is stored of a reader is what is stored of a cache of its own."""
    own = cache_of(PREFIX + 40)
    reader = shared(own, PREFIX)
    for start, stop in ((0, 5), (2, 3), (3, 5), (0, 3)):
        packed, expected = SharedAdapter().pack([reader], start, stop), KVCacheAdapter().pack([own], start, stop)
        pairs = zip(packed.payload, expected.payload, strict=True)  # type: ignore[call-overload]
        assert all(same_bits(one, other) for one, other in pairs)
    with pytest.raises(NotHeldError):
        SharedAdapter().pack([reader], 0, 6)


def test_rows_of_readers_come_and_go() -> None:
    """A row is taken out of a batch as it was put in, and short ends are merged."""
    base = shared(cache_of(PREFIX + 3), PREFIX)
    other = SharedKV(base.prefix, 0, KVCache())
    batch = to_batch(base)
    batch.extend(to_batch(shared_copy(base)))
    batch.filter([1])
    assert (to_single(batch, 0).offset, batch.offset.tolist()) == (PREFIX + 3, [PREFIX + 3])
    (merged,) = merge_caches([[base], [other]], [PREFIX + 5, PREFIX + 4], 4, 8)
    assert isinstance(merged, SharedBatchKV)
    merged.update_and_fetch(*arrays(4, 2))
    assert merged.offset.tolist() == [PREFIX + 5, PREFIX + 4]
    assert prefix_of([KVCache()]) is None


def shared_copy(reader: SharedKV) -> SharedKV:
    """Return another reader with the same tail."""
    tail = KVCache()
    tail.update_and_fetch(*reader.tail.keys_and_values())
    return SharedKV(reader.prefix, 0, tail)


def test_runs_behind_a_prefix_are_what_is_left() -> None:
    """In tokens, across extents."""
    runs = [Run("a", 32, 96), Run("b", 0, 48)]
    assert behind(runs, 0) == runs
    assert behind(runs, 32) == [Run("a", 64, 96), Run("b", 0, 48)]
    assert behind(runs, 80) == [Run("b", 16, 48)]
    assert behind(runs, 112) == []


@pytest.mark.parametrize("name", [*REUSABLE, *WINDOWED, *RECURRENT])
def test_models_that_attend_elsewhere_share_nothing(name: str) -> None:
    """A layer that reads the KV of another attends without a cache, and pure recurrence has nothing to share."""
    model = build({**REUSABLE, **WINDOWED, **RECURRENT}[name])
    classes = {type(cache) for cache in leaves(make_prompt_cache(model))}
    shares = KVCache in classes and "afm7" not in name
    assert drain(proving_shared(model, probe(model))) == shares


def test_attention_that_ignores_the_prefix_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release of mlx-lm may attend in another way: the model gets no shared prefixes then."""
    model = build(REUSABLE["llama with grouped queries"])

    def own(queries: mx.array, keys: mx.array, values: mx.array, **rest: Any) -> mx.array:
        rest.pop("cache")
        return mx.fast.scaled_dot_product_attention(queries, keys, values, **rest)

    for module in {type(part).__module__ for part in model.modules()}:
        monkeypatch.setattr(f"{module}.scaled_dot_product_attention", own, raising=False)
    assert not drain(proving_shared(model, probe(model)))


def test_masks_that_add_and_windows_are_refused() -> None:
    """What they would do to the prefix is not known."""
    reader = shared(cache_of(PREFIX + 1), PREFIX)
    with pytest.raises(ValueError, match="window"):
        reader.make_mask(3, window_size=4)
    queries, (keys, values) = mx.random.normal((1, HEADS, 1, WIDTH)), arrays(2)
    with pytest.raises(TypeError):
        shared_attention.attend(queries, keys, values, reader, 1.0, mx.zeros((1, HEADS, 1, 2)))
    plain = BLOCK_ADAPTERS[SharedKV]
    with pytest.raises(ValueError, match="not empty"):
        plain.restore([reader], [], 0, 0)
