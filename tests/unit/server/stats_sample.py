"""Made-up statistics of a busy hour: three models, four namespaces, one death of the engine, a silent stretch."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from daemon.server.stats import BOUNDS, Histogram
from mlx_sidecar import (
    HistorySample,
    KeptPrefix,
    LatencyHistogram,
    LatencyStats,
    MemoryStats,
    MissCounts,
    NamespaceStats,
    Stats,
)
from mlx_sidecar._decode import decode
from tests.unit.cli.cli_fakes import GIB, INFO, MIB, MODEL_STATS, STATS

_RNG = random.Random(2026)
_SILENT = range(140, 190)
_DIED = 260


def _histogram(median: float, spread: float, count: int) -> LatencyHistogram:
    histogram = Histogram()
    for _ in range(count):
        histogram.add(min(_RNG.lognormvariate(math.log(median), spread), BOUNDS[-1]))
    return decode(LatencyHistogram, histogram.message())


def _history() -> tuple[HistorySample, ...]:
    samples = []
    counters = dict.fromkeys(
        (
            "lookups",
            "hits",
            "tokens_looked_up",
            "tokens_reused",
            "prompt_tokens",
            "generated_tokens",
            "disk_tokens_reused",
        ),
        0,
    )
    for step in range(360):
        if step == _DIED:
            counters = dict.fromkeys(counters, 0)
        if step not in _SILENT:
            prompts = _RNG.randrange(4)
            warm = 0 if step in range(_DIED, _DIED + 8) else min(0.93, step / 120)
            tokens = prompts * _RNG.randrange(800, 3000)
            reused = int(tokens * warm * _RNG.uniform(0.8, 1))
            counters["lookups"] += prompts
            counters["hits"] += round(prompts * warm)
            counters["tokens_looked_up"] += tokens
            counters["tokens_reused"] += reused
            counters["disk_tokens_reused"] += reused // 5
            counters["prompt_tokens"] += tokens - reused
            counters["generated_tokens"] += int(400 + 250 * math.sin(step / 25) + _RNG.randrange(150))
        samples.append(
            HistorySample(
                age=10.0 * (360 - step),
                **counters,
                in_flight=_RNG.randrange(5),
                weights_bytes=15 * GIB,
                trie_bytes=step * 10 * MIB,
                live_kv_bytes=700 * MIB,
            )
        )
    return tuple(samples)


SAMPLE: Stats = replace(
    STATS,
    models=(
        replace(
            MODEL_STATS,
            info=replace(INFO, model="mlx-community/Qwen3-8B-4bit", size_bytes=int(4.6 * GIB)),
            names=("mlx-community/Qwen3-8B-4bit",),
            in_use=2,
            use_count=1204,
            idle=0.0,
        ),
        replace(
            MODEL_STATS,
            info=replace(INFO, model="mlx-community/gpt-oss-20b-MXFP4-Q4", size_bytes=int(11.2 * GIB)),
            names=("mlx-community/gpt-oss-20b-MXFP4-Q4", "/Users/ada/models/gpt-oss"),
            pinned=True,
            use_count=87,
        ),
        replace(MODEL_STATS, info=replace(INFO, model="<script>alert(1)</script>", size_bytes=600 * MIB), use_count=3),
    ),
    model_cache=replace(
        STATS.model_cache, cached_models=3, total_memory_bytes=int(16.4 * GIB), total_hits=1294, total_misses=3
    ),
    prefix_cache=replace(
        STATS.prefix_cache,
        bytes=int(2.9 * GIB),
        blocks=41_210,
        tokens_looked_up=1_204_332,
        tokens_reused=1_049_104,
        namespaces=(
            NamespaceStats("5fe1c0a97be1d2aa", "mlx-community/Qwen3-8B-4bit", "", False, 28_800, 12, 903, 811_104),
            NamespaceStats("5fe1c0a97be1d2ab", "mlx-community/Qwen3-8B-4bit", "", True, 7_400, 3, 120, 97_000),
            NamespaceStats(
                "91aa7780fe2210cd",
                "mlx-community/gpt-oss-20b-MXFP4-Q4",
                "/Users/ada/lora",
                False,
                5_000,
                1,
                41,
                141_000,
            ),
            NamespaceStats("00ff00ff00ff00ff", "<script>alert(1)</script>", "", False, 10, 1, 0, 0),
        ),
        total_namespaces=6,
        kept=(KeptPrefix("5fe1c0a97be1d2aa", 3_200, 120 * MIB, 2_400.0),),
        misses=MissCounts(never_seen=40, diverged=12, evicted=3),
        total_kept=2,
        kept_bytes=200 * MIB,
        disk_bytes=3 * GIB,
        disk_blocks=20_400,
        disk_budget_bytes=8 * GIB,
        disk_hits=31,
        disk_tokens_reused=210_400,
        disk_written_bytes=4 * GIB,
    ),
    engine=replace(STATS.engine, restarts=1, queued=1, prefilling=1, decoding=3, generated_tokens=182_401),
    memory=MemoryStats(
        active_bytes=int(20.1 * GIB),
        cache_bytes=GIB,
        peak_bytes=22 * GIB,
        weights_bytes=int(16.4 * GIB),
        trie_bytes=int(2.9 * GIB),
        live_kv_bytes=int(0.8 * GIB),
        headroom_bytes=int(7.9 * GIB),
        limit_bytes=28 * GIB,
    ),
    latency=LatencyStats(
        queue=_histogram(0.004, 0.8, 1200),
        load=_histogram(4.0, 0.5, 7),
        prefill=_histogram(0.12, 1.1, 1200),
        first_token=_histogram(0.18, 1.0, 1200),
        per_token=_histogram(0.019, 0.2, 1190),
        total=_histogram(3.1, 0.9, 1200),
    ),
    history=_history(),
)
"""Names of models try to break the page on purpose."""
