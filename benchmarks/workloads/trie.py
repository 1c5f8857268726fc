"""Workload "trie": the prefix index with up to a million blocks, and KV copies against a plain copy."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median

import mlx.core as mx

from benchmarks.bench import Bench, Figures
from benchmarks.blocks import Index
from benchmarks.figures import OURS, Metric, Result, Row
from benchmarks.floor import Floor, timed
from benchmarks.machine import resident_bytes
from benchmarks.words import prompt
from daemon.kv.evictor import PrefixLimits
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.mlx.adapters import kv_cache
from daemon.kv.mlx.request_kv import RequestKV
from daemon.kv.mlx.self_test import probe
from daemon.kv.prefix_cache import PrefixCache
from daemon.kv.spec import Resume

LOOKUP, INSERT, EVICT = Metric("lookup", "ms"), Metric("insert", "ms"), Metric("evict as much", "ms")
MEMORY, COLLECT = Metric("memory of a block", "bytes"), Metric("full garbage collection", "ms")
STORE, RESTORE, COPY = Metric("store", "ms"), Metric("restore", "ms"), "plain copy"
RECYCLED_BYTES = 1 << 30
"""Limit of MLX's pool of freed buffers, as in the engine. The default on Linux is 32 MB."""

CONVERSATION_TOKENS = 8192
"""Length of the prompts that fill the index; pairs of them share the first half."""


def trie(bench: Bench) -> Result:
    """Measure index and copies. The targets are 20 ms a lookup, 400 bytes a block, and 1.5 times the plain copy."""
    result = Result("The prefix cache alone")
    sizes = bench.size((10_000, 100_000, 1_000_000), (2_000,))
    tokens = bench.size(131_072, 1024)
    for blocks in sizes:
        result.rows += _index(blocks, tokens, min(bench.rounds, 3))
    case = result.rows[-1].case
    for metric, bound in ((LOOKUP, 20), (MEMORY, 400)):
        row = result.find(case, metric, OURS)
        result.aim(f"{case}: {metric.name}, {metric.unit}", row.values if row else (), bound)
    floor = Floor(bench.model("small"))
    for length in bench.size((2048, 8192), (64,)):
        case = f"{length} tokens of KV"
        with _recycling():
            result.rows += bench.take_turns(case, _copies(floor, length))
        result.aim(f"{case}: restore / copy", result.ratios(case, RESTORE, OURS, COPY), 1.5)
    return result


@contextmanager
def _recycling() -> Iterator[None]:
    """
    Make both sides write to recycled buffers.

    On Linux a fresh page costs more than the copy of its bytes, and malloc alone decides which side gets fresh pages.
    """
    limit = mx.set_cache_limit(RECYCLED_BYTES)
    try:
        yield
    finally:
        mx.set_cache_limit(limit)
        mx.clear_cache()


def _index(blocks: int, tokens: int, rounds: int) -> list[Row]:
    """Fill an index, then measure lookup, insertion and eviction of prompts of `tokens` tokens."""
    rng = random.Random(blocks)
    index = Index(blocks + tokens // BLOCK_TOKENS)
    gc.collect()
    before = resident_bytes([os.getpid()])
    _fill(index, blocks, rng)
    per_block = (resident_bytes([os.getpid()]) - before) / index.blocks
    figures: dict[Metric, list[float]] = {LOOKUP: [], INSERT: [], EVICT: [], COLLECT: []}
    for _ in range(rounds):
        ids = [*_tokens(rng, tokens), 0]
        figures[INSERT].append(timed(partial(index.insert, ids)))
        figures[LOOKUP].append(timed(partial(index.lookup, ids)))
        figures[EVICT].append(timed(partial(index.evict, tokens)))
    figures[COLLECT].append(timed(gc.collect))
    case = f"{tokens // 1024} k tokens, {blocks:,} blocks"
    rows = [Row(case, metric, OURS, tuple(values)) for metric, values in figures.items()]
    return [*rows, Row(case, MEMORY, OURS, (per_block,))]


def _fill(index: Index, blocks: int, rng: random.Random) -> None:
    """Store prompts in pairs that share their first half."""
    half = CONVERSATION_TOKENS // 2
    while index.blocks < blocks:
        shared = _tokens(rng, half)
        for _ in range(2):
            index.insert(shared + _tokens(rng, half))


def _tokens(rng: random.Random, count: int) -> list[int]:
    return rng.choices(range(150_000), k=count)


def _copies(floor: Floor, tokens: int) -> dict[str, Callable[[str], Figures]]:
    """Return two sides: store and restore of a prompt's KV as in the engine, and a plain copy of as many arrays."""
    layout = probe(floor.model)
    caches = floor.prefilled(prompt("copies", tokens))
    live = RequestKV(layout, caches, tokens)
    plain = [array[..., :tokens, :] + 0 for cache in caches for array in (cache.keys, cache.values)]
    mx.eval(plain)
    ids = [*range(tokens), 0]

    def ours(seed: str) -> Figures:
        cache = PrefixCache(PrefixLimits(tokens, 10**12), copy=kv_cache.copied)
        store = timed(lambda: cache.store("n", ids[:tokens], layout.parts, live, resume=Resume.YES))
        with cache.lookup("n", ids, layout.parts) as lease:
            runs = cache.runs(lease, layout.parts)
            restore = timed(lambda: layout.restored_cache(floor.model, runs, None, tokens, tokens))
        return {STORE: store, RESTORE: restore}

    def copy(seed: str) -> Figures:
        once = timed(lambda: mx.eval([mx.concatenate([*mx.split(array, 2, axis=2)], axis=2) for array in plain]))
        return {STORE: once, RESTORE: once}

    return {OURS: partial(_usual, ours), COPY: partial(_usual, copy)}


def _usual(turn: Callable[[str], Figures], seed: str) -> Figures:
    """Return the medians of nine runs of a turn. The first runs use fresh pages, which dominate a copy."""
    figures = [turn(seed) for _ in range(9)]
    return {metric: median(each[metric] for each in figures) for metric in figures[0]}
