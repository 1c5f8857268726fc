"""The engine: everything that the MLX thread owns, put together, and what it does with each command."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlx.core as mx
import structlog

from daemon.cache.digest_notes import FILE_NAME as DIGESTS
from daemon.cache.digest_notes import DigestFile
from daemon.cache.digests import Digests
from daemon.cache.identity import ModelSource
from daemon.cache.limits import ModelLimits
from daemon.cache.load import Load
from daemon.cache.mlx.loader import LoadedModel, load, supported
from daemon.cache.model_cache import ModelCache
from daemon.cache.pace import SLICE_SECONDS, Share
from daemon.cache.resolver import Resolver
from daemon.engine.background.background import Background, as_sidecar_error
from daemon.engine.background.task import LOOKUP, Task
from daemon.engine.background.thread_priority import aside, resting
from daemon.engine.calls.generate import Call, GenerateCall, LoadCall, Services
from daemon.engine.calls.invalidate import Invalidator, PrefixCall
from daemon.engine.calls.model_lookup import ModelLookup
from daemon.engine.calls.recalled import Recalled
from daemon.engine.device import working_set
from daemon.engine.execution.runner import Runner
from daemon.engine.memory.memory_budget import MemoryBudget, memory_limit
from daemon.engine.memory.pressure import Relief, Source, normal
from daemon.engine.outbox import Outbox, Wire
from daemon.engine.prompt.chat_templates import WORKERS, Templates
from daemon.engine.prompt.tokenizers import Tokenizers
from daemon.engine.reporting.model_registry import NamespaceRegistry
from daemon.engine.reporting.snapshot import StatsCollector
from daemon.engine.scheduling.batching_window import BatchingWindow, most_seconds
from daemon.kv.evictor import PrefixLimits
from daemon.kv.keys import Namespace
from daemon.kv.mlx.adapters.kv_cache import copied
from daemon.kv.prefix_cache import PrefixCache
from daemon.shared.config import Config
from daemon.shared.model_names import climbs
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb

MIB = 1 << 20
SWEEP_SECONDS = 1.0
"""How often idle models are checked and figures are sent when nothing happens."""

CLEAR_TURNS = 512
"""Caches grow by a token a turn and leave buffers of sizes that nobody asks for again: so often they are freed."""

log = structlog.get_logger()


class Engine:
    """
    Loads models and runs requests, in small steps.

    Args:
        config: The daemon's configuration.
        wire: Takes events to the parent.
        post: Runs a function on the MLX thread; any thread.
        clock: Seconds that never go back.
        pressure: Tells whether the system is short of memory; asked once a second, if the configuration allows it.
        ttl_clock: Seconds that include the machine's sleep, for how long models were idle; `clock` if None.
    """

    def __init__(
        self,
        config: Config,
        wire: Wire,
        post: Callable[[Callable[[], None]], None],
        clock: Callable[[], float],
        pressure: Source = normal,
        ttl_clock: Callable[[], float] | None = None,
    ) -> None:
        ttl_clock = ttl_clock or clock
        self._clock = clock
        self._swept = clock()
        self._warmup_tokens = config.warmup_tokens
        self._share = Share()
        self._gathering = BatchingWindow(clock)
        self._turns = 0
        self._streaming = False
        """Whether anybody waited for their next token in the last turn; other threads read it."""
        ledger = MemoryBudget(memory_limit(working_set()))
        mx.set_cache_limit(min(2 << 30, ledger.limit // 20))
        budget = min(config.model_cache_mb * MIB, ledger.limit)
        limits = ModelLimits(budget, config.max_models, config.model_ttl, config.evict_on_memory_pressure, ledger.limit)
        self._models: ModelCache[ModelSource, LoadedModel] = ModelCache(limits, self._load, ttl_clock, mx.clear_cache)
        self._prefixes = PrefixCache(
            PrefixLimits(config.max_cache_blocks, config.kv_cache_mb * MIB), config.min_prefix_len, copy=copied
        )
        self._outbox = Outbox(wire, lambda: self._figures.snapshot())
        self._runner = Runner(self._prefixes, config.max_batch, self._make_room, self._outbox, clock)
        self._namespaces = NamespaceRegistry(self._prefixes, clock)
        self._ledger = ledger
        self._relief = Relief(
            pressure if config.evict_on_memory_pressure else normal,
            self._prefixes.memory_usage,
            self._prefixes.shed,
            self._models.shed,
            clock,
        )
        self._invalidator = Invalidator(self._models, self._prefixes, self._runner)
        self._background = Background(post, clock, WORKERS)
        self._templates = Templates(clock)
        self._figures = StatsCollector(
            self._models,
            self._prefixes,
            self._namespaces,
            self._runner,
            ledger,
            ttl_clock,
            stuck=self._background.stuck,
        )
        self._digests = Digests(DigestFile(config.state_dir / DIGESTS), aside=lambda: aside(lambda: self._streaming))
        resolver = Resolver(
            config.model_roots,
            digests=self._digests,
            supported=supported,
            afford=limits.refuse_if_never,
        )
        self._resolver = resolver
        self._finder = ModelLookup(resolver, self._background)
        self._recalled = Recalled()
        self._services = Services(
            models=self._models,
            runner=self._runner,
            ledger=ledger,
            finder=self._finder,
            tokenizers=Tokenizers(self._templates),
            background=self._background,
            outbox=self._outbox,
            clock=clock,
            seen=self._invalidator.known.seen,
            shares=self._shares,
            recalled=self._recalled,
        )
        self._calls: dict[int, Call] = {}

    @property
    def busy(self) -> bool:
        """Whether there is work."""
        return self._models.busy or self._runner.busy

    @property
    def pause(self) -> float:
        """Seconds for which `step` can wait for commands; 0 if it has something to do at once."""
        if not self.busy:
            return SWEEP_SECONDS
        return 0.0 if self._models.busy else self._gather()

    @property
    def stuck(self) -> int:
        """Threads that hang; any thread may ask."""
        return len(self._background.stuck())

    def handle(self, command: ipc.Command) -> None:
        """Begin or end a call."""
        kind = command.WhichOneof("body")
        if kind == "cancel":
            self._cancel(command.call_id)
            return
        if kind == "hold":
            self._runner.hold(command.call_id, held=command.hold.held)
            return
        try:
            self._begin(command, kind)
        except Exception as error:
            self._outbox.fail(command.call_id, as_sidecar_error(error))

    def _begin(self, command: ipc.Command, kind: str | None) -> None:
        if kind == "load":
            self._calls[command.call_id] = LoadCall(self._services, command.call_id, command.load)
        elif kind == "generate":
            self._calls[command.call_id] = GenerateCall(self._services, command.call_id, command.generate)
        elif kind == "invalidate":
            self._invalidate(command.call_id, command.invalidate)
        elif kind == "recall":
            self._recall(command.recall)

    def _recall(self, request: pb.GetOrLoadRequest) -> None:
        """Do with a model, once it is loaded again, what callers asked of the engine before this one."""
        self._resolver.prefer(request.model, request.revision)
        self._recalled.keep(request)

    def step(self) -> None:
        """Do one round: calls that can go on, one step of the runner, one slice of a load."""
        began = self._clock()
        self._poll()
        runs = not self._gather() and self._runner.busy
        if runs:
            self._runner.step()
        self._streaming = self._runner.decoding > 0
        self._share.served(self._clock() - began)
        loads = self._models.busy and (self._share.due or not self._runner.decoding)
        if loads:
            began_slice = self._clock()
            self._models.step()
            self._share.loaded(self._clock() - began_slice)
            self._poll()
        if runs or loads:
            self._runner.gauges.steps.observe(self._clock() - began)
            self._turns += 1
            if self._turns % CLEAR_TURNS == 0:
                mx.clear_cache()
        if self._clock() - self._swept >= SWEEP_SECONDS:
            self._sweep()

    def close(self) -> None:
        """Stop background work."""
        self._background.close()
        self._templates.close()

    def _shares(self, namespace: Namespace, source: ModelSource) -> None:
        self._invalidator.known.shares(namespace)
        self._namespaces.note(namespace, source)

    def _load(self, source: ModelSource, skip_warmup: object) -> Load[LoadedModel]:
        self._shed_prefixes(source.size_bytes)
        return load(
            source,
            0 if skip_warmup else self._warmup_tokens,
            self._clock,
            self._load_seconds,
            self._digests.learn,
            resting(lambda: self._streaming),
            lambda: self._shed_prefixes(0),
        )

    def _shed_prefixes(self, need: int) -> None:
        """Let prefixes make room for a model; what the load under way needs is in use already, once it is known."""
        self._prefixes.shed(self._ledger.shortfall(need, self._figures.use()))

    def _load_seconds(self) -> float:
        """Return how long a slice of a load may take: running streams may wait for one more of their own steps."""
        usual = self._runner.usual_decode
        return SLICE_SECONDS if usual is None else min(SLICE_SECONDS, usual)

    def _poll(self) -> None:
        for call_id, call in list(self._calls.items()):
            try:
                waits = call.poll()
            except Exception as error:
                call.fail(as_sidecar_error(error))
                waits = False
            if not waits:
                del self._calls[call_id]

    def _gather(self) -> float:
        """Return for how many seconds requests that could start wait for those that come with them."""
        coming = sum(isinstance(call, GenerateCall) and call.comes_soon for call in self._calls.values())
        step = self._runner.usual_step_awaited
        return self._gathering.left(self._runner.fresh(most_seconds(step)), coming, step)

    def _cancel(self, call_id: int) -> None:
        call = self._calls.pop(call_id, None)
        if call is not None:
            call.cancel()
        elif self._runner.cancel(call_id):
            self._outbox.publish()

    def _sweep(self) -> None:
        self._swept = self._clock()
        self._background.tick()
        self._templates.trim()
        self._models.evict_stale()
        self._make_room(0)  # for what running requests have grown by
        if self._relief.check() or not self.busy:
            mx.clear_cache()
        self._outbox.publish()

    def _make_room(self, need: int) -> bool:
        """Free memory for a request: cached prefixes first, then idle models."""
        shortfall = self._ledger.shortfall(need, self._figures.use())
        if shortfall:
            shortfall -= self._prefixes.shed(shortfall)
        if shortfall > 0:
            self._models.shed(shortfall)
        return self._ledger.shortfall(need, self._figures.use()) == 0

    def _invalidate(self, call_id: int, request: pb.InvalidateRequest) -> None:
        kind = request.WhichOneof("target")
        if kind == "prefix":
            self._calls[call_id] = PrefixCall(self._services, call_id, request, self._invalidator)
        elif kind == "model" and climbs(request.model.model):
            fail = partial(self._outbox.fail, call_id)
            task = Task(LOOKUP, request.model.model, request.model.model, partial(_resolved, request))
            self._background.run(task, partial(self._invalidate, call_id), fail)
        elif kind == "model":
            if request.model.weights and not request.dry_run:
                self._recalled.forget(request.model.model)
            self._outbox.invalidated(call_id, self._invalidator.model(request.model, dry_run=request.dry_run))
        else:
            if request.all.weights and not request.dry_run:
                self._recalled.forget()
            self._outbox.invalidated(call_id, self._invalidator.all(request.all, dry_run=request.dry_run))


def _resolved(request: pb.InvalidateRequest) -> pb.InvalidateRequest:
    """Return a request for a model by the path that its `..` lead to, as a load names it. Asks the file system."""
    found = pb.InvalidateRequest()
    found.CopyFrom(request)
    try:
        found.model.model = str(Path(request.model.model).resolve())
    except (OSError, RuntimeError, ValueError):  # no path, or a loop of links: nothing was ever loaded from there
        found.model.model = "/"
    return found
