"""Collects the engine's part of the Stats answer; the parent adds the figures of requests and of the process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import nsmallest
from typing import Any

import mlx.core as mx

from daemon.cache.entry import Entry
from daemon.cache.identity import ModelSource
from daemon.cache.mlx.loader import LoadedModel
from daemon.cache.model_cache import ModelCache
from daemon.engine.background.lanes import Job
from daemon.engine.execution.runner import Runner
from daemon.engine.memory.engine_memory import EngineMemory
from daemon.engine.reporting import model_info
from daemon.engine.reporting.model_registry import NamespaceRegistry, shown
from daemon.engine.reporting.timings import EngineTimings
from daemon.kv.disk.tier import DiskTier
from daemon.kv.keeps import Keep, Keeps
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.mlx.peak import process_peak
from daemon.kv.prefix_cache import PrefixCache
from daemon.shared.durations import duration
from mlx_sidecar.v1 import sidecar_pb2 as pb

MOST_KEPT = 64
"""Kept prefixes that a snapshot lists."""

MOST_MODELS = 512
MOST_LOADS = 64
"""
Models in memory (the latest) and loads (the next) that a snapshot describes; `cached_models` counts all. With names of
the greatest length, so many fit into one frame and one gRPC message several times over.
"""


class StatsCollector:
    """
    Reads the state of the engine. Runs on the MLX thread.

    Args:
        models: The model cache.
        prefixes: The prefix cache.
        namespaces: The model of each namespace of the prefix cache.
        runner: The running requests.
        memory: The bytes in use, and their limit.
        clock: Seconds that never go back; the clock of the model cache.
        disk: The tier below the prefix cache.
        stuck: Returns the jobs that hang.
        context_length: Returns the context length that was chosen for a model and an adapter; None if none was.
    """

    def __init__(
        self,
        models: ModelCache[ModelSource, LoadedModel],
        prefixes: PrefixCache,
        namespaces: NamespaceRegistry,
        runner: Runner,
        memory: EngineMemory,
        clock: Callable[[], float],
        *,
        disk: DiskTier | None = None,
        stuck: Callable[[], Sequence[Job]] = tuple,
        context_length: Callable[[str, str], int | None] = lambda model, adapter: None,
    ) -> None:
        self._models = models
        self._prefixes = prefixes
        self._namespaces = namespaces
        self._runner = runner
        self._memory = memory
        self._clock = clock
        self._disk = disk
        self._stuck = stuck
        self._context_length = context_length

    def snapshot(self) -> pb.StatsResponse:
        """Return the figures of now."""
        return pb.StatsResponse(
            model_cache=self._model_cache(),
            models=[
                *map(self._model, self._models.entries()[:MOST_MODELS]),
                *map(_loading, self._models.loading()[:MOST_LOADS]),
            ],
            prefix_cache=self._prefix_cache(),
            engine=pb.EngineStats(
                prefilling=self._runner.prefilling,
                decoding=self._runner.decoding,
                prompt_tokens=self._runner.prompt_tokens,
                generated_tokens=self._runner.generated_tokens,
                stuck=map(_stuck, self._stuck()),
                guesses=self._guesses(),
                **_spread(self._runner.timings),
            ),
            memory=self._memory_stats(),
        )

    def _guesses(self) -> list[pb.GuessStats]:
        """Return what guessing ahead brought for models in memory; guesses of one kind count together."""
        names = {entry.model.source.key: entry.name for entry in self._models.entries()}
        return [
            pb.GuessStats(
                model=names[key],
                source=pb.Speculation.Name(kind),
                guessed=sum(governor.records[source].guessed for source in sources),
                accepted=sum(governor.records[source].accepted for source in sources),
                gain=governor.gain(*sources),
                parked=all(map(governor.parked, sources)),
            )
            for key, governor in self._runner.governors
            if key in names
            for kind, sources in governor.kinds().items()
        ]

    def _model_cache(self) -> pb.ModelCacheStats:
        counters, limits = self._models.counters, self._models.limits
        age = self._models.oldest_entry_age
        return pb.ModelCacheStats(
            cached_models=len(self._models),
            max_models=limits.max_models,
            total_hits=counters.hits,
            total_misses=counters.misses,
            hit_rate=counters.hit_rate,
            total_memory_bytes=self._models.total_bytes,
            budget_bytes=limits.budget_bytes,
            evictions=counters.evictions,
            oldest_entry_age=None if age is None else duration(age),
        )

    def _model(self, entry: Entry[LoadedModel]) -> pb.ModelStats:
        now = self._clock()
        expires_in = entry.expires_in(now)
        adapter = entry.model.source.adapter_path
        chosen = self._context_length(entry.name, "" if adapter is None else str(adapter))
        info = model_info.loaded(entry.model, entry.name, chosen)
        info.load_time.CopyFrom(duration(entry.load_time))
        info.warmup_time.CopyFrom(duration(entry.model.warmup_time))
        return pb.ModelStats(
            info=info,
            state=pb.MODEL_STATE_DRAINING if entry.draining else pb.MODEL_STATE_READY,
            in_use=entry.leases,
            use_count=entry.use_count,
            age=duration(now - entry.loaded_at),
            idle=duration(0 if entry.leases else now - entry.last_used),
            expires_in=None if expires_in is None else duration(expires_in),
            pinned=entry.pinned,
            names=entry.names,
        )

    def _prefix_cache(self) -> pb.PrefixCacheStats:
        prefixes = self._prefixes
        counters, limits = prefixes.counters, prefixes.limits
        return pb.PrefixCacheStats(
            blocks=prefixes.trie.blocks,
            max_blocks=limits.blocks,
            block_tokens=BLOCK_TOKENS,
            bytes=prefixes.memory_usage(),
            budget_bytes=limits.nbytes,
            buffers=prefixes.trie.ledger.buffers,
            lookups=counters.lookups,
            hits=counters.hits,
            hit_rate=counters.hit_rate,
            tokens_looked_up=counters.tokens_looked_up,
            tokens_reused=counters.tokens_reused,
            inserts=counters.inserts,
            evictions=counters.evictions,
            leases=prefixes.trie.leases,
            checkpoints=prefixes.trie.ledger.checkpoints,
            namespaces=self._namespaces.stats(),
            total_namespaces=len(prefixes.trie.namespaces),
            kept=[_kept(keep, prefixes.keeps) for keep in nsmallest(MOST_KEPT, prefixes.keeps, key=_expires)],
            misses=pb.MissCounts(**{reason.value: count for reason, count in prefixes.misses.items()}),
            total_kept=len(prefixes.keeps),
            kept_bytes=prefixes.keeps.nbytes,
            kept_budget_bytes=prefixes.keeps.most_bytes,
            kept_yielded=prefixes.keeps.yielded,
            evictable_bytes=prefixes.evictable_bytes(),
            most_bytes=self._most_prefix_bytes(),
            tokens_shared=counters.tokens_shared,
            **self._shared_figures(),
            tails=prefixes.trie.tails,
            tail_tokens_reused=counters.tail_tokens_reused,
            **self._disk_figures(),
        )

    def _most_prefix_bytes(self) -> int:
        budget = self._memory.prefix_budget
        return self._prefixes.limits.nbytes if budget is None else budget.most

    def _shared_figures(self) -> dict[str, int]:
        readers = self._runner.readers
        prefixes = readers.prefixes()
        return {
            "shared_prefixes": len(prefixes),
            "shared_readers": readers.count,
            "shared_bytes": sum(prefix.nbytes for prefix in prefixes),
            "shared_copied_tokens": readers.copied,
        }

    def _disk_figures(self) -> dict[str, int]:
        disk = self._disk
        if disk is None or not disk.enabled:
            return {}
        counters = disk.work.counters
        return {
            "disk_bytes": disk.catalog.nbytes,
            "disk_blocks": disk.catalog.blocks,
            "disk_budget_bytes": disk.budget,
            "disk_hits": counters.hits,
            "disk_tokens_reused": counters.tokens_reused,
            "disk_written_bytes": counters.written_bytes,
            "disk_faults": counters.faults,
        }

    def _memory_stats(self) -> pb.MemoryStats:
        use, budget = self._memory.use(), self._memory.budget
        return pb.MemoryStats(
            active_bytes=mx.get_active_memory(),
            cache_bytes=mx.get_cache_memory(),
            peak_bytes=process_peak(),
            weights_bytes=use.weights,
            trie_bytes=use.trie,
            live_kv_bytes=use.live_kv,
            headroom_bytes=budget.headroom(use),
            limit_bytes=budget.limit,
        )


def _spread(timings: EngineTimings) -> dict[str, Any]:
    """Return the fields for medians and 99th percentiles."""
    fields: dict[str, Any] = {}
    for suffix, share in (("p50", 0.5), ("p99", 0.99)):
        for name, times in (("step_time", timings.steps), ("token_gap", timings.gaps)):
            if times.count:
                fields[f"{name}_{suffix}"] = duration(times.quantile(share))
        fields[f"batch_size_{suffix}"] = round(timings.rows.quantile(share))
    return fields


def _expires(keep: Keep) -> float:
    return keep.expires


def _kept(keep: Keep, keeps: Keeps) -> pb.KeptPrefix:
    expires_in = duration(keeps.expires_in(keep))
    return pb.KeptPrefix(namespace=shown(keep.namespace), tokens=keep.tokens, bytes=keep.nbytes, expires_in=expires_in)


def _stuck(job: Job) -> pb.StuckWork:
    return pb.StuckWork(work=job.task.kind.name, model=job.task.model, silent=duration(job.silent))


def _loading(load: tuple[ModelSource, object]) -> pb.ModelStats:
    return pb.ModelStats(info=_without_outcome(load[0]), state=pb.MODEL_STATE_LOADING, names=[load[0].name])


def _without_outcome(source: ModelSource) -> pb.ModelInfo:
    info = model_info.estimated(source)
    info.ClearField("outcome")
    return info
