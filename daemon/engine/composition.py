"""Builds the engine: every part that the MLX thread owns, in the order in which the parts need each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, repeat
from pathlib import Path
from typing import TypeVar

from huggingface_hub import constants

from daemon.cache.digest_notes import FILE_NAME as DIGESTS
from daemon.cache.digest_notes import DigestFile
from daemon.cache.digests import Digests
from daemon.cache.limits import ModelLimits
from daemon.cache.mlx.computing_place import code_of_kv, place_of
from daemon.cache.mlx.load_notes import LoadNotes, NoteFile
from daemon.cache.mlx.loader import supported
from daemon.cache.mlx.measurements import MEASUREMENTS, Measurements
from daemon.cache.mlx.self_tests import VERDICTS, Verdicts
from daemon.cache.mlx.shard import WHOLE
from daemon.cache.model_cache import ModelCache
from daemon.cache.resolver import Resolver
from daemon.engine.background.background import Background
from daemon.engine.background.task import KV_DISK, Pending, Task
from daemon.engine.background.thread_priority import Streams, aside
from daemon.engine.calls.driver import Models, Services
from daemon.engine.calls.invalidate import Invalidator
from daemon.engine.calls.model_loading import ModelLoader
from daemon.engine.calls.model_lookup import ModelLookup
from daemon.engine.calls.model_places import Places
from daemon.engine.device import device_name, memory_size, working_set
from daemon.engine.engine import Engine
from daemon.engine.execution.runner import Runner
from daemon.engine.group.disk import together
from daemon.engine.group.ranks import Ranks, ShardedResolver
from daemon.engine.memory.buffers import BufferCache
from daemon.engine.memory.engine_memory import EngineMemory
from daemon.engine.memory.memory_budget import MemoryBudget, group_share, memory_limit
from daemon.engine.memory.prefix_budget import LEAST_IDLE_SECONDS, PrefixBudget
from daemon.engine.memory.pressure import Relief, Source, normal
from daemon.engine.memory.wiring import wiring
from daemon.engine.outbox import Outbox, Wire
from daemon.engine.prompt.chat_templates import WORKERS, Templates
from daemon.engine.prompt.tokenizers import Tokenizers
from daemon.engine.reporting.model_registry import NamespaceRegistry
from daemon.engine.reporting.snapshot import StatsCollector
from daemon.kv.disk.files import Files
from daemon.kv.disk.limits import share
from daemon.kv.disk.note import Note
from daemon.kv.disk.tier import DiskTier
from daemon.kv.disk.work import DiskWork
from daemon.kv.evictor import PrefixLimits
from daemon.kv.idle import IdleRelease
from daemon.kv.mlx.adapters.kv_cache import copied
from daemon.kv.mlx.disk_codec import ArrayCodec
from daemon.kv.prefix_cache import PrefixCache
from daemon.shared.config import Config
from daemon.shared.model_overrides import ModelOverrides

T = TypeVar("T")


def build_engine(
    config: Config,
    wire: Wire,
    post: Callable[[Callable[[], None]], None],
    clock: Callable[[], float],
    pressure: Source = normal,
    ttl_clock: Callable[[], float] | None = None,
    wall: Callable[[], float] = time.time,
    ranks: Ranks | None = None,
    known: tuple[Measurements, Verdicts] | None = None,
) -> Engine:
    """
    Build the parts of an engine and return the engine that drives them.

    Two pairs need each other. The runner sends events, and figures of the runner go out with them. The runner, the
    model cache and the disk tier ask for room in the memory that they use. So `attach` and `watch` name the second of
    each pair later.

    Args:
        config: The daemon's configuration.
        wire: Takes events to the parent.
        post: Runs a function on the MLX thread; any thread.
        clock: Seconds that never go back.
        pressure: Tells whether the system is short of memory; asked once a second, if the configuration allows it.
        ttl_clock: Seconds that include the machine's sleep, for how long models were idle; `clock` if None.
        wall: Seconds since 1970, which may jump.
        ranks: The ranks of a group that compute with this engine; None if it is alone.
        known: What passes of models take, and what self-tests found of them; None to keep both in the state directory.
    """
    ttl_clock = ttl_clock or clock
    budget = MemoryBudget(_limit(config) if ranks is None else ranks.limit_bytes)
    buffers = BufferCache(budget.limit)
    prefix_budget = PrefixBudget.of(config.kv_cache_bytes, ranks.memory_bytes if ranks else memory_size(), budget)
    prefix_limits = PrefixLimits(config.max_cache_blocks, prefix_budget.most)
    prefixes = PrefixCache(prefix_limits, config.min_prefix_len, copy=copied, clock=ttl_clock)
    outbox = Outbox(wire)
    memory = EngineMemory(budget, prefixes, prefix_budget)
    own_clock = ranks.own_clock if ranks else clock
    runner = Runner(prefixes, config.max_batch, memory.make_room, memory.spare, outbox, clock, own_clock)

    # Models: found on other threads, loaded by the MLX thread in slices.
    streams = Streams()
    digests = Digests(DigestFile(config.state_dir / DIGESTS), aside=lambda: aside(streams.are_active))
    shard = WHOLE if ranks is None else ranks.shard
    measured, verdicts = known or _kept(config, ranks)
    loader = ModelLoader(memory, runner, digests, streams, clock, config.warmup_tokens, measured, verdicts, shard)
    limits = _model_limits(config, budget)
    models: Models = ModelCache(limits, loader.begin, ttl_clock, buffers.clear)
    background = Background(post, clock, WORKERS, ranks.answers if ranks else None)
    disk = _disk_tier(config, prefixes, memory, background, clock, ranks.wall if ranks else wall, ranks)
    memory.watch(models, runner, lambda: disk.staged)
    resolver = _resolver(config, digests, limits, ranks)

    roots = () if ranks else config.model_roots  # each place is work of its own, and ranks must begin the same
    places = Places(Path(constants.HF_HUB_CACHE), roots, config.aliases, background, clock)

    invalidator = Invalidator(models, prefixes, runner, disk)
    namespaces = NamespaceRegistry(prefixes, clock)
    overrides = ModelOverrides()
    figures = StatsCollector(
        models, prefixes, namespaces, runner, memory, ttl_clock,
        disk=disk, stuck=background.stuck, context_length=overrides.context_length,
    )  # fmt: skip
    outbox.attach(ranks.aside(figures.snapshot) if ranks else figures.snapshot)

    templates = Templates(own_clock)
    services = Services(
        models=models,
        prefixes=prefixes,
        runner=runner,
        budget=budget,
        lookup=ModelLookup(resolver, background, places),
        tokenizers=Tokenizers(templates),
        background=background,
        outbox=outbox,
        clock=clock,
        names=invalidator.names,
        namespaces=namespaces,
        overrides=overrides,
        places=places,
        disk=disk,
        alone=ranks is None,
    )
    source = pressure if config.evict_on_memory_pressure else normal
    relief = Relief(source, prefixes.memory_usage, prefixes.shed, models.shed, clock)
    idle = IdleRelease(prefixes.trie, ttl_clock, max(config.model_ttl, LEAST_IDLE_SECONDS), prefixes.below)
    wired = wiring(config.wire_weights)
    return Engine(services, invalidator, templates, memory, buffers, relief, streams, idle, wired, disk)


def _limit(config: Config) -> int:
    """Return the bytes that this machine's own models may use: all but those of its group, if it has one."""
    limit = memory_limit(working_set())
    return limit - group_share(limit, config, leads=True) if config.group_ranks else limit


def _kept(config: Config, ranks: Ranks | None) -> tuple[Measurements, Verdicts]:
    """Return what loads found out. Ranks test and measure at the same time, so none of them may know more."""
    if ranks is not None:
        return Measurements(), Verdicts()
    place = place_of(device_name())
    measured = LoadNotes(NoteFile(config.state_dir, MEASUREMENTS, place))
    return Measurements(measured), Verdicts(LoadNotes(NoteFile(config.state_dir, VERDICTS, place)))


def _resolver(config: Config, digests: Digests, limits: ModelLimits, ranks: Ranks | None) -> Resolver:
    if ranks is None:
        return Resolver(config.model_roots, digests=digests, supported=supported, afford=limits.refuse_if_never)

    def afford(name: str, nbytes: int) -> None:
        limits.refuse_if_never(name, nbytes // ranks.count)

    resolver = ShardedResolver(config.model_roots, digests=digests, supported=supported, afford=afford)
    resolver.ranks = ranks.count
    return resolver


def _model_limits(config: Config, budget: MemoryBudget) -> ModelLimits:
    nbytes = min(config.model_cache_bytes, budget.limit)
    return ModelLimits(nbytes, config.max_models, config.model_ttl, config.evict_on_memory_pressure, budget.limit)


def _disk_tier(
    config: Config,
    prefixes: PrefixCache,
    memory: EngineMemory,
    background: Background,
    clock: Callable[[], float],
    wall: Callable[[], float],
    ranks: Ranks | None,
) -> DiskTier:
    folder, alone = config.kv_disk_folder, ranks is None
    on_disk = partial(together, background, ranks.rank, str(folder)) if ranks else partial(_on_disk, background)
    in_order = partial(on_disk, repeat("writes"))
    reads = partial(on_disk, cycle(("reads", "more reads")))
    files = Files(folder, ranks.part if ranks else code_of_kv())
    work = DiskWork(files, Note(config.state_dir, folder), in_order, reads, clock, wall)
    nbytes = share(config.kv_disk_bytes, shared=alone and bool(config.group_ranks))
    tier = DiskTier(work, nbytes, prefixes, ArrayCodec(), clock, wall, memory.has_room, alone=alone)
    if tier.enabled:
        prefixes.below = tier
    tier.begin()
    return tier


def _on_disk(
    background: Background,
    lanes: Iterator[str],
    what: str,
    work: Callable[[], T],
    then: Callable[[T | Exception], None],
) -> None:
    """Run work in the next one of some lanes of the disk; its error, or that it hangs, is a result as well."""

    def caught() -> T | Exception:
        try:
            return work()
        except Exception as error:
            return error

    task: Task[T | Exception] = Task(KV_DISK, "the disk tier", next(lanes), caught, what)
    background.run(task, Pending(then))
