"""What requests keep in memory is what they are billed: no view keeps a larger array alive, no row that left stays."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ArraysCache

from daemon.engine.memory.memory_budget import kv_need
from daemon.engine.scheduling.policy import MIN_IDLE_CHUNK
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.mlx import checkpoints, peak
from daemon.kv.mlx.adapters.cache_list import leaves
from daemon.kv.mlx.self_test import probe
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import TINY, write_random
from tests.unit.engine.harness import Harness
from tests.unit.kv.tiny_models import RECURRENT, build

SLACK = 16 << 10
"""
Bytes that a buffer may have behind its array.

`mx.contiguous` leaves them rather than copying, and MLX takes a buffer that is free and up to two pages larger.
"""

LENGTH, LAYERS = 500, 4


def active() -> int:
    """Return the bytes in use, once what is in flight is computed."""
    gc.collect()
    mx.synchronize()
    return int(mx.get_active_memory())


@pytest.mark.parametrize("name", [name for name in RECURRENT if name.startswith(("mamba", "recurrent_gemma"))])
def test_state_keeps_no_chunk_in_memory(name: str) -> None:
    """mlx-lm 0.32 keeps the last inputs of a convolution as a view of the whole chunk's."""
    model = build(RECURRENT[name])
    layout = probe(model)
    before = active()
    caches = layout.new_cache(model, 1024)
    model(mx.array([[index % 7 for index in range(1024)]]), cache=caches)
    layout.compact(caches)
    mx.eval([cache.state for cache in caches])
    flat = list(leaves(caches))
    arrays = sum(len(cache.cache) if type(cache) is ArraysCache else 0 for cache in flat)
    assert active() - before <= sum(cache.nbytes for cache in flat) + arrays * SLACK


def test_boundary_of_a_row_keeps_no_other_rows() -> None:
    """A row's state at the end of a block is a copy: a view would keep the states of all rows in memory."""
    batch = ArraysCache(1)
    batch.cache = [mx.random.normal((8, 1 << 16))]
    mx.eval(batch.cache)
    before = active()
    boundary = checkpoints.states([batch], row=3)
    expected = batch.cache[0][3:4].tolist()
    batch.cache = [None]
    assert active() - before <= -7 * (4 << 16) + SLACK
    assert boundary[0][0].tolist() == expected


def rows_of(harness: Harness, path: str, answers: list[int], lengths: Sequence[int] = ()) -> list[int]:
    """Begin a request for each answer of so many tokens, and return the calls once all of them decode."""
    calls = []
    for number, (answer, length) in enumerate(zip_longest(answers, lengths, fillvalue=LENGTH)):
        ids = [5 + (7 * index + 31 * number) % 700 for index in range(length)]
        request = pb.GenerateRequest(model=path, tokens=pb.TokenIds(ids=ids), max_tokens=answer)
        request.stop.ignore_eos = True
        calls.append(harness.begin(request))
    harness.until(lambda: (harness.flush(), all(map(harness.decoding, calls)))[1])  # type: ignore[func-returns-value]
    return calls


@pytest.fixture
def wide(engine: Callable[..., Harness], tmp_path: Path) -> tuple[Harness, str, Any]:
    """Return an engine without a prefix cache, a model with wide KV, and the model as it is loaded."""
    path = str(write_random(tmp_path / "m", {**TINY["llama"], "head_dim": 64, "num_hidden_layers": LAYERS}, 7))
    harness = engine(kv_cache_mb=0)
    harness.run(pb.GetOrLoadRequest(model=path))
    harness.settle()
    return harness, path, harness.engine._models.entries()[0].model


def test_last_row_of_a_batch_holds_its_own_kv_alone(wide: tuple[Harness, str, Any]) -> None:
    harness, path, model = wide
    before = active()
    calls = rows_of(harness, path, [40, 40, 40, 240])
    for call in calls[:3]:
        harness.finish(call)
    assert harness.engine._runner.decoding == 1
    one = kv_need(model.layout, LENGTH, 240, MIN_IDLE_CHUNK)
    assert active() - before <= 1.1 * one
    harness.cancel(calls[3])
    harness.settle()


@pytest.mark.parametrize("rest", [1, 2])
def test_rows_give_room_of_a_longer_one_back(wide: tuple[Harness, str, Any], rest: int) -> None:
    """Its row padded them. What remains ends at a whole step again, or it would grow from between two steps."""
    harness, path, model = wide
    before = active()
    calls = rows_of(harness, path, [60, *[100] * rest], [1000, *[650] * rest])
    assert len(harness.engine._runner._decoders[model.source.key].groups) == 1
    harness.finish(calls[0])
    for _ in range(20):
        assert active() - before <= 1.1 * rest * kv_need(model.layout, 650, 100, MIN_IDLE_CHUNK)
        harness.step()
    for call in calls[1:]:
        harness.cancel(call)
    harness.settle()


def test_held_row_does_not_keep_its_batch(wide: tuple[Harness, str, Any]) -> None:
    """A reader that lags pauses its row; the KV of the others is in memory once, and a layer of all twice meanwhile."""
    harness, path, model = wide
    before = active()
    calls = rows_of(harness, path, [200, 200, 200, 200])
    with peak.measuring() as taken:
        harness.engine._runner.hold(calls[0], held=True)
    assert taken.bytes <= 4.2 * kv_need(model.layout, LENGTH, 200, MIN_IDLE_CHUNK) / LAYERS
    harness.step()
    assert active() - before <= 4.2 * kv_need(model.layout, LENGTH, 200, MIN_IDLE_CHUNK)
    for call in calls:
        harness.cancel(call)
    harness.settle()


def test_held_samples_are_copied_layer_by_layer(wide: tuple[Harness, str, Any]) -> None:
    """All rows of a batch pause at once; each has arrays of its own then."""
    harness, path, model = wide
    request = pb.GenerateRequest(model=path, tokens=pb.TokenIds(ids=range(5, 5 + LENGTH)), max_tokens=200, samples=4)
    request.sampling.temperature, request.stop.ignore_eos = 1.0, True
    call = harness.begin(request)
    harness.until(lambda: harness.engine._runner.decoding == 4)
    harness.step()
    with peak.measuring() as taken:
        harness.engine._runner.hold(call, held=True)
    assert taken.bytes <= 4.2 * kv_need(model.layout, LENGTH, 200, MIN_IDLE_CHUNK) / LAYERS
    harness.cancel(call)
    harness.settle()


def test_row_is_cut_for_readers_layer_by_layer(wide: tuple[Harness, str, Any]) -> None:
    """No layer but one of the row is in memory twice while it leaves its batch and its beginning becomes a prefix."""
    harness, path, model = wide
    before = active()
    calls = rows_of(harness, path, [200, 200])
    runner = harness.engine._runner
    (first, other) = runner.sequences()
    with peak.measuring() as taken:
        runner.readers._split(first, first.kv, LENGTH // BLOCK_TOKENS * BLOCK_TOKENS)
    one = kv_need(model.layout, LENGTH, 200, MIN_IDLE_CHUNK)
    assert taken.bytes <= 3 * one / LAYERS
    assert (first.kv.common is not None, other.kv.common) == (True, None)
    assert runner.readers.copied == LENGTH // BLOCK_TOKENS * BLOCK_TOKENS
    harness.step()
    assert active() - before <= 2.5 * one
    for call in calls:
        harness.cancel(call)
    harness.settle()


def test_state_of_a_row_alone_is_no_copy(engine: Callable[..., Harness], tmp_path: Path) -> None:
    """At the end of a block it keeps the arrays that the pass wrote; only rows of a batch keep copies."""
    path = str(write_random(tmp_path / "m", TINY["mamba2"], 7))
    harness = engine()
    (call,) = rows_of(harness, path, [40], [50])
    (decoder,) = harness.engine._runner._decoders.values()
    (sequence,) = decoder
    harness.until(lambda: sequence.kv.held % BLOCK_TOKENS == 0)
    assert sequence.kv.boundary is not None
    assert sequence.kv.boundary.tokens == sequence.kv.held
    kept = [array for layer in sequence.kv.boundary.states for array in layer]
    own = [array for cache in leaves(decoder.caches_of(sequence)) for array in cache.cache]
    assert kept
    assert all(one is other for one, other in zip(kept, own, strict=True))
    harness.cancel(call)
    harness.settle()
