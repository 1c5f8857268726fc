"""
Drives calls, and has the parts that calls use. A call is a generator, which yields the condition that it waits for.

    begin ───> runs ───> returns: the call has sent its last event, or its request runs
                │  ↑ └─> raises: the driver sends the error, which is the last event
         yields │  │ the condition holds at `poll`
                ↓  │
               waits ──> cancelled: the generator is closed at its `yield`, and nothing more is sent

A call gives back what it holds (leases, tickets, its place in a search) in `finally`, so each of the three ways out
does it. The event that ends a call is sent once: by the call as its last act, by the driver after an error, or by the
runner that has taken over its request.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TypeVar

from daemon.cache.callbacks import ignore
from daemon.cache.identity import ModelKey, ModelSource
from daemon.cache.limits import not_loaded
from daemon.cache.load import Progress, Ticket
from daemon.cache.mlx.loader import LoadedModel
from daemon.cache.model_cache import ModelCache
from daemon.engine.background.background import Background, as_sidecar_error
from daemon.engine.background.task import TOKENIZER, Condition, Task, Waiting, until
from daemon.engine.calls.model_lookup import ModelLookup
from daemon.engine.calls.model_places import Places
from daemon.engine.execution.runner import Runner
from daemon.engine.memory.memory_budget import MemoryBudget
from daemon.engine.outbox import Outbox
from daemon.engine.prompt.tokenizer import Tokenizer
from daemon.engine.prompt.tokenizers import Tokenizers
from daemon.engine.reporting.model_registry import NameRegistry, NamespaceRegistry
from daemon.kv.disk.tier import DiskTier
from daemon.kv.keys import Namespace
from daemon.kv.prefix_cache import PrefixCache
from daemon.shared.errors import SidecarError
from daemon.shared.model_overrides import ModelOverrides

T = TypeVar("T")
M = TypeVar("M")

Models = ModelCache[ModelSource, LoadedModel]

Call = Waiting[None]


class CallDriver:
    """
    Runs calls until each waits, and resumes them. Runs on the MLX thread.

    Args:
        fail: Sends the error that ends a call, by the call's id.
    """

    def __init__(self, fail: Callable[[int, SidecarError], None]) -> None:
        self._fail = fail
        self._waiting: dict[int, tuple[Call, Condition]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def begin(self, call_id: int, call: Call) -> None:
        """Run a call until it waits or ends."""
        self._resume(call_id, call)

    def poll(self) -> None:
        """Resume each call that need not wait any longer, in order of arrival."""
        for call_id, (call, condition) in list(self._waiting.items()):
            if condition():
                self._resume(call_id, call)

    def cancel(self, call_id: int) -> bool:
        """End a call early, and tell whether it waited; nothing is sent."""
        call, _condition = self._waiting.pop(call_id, (None, None))
        if call is None:
            return False
        call.close()
        return True

    def _resume(self, call_id: int, call: Call) -> None:
        try:
            self._waiting[call_id] = call, next(call)
        except StopIteration:
            self._waiting.pop(call_id, None)
        except Exception as error:
            self._waiting.pop(call_id, None)
            self._fail(call_id, as_sidecar_error(error))


def leased(ticket: Ticket[M], report: Callable[[Progress], None] = ignore) -> Waiting[Ticket[M]]:
    """
    Wait for a model's weights, and return the ticket with its lease. The caller cancels it to give the lease back.

    Args:
        ticket: The wait for the model; it is cancelled if the call is closed meanwhile.
        report: Gets the progress of the load, whenever that changed since the last turn.

    Raises:
        Exception: The error of the load, after which the ticket holds nothing.
    """
    reported: Progress | None = None

    def moved() -> bool:
        return ticket.done or ticket.progress != reported

    with ExitStack() as held:
        held.callback(ticket.cancel)
        yield from until(moved)
        while not ticket.done:
            reported = ticket.progress
            report(reported)
            yield from until(moved)
        if ticket.error is not None:
            raise ticket.error.with_traceback(None)  # all callers of the load get the same error
        held.pop_all()
    return ticket


@dataclass(frozen=True, slots=True)
class Services:
    """
    The parts that calls use. All belong to the MLX thread, except the tokenizers, which the threads of a pool read.

    Attributes:
        models: The models in memory, and those that are loaded.
        prefixes: The prefix cache.
        runner: Computes requests that have their model.
        budget: Tells whether a request can ever fit in memory.
        lookup: Finds models by name, on other threads.
        tokenizers: The tokenizers of models.
        background: The threads that everything that blocks runs on.
        outbox: Sends events to the parent.
        clock: Seconds that never go back.
        names: The contents that each name stood for; Invalidate needs them.
        namespaces: The models that each namespace belongs to; Stats shows them.
        overrides: Context lengths; pins and times to live that were asked of the engine before this one.
        places: Where models lie; ListModels shows them.
        disk: The tier below the prefix cache.
        embeds_held: Embed calls that run, by id: whether the call's reader lags, so that no vectors are to be sent.
        embedders: The models that are known to have hidden states.
        coming: Ids of the Generate calls that have their prompt tokenised. Their requests can start soon, so the
            batching window waits for them.
        alone: Whether no other rank does the same. What a search reports reaches the first rank of a group alone, so it
            must decide nothing there.
    """

    models: Models
    prefixes: PrefixCache
    runner: Runner
    budget: MemoryBudget
    lookup: ModelLookup
    tokenizers: Tokenizers
    background: Background
    outbox: Outbox
    clock: Callable[[], float]
    names: NameRegistry
    namespaces: NamespaceRegistry
    overrides: ModelOverrides
    places: Places
    disk: DiskTier
    embeds_held: dict[int, bool] = field(default_factory=dict)
    embedders: set[ModelKey] = field(default_factory=set)
    coming: set[int] = field(default_factory=set)
    alone: bool = True

    def load(
        self,
        source: ModelSource,
        adapter: str = "",
        *,
        loaded_only: bool = False,
        pin: bool | None = None,
        ttl: float | None = None,
        skip_warmup: bool = False,
    ) -> Ticket[LoadedModel]:
        """
        Ask for a model's weights. A pin and a time to live that are None are those that earlier callers asked for.

        Raises:
            SidecarError: MODEL_NOT_CACHED if `loaded_only` and the model is not in memory.
        """
        self.names.seen(source)
        if loaded_only and not self.models.contains(source.key):
            raise not_loaded(source.name, kept=self.models.limits.budget_bytes > 0)
        self._move_pin(source, adapter, pin)
        return self.models.get_or_load(
            source,
            pin=self.overrides.pin(source.name, adapter) if pin is None else pin,
            ttl=self.overrides.ttl(source.name, adapter) if ttl is None else ttl,
            skip_warmup=skip_warmup,
        )

    def _move_pin(self, source: ModelSource, adapter: str, pin: bool | None) -> None:
        """Let a pin follow a directory whose files changed, or a branch that moved: nothing leads to what was there."""
        pinned = [entry for entry in self.models.entries() if entry.pinned and not entry.draining]
        for entry in pinned:
            before = entry.model.source
            moved = bool(before.revision and source.revision) and before.branch == source.branch
            is_there = before.adapter_path == source.adapter_path and (moved or before.path == source.path)
            if is_there and entry.key != source.key and entry.names == [source.name]:
                self.models.unpin(entry.key)
                if pin is None:
                    self.overrides.choose_pin(source.name, adapter)

    def note_namespace(self, namespace: Namespace, source: ModelSource) -> None:
        """Remember that a request of a model may store prefixes in a namespace."""
        self.names.note_layout(namespace)
        self.namespaces.note(namespace, source)

    def with_tokenizer(self, source: ModelSource, then: Callable[[Tokenizer], T | Task[T]]) -> Task[T]:
        """
        Return the task that reads a model's tokenizer and goes on with `then`.

        Its lane is the directory: of two copies of a model, the disk of one may hang and that of the other may not.
        """
        return Task(TOKENIZER, source.name, source.path, lambda: then(self.tokenizers.get(source)))
