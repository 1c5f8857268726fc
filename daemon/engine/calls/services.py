"""The parts of the engine that calls use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from daemon.cache.identity import ModelSource
from daemon.cache.limits import not_loaded
from daemon.cache.load import Ticket
from daemon.cache.mlx.loader import LoadedModel
from daemon.cache.model_cache import ModelCache
from daemon.engine.background.background import Background
from daemon.engine.background.task import TOKENIZER, Task
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
from daemon.shared.model_overrides import ModelOverrides

Models = ModelCache[ModelSource, LoadedModel]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Services:
    """
    The parts that calls use. All belong to the MLX thread, except the tokenizers, which the threads of a pool read.

    Attributes:
        clock: Seconds that never go back.
        names: The contents that each name stood for; Invalidate needs them.
        namespaces: The models that each namespace belongs to; Stats shows them.
        overrides: Context lengths; pins and times to live that were asked of the engine before this one.
        places: Where models lie; ListModels shows them.
        disk: The tier below the prefix cache.
        held: Embed calls that run, by id: whether the call's reader lags, so that no vectors are to be sent.
        coming: Ids of the Generate calls that have their prompt tokenised. Their requests can start soon, so the
            batching window waits for them.
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
    held: dict[int, bool] = field(default_factory=dict)
    coming: set[int] = field(default_factory=set)

    def load(self, source: ModelSource, adapter: str = "", *, loaded_only: bool) -> Ticket[LoadedModel]:
        """
        Ask for a model's weights for a Generate call, with the pin and time to live that earlier callers asked for.

        Raises:
            SidecarError: MODEL_NOT_CACHED if `loaded_only` and the model is not in memory.
        """
        self.names.seen(source)
        if loaded_only and not self.models.contains(source.key):
            raise not_loaded(source.name, kept=self.models.limits.budget_bytes > 0)
        return self.models.get_or_load(
            source, pin=self.overrides.pin(source.name, adapter), ttl=self.overrides.ttl(source.name, adapter)
        )

    def limited(self, source: ModelSource, adapter: str) -> ModelSource:
        """Return a model with the context length that callers chose for its name; any thread."""
        return replace(source, context_override=self.overrides.context_length(source.name, adapter))

    def shares(self, namespace: Namespace, source: ModelSource) -> None:
        """Remember that a request of a model may store prefixes in a namespace."""
        self.names.shares(namespace)
        self.namespaces.note(namespace, source)

    def with_tokenizer(self, source: ModelSource, then: Callable[[Tokenizer], T | Task[T]]) -> Task[T]:
        """
        Return the task that reads a model's tokenizer and goes on with `then`.

        Its lane is the directory: of two copies of a model, the disk of one may hang and that of the other may not.
        """
        return Task(TOKENIZER, source.name, source.path, lambda: then(self.tokenizers.get(source)))
