"""Recurrent layers go on from checkpoints: exactly the state after the prefix, and never that of another position."""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ArraysCache

from daemon.kv.mlx import checkpoints
from daemon.kv.mlx.adapters import arrays
from daemon.kv.mlx.adapters.cache_list import leaves
from daemon.kv.mlx.request_kv import Boundary, RequestKV
from daemon.kv.spec import Resume
from tests.unit.kv.tiny_models import RECURRENT, TinyEngine, build, raw, same_bits, tokens

LENGTHS = [16, 17, 31, 32, 47, 64, 256, 271]


@pytest.fixture(name="models", scope="module")
def _models() -> dict[str, Any]:
    return {name: build(make) for name, make in RECURRENT.items()}


@pytest.fixture(name="engine", params=list(RECURRENT))
def _engine(request: pytest.FixtureRequest, models: dict[str, Any]) -> TinyEngine:
    return TinyEngine(models[request.param])


def state_of(caches: list[Any]) -> list[bytes]:
    """Return the bytes of all recurrent state."""
    found = [cache for cache in leaves(caches) if type(cache) is ArraysCache]
    return [raw(mx.contiguous(array)) for cache in found for array in cache.cache]


@pytest.mark.parametrize("length", LENGTHS)
def test_warm_state_answer_equals_the_cold_one(engine: TinyEngine, length: int) -> None:
    prompt = tokens(length + 9)
    cold_cache, _ = engine.cold(prompt[:length])
    engine.store(prompt[:length], cold_cache)
    cold = engine.compute(cold_cache, prompt[length:])

    warm_cache, reused = engine.restored(prompt)
    assert reused == length
    assert same_bits(engine.compute(warm_cache, prompt[length:]), cold)
    for token in tokens(40):
        assert same_bits(engine.compute(warm_cache, [token]), engine.compute(cold_cache, [token]))


def test_recurrent_state_is_found_only_at_its_position(engine: TinyEngine) -> None:
    prompt = tokens(100)
    caches, _ = engine.cold(prompt[:64])
    engine.store(prompt[:64], caches)

    for other, reused, branch in ((prompt[:80], 64, 64), ([*prompt[:50], *tokens(20)], 0, 48), (prompt[:64], 0, 48)):
        with engine.lookup(other) as lease:
            assert (lease.tokens, lease.branch) == (reused, branch)


def test_state_off_a_block_end_is_that_of_its_tail(engine: TinyEngine) -> None:
    """A state sums up all tokens so far, and no token can be removed from it."""
    caches, _ = engine.cold(tokens(70))
    engine.store(tokens(70), caches)

    assert engine.prefixes.trie.ledger.checkpoints == 1
    for other, reused in ((tokens(80), 70), ([*tokens(70), 5], 70), ([*tokens(69), 5], 0), (tokens(70), 0)):
        with engine.lookup(other) as lease:
            assert (lease.tokens, lease.branch) == (reused, 64)


def test_kept_state_at_the_last_block_end_is_stored(engine: TinyEngine) -> None:
    prompt = tokens(75)
    caches, _ = engine.cold(prompt[:64])
    boundary = Boundary(64, engine.layout.state(caches))
    expected = state_of(caches)
    engine.compute(caches, prompt[64:])
    live = RequestKV(engine.layout, caches, 75, boundary)
    engine.prefixes.store("n", prompt[:64], engine.layout.parts, live, resume=Resume.YES)

    warm_cache, reused = engine.restored(prompt)

    assert reused == 64
    assert state_of(warm_cache) == expected


def test_checkpoint_is_unchanged_by_later_decoding(engine: TinyEngine) -> None:
    prompt = tokens(48)
    live, _ = engine.cold(prompt)
    engine.store(prompt, live)
    (node,) = engine.prefixes.trie.tops(lambda _: True)
    while node.checkpoint is None:
        (node,) = node.children()
    stacks, _ = cast("tuple[tuple[mx.array, ...], Any]", node.checkpoint.payload)
    before = [raw(stack) for stack in stacks]

    engine.compute(live, tokens(30))
    restored, _ = engine.restored([*prompt, 1])
    engine.compute(restored, tokens(30))

    assert [raw(stack) for stack in stacks] == before


def test_checkpoint_takes_its_bytes_in_few_buffers(engine: TinyEngine) -> None:
    engine.store(tokens(32), engine.cold(tokens(32))[0])
    engine.store(tokens(64), engine.cold(tokens(64))[0])
    ledger, parts = engine.prefixes.trie.ledger, engine.layout.parts

    assert ledger.checkpoints == 2
    assert ledger.nbytes == 2 * parts.state_bytes + 4 * parts.block_bytes
    assert ledger.buffers <= 2 * (2 + len(parts.groups)) + 2


def test_checkpoint_of_other_layers_is_refused() -> None:
    checkpoint = checkpoints.pack([[mx.zeros((1, 2))], [mx.zeros((1, 3))]])

    for caches in ([ArraysCache(1)], [ArraysCache(2), ArraysCache(1)]):
        with pytest.raises(ValueError, match="other layers"):
            checkpoints.restore(caches, checkpoint)
    full = [ArraysCache(1), ArraysCache(1)]
    full[0][0] = mx.zeros((1, 2))
    with pytest.raises(ValueError, match="empty caches"):
        checkpoints.restore(full, checkpoint)


def test_padded_or_unfinished_state_is_refused() -> None:
    whole, padded, unfinished = ArraysCache(1), ArraysCache(1, left_padding=[1]), ArraysCache(2)
    for cache in (whole, padded, unfinished):
        cache[0] = mx.zeros((1, 2))

    assert arrays.understood(whole)
    assert not arrays.understood(padded)
    assert not arrays.understood(unfinished)


@pytest.mark.parametrize("slots", [1, 2, 3, 4])
def test_state_of_any_arrays_round_trips(slots: int) -> None:
    live = [ArraysCache(slots) for _ in range(3)]
    for layer, cache in enumerate(live):
        for slot in range(slots):
            dtype = mx.int64 if slot == 3 else mx.float32
            cache[slot] = mx.random.normal((1, 2 + slot, layer + 1)).astype(dtype)

    fresh = [ArraysCache(slots) for _ in live]
    checkpoints.restore(fresh, checkpoints.pack(checkpoints.states(live)))

    assert state_of(fresh) == state_of(live)
    assert [array.dtype for cache in fresh for array in cache.cache] == [a.dtype for cache in live for a in cache.cache]


def test_batch_row_has_its_own_state() -> None:
    batch = ArraysCache(2)
    batch[0], batch[1] = mx.arange(6).reshape(3, 2), mx.arange(12).reshape(3, 4)
    fresh = [ArraysCache(2)]

    checkpoints.restore(fresh, checkpoints.pack(checkpoints.states([batch], row=1)))

    assert fresh[0][0].tolist() == [[2, 3]]
    assert fresh[0][1].tolist() == [[4, 5, 6, 7]]
