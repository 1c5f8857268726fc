"""Workload "index": lookup and insert of the prefix index without KV, against the index of mlx-lm's server."""

from __future__ import annotations

import random
from functools import partial

from mlx_lm.models.cache import LRUPromptCache

from benchmarks.bench import Bench, Figures
from benchmarks.blocks import Index
from benchmarks.figures import OURS, Metric, Result
from benchmarks.floor import timed

LOOKUP, INSERT = Metric("lookup", "ms"), Metric("insert", "ms")
PEER = "mlx-lm's LRUPromptCache"


class _NoKV:
    """A KV cache without content, which a lookup copies in no time."""

    nbytes = 1

    def is_trimmable(self) -> bool:
        return True

    def trim(self, count: int) -> int:
        return count


def index(bench: Bench) -> Result:
    """W10: prompts that share their first half with a stored prompt, in this process, without KV."""
    result = Result("The index alone: lookup and insert of long prompts")
    for thousands in bench.size((1, 8, 32, 128), (1,)):
        sides = {OURS: partial(_ours, 1024 * thousands), PEER: partial(_theirs, 1024 * thousands)}
        result.rows += bench.take_turns(f"{thousands} k tokens", sides, min(bench.rounds, 3))
    longest = result.rows[-1].case
    found = result.find(longest, LOOKUP, OURS)
    result.aim(f"{longest}: lookup, ms", found.values if found else (), 20)
    return result


def _prompts(tokens: int, seed: str) -> tuple[list[int], list[int]]:
    rng = random.Random(seed)
    shared, one, other = (rng.choices(range(100_000), k=tokens // 2) for _ in range(3))
    return shared + one, shared + other


def _ours(tokens: int, seed: str) -> Figures:
    first, second = _prompts(tokens, seed)
    cache = Index(tokens)
    cache.insert(first)
    return {LOOKUP: timed(lambda: cache.lookup(second)), INSERT: timed(lambda: cache.insert(second))}


def _theirs(tokens: int, seed: str) -> Figures:
    first, second = _prompts(tokens, seed)
    cache = LRUPromptCache()

    def insert(ids: list[int]) -> None:
        cache.insert_cache("m", ids, [_NoKV()])

    insert(first)
    lookup = timed(lambda: cache.fetch_nearest_cache("m", second))
    return {LOOKUP: lookup, INSERT: timed(lambda: insert(second))}
