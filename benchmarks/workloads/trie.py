"""The prefix cache alone: its index up to a million blocks, and its copies against a plain copy of the same bytes."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Callable
from functools import partial
from statistics import median

import mlx.core as mx

from benchmarks.bench import Bench, Figures
from benchmarks.blocks import BLOCK_BYTES, fake_extents
from benchmarks.figures import OURS, Metric, Result, Row
from benchmarks.floor import Floor, timed
from benchmarks.machine import resident_bytes
from benchmarks.words import prompt
from daemon.kv.block import BLOCK_TOKENS
from daemon.kv.extents import EXTENT_BLOCKS, Extent, Run
from daemon.kv.layout import Layout, probe
from daemon.kv.prefix_cache import Limits, PrefixCache

LOOKUP, INSERT, EVICT = Metric("lookup", "ms"), Metric("insert", "ms"), Metric("evict as much", "ms")
MEMORY, COLLECT = Metric("memory of a block", "bytes"), Metric("full garbage collection", "ms")
STORE, RESTORE, COPY = Metric("store", "ms"), Metric("restore", "ms"), "plain copy"
CONVERSATION_BLOCKS = 512
"""Blocks of each prompt that fills the index; half of them are shared with the one before."""


def trie(bench: Bench) -> Result:
    """Beside the workloads: the targets are 20 ms, 400 bytes a block, and 1.5 times the plain copy."""
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
        result.rows += bench.take_turns(case, _copies(floor, length))
        result.aim(f"{case}: restore / copy", result.ratios(case, RESTORE, OURS, COPY), 1.5)
    return result


def _index(blocks: int, tokens: int, rounds: int) -> list[Row]:
    """Fill an index, then look up, insert and evict prompts of so many tokens."""
    rng = random.Random(blocks)
    longest = tokens // BLOCK_TOKENS
    cache = PrefixCache(Limits(blocks + longest, 10**15))
    gc.collect()
    before = resident_bytes([os.getpid()])
    _fill(cache, blocks, rng)
    per_block = (resident_bytes([os.getpid()]) - before) / cache.trie.blocks
    figures: dict[Metric, list[float]] = {LOOKUP: [], INSERT: [], EVICT: [], COLLECT: []}
    for _ in range(rounds):
        ids = [*_tokens(rng, longest), 0]
        figures[INSERT].append(timed(partial(cache.store, "n", ids, BLOCK_BYTES, fake_extents)))
        figures[LOOKUP].append(timed(lambda ids=ids: cache.lookup("n", ids).release()))  # type: ignore[misc]
        figures[EVICT].append(timed(lambda: cache.shed(longest * BLOCK_BYTES)))
    figures[COLLECT].append(timed(gc.collect))
    case = f"{tokens // 1024} k tokens, {blocks:,} blocks"
    rows = [Row(case, metric, OURS, tuple(values)) for metric, values in figures.items()]
    return [*rows, Row(case, MEMORY, OURS, (per_block,))]


def _fill(cache: PrefixCache, blocks: int, rng: random.Random) -> None:
    shared: list[int] = []
    while cache.trie.blocks < blocks:
        ids = shared + _tokens(rng, CONVERSATION_BLOCKS - len(shared) // BLOCK_TOKENS)
        cache.store("n", ids, BLOCK_BYTES, fake_extents)
        shared = [] if shared else ids[: len(ids) // 2]


def _tokens(rng: random.Random, blocks: int) -> list[int]:
    return rng.choices(range(150_000), k=blocks * BLOCK_TOKENS)


def _copies(floor: Floor, tokens: int) -> dict[str, Callable[[str], Figures]]:
    layout = probe(floor.model)
    live = floor.prefilled(prompt("copies", tokens))
    blocks = tokens // BLOCK_TOKENS
    plain = mx.zeros(layout.bytes_per_token * tokens // 4, mx.float32)
    mx.eval(plain)
    stored = zip(*_stored(layout, live, blocks), strict=True)
    groups = [[Run(extent.payload, 0, extent.blocks) for extent in group] for group in stored]

    def ours(seed: str) -> Figures:
        restore = _usual(lambda: layout.restored_cache(floor.model, groups, tokens))
        return {STORE: _usual(lambda: _stored(layout, live, blocks)), RESTORE: restore}

    def copy(seed: str) -> Figures:
        once = _usual(lambda: mx.eval(mx.concatenate([*mx.split(plain, 2)])))
        return {STORE: once, RESTORE: once}

    return {OURS: ours, COPY: copy}


def _usual(work: Callable[[], object]) -> float:
    """Return the milliseconds that something usually takes: one fresh allocation more or less decides a single copy."""
    return median(timed(work) for _ in range(5))


def _stored(layout: Layout, live: list[object], blocks: int) -> list[list[Extent]]:
    """Store a live cache's blocks as the prefix cache does: an extent for up to 64 of them."""
    starts = range(0, blocks, EXTENT_BLOCKS)
    return [layout.pack(live, start, min(start + EXTENT_BLOCKS, blocks)) for start in starts]
