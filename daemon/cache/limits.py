"""Limits of the model cache, the errors that follow from them, and its counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from daemon.cache.entry import Entry
from daemon.shared.errors import RETRY_SECONDS, Reason, SidecarError
from daemon.shared.wording import count, size, sizes_apart


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """
    Limits of the model cache.

    Attributes:
        budget_bytes: Most bytes of weights; 0 disables caching: each call loads, uses and frees a model of its own.
        max_models: Most models.
        ttl: Idle time after which a model is dropped, in seconds.
        evict_on_memory_pressure: Whether idle models may be dropped when memory is short elsewhere.
        memory_bytes: Most bytes of a model if the budget is 0; 0 for no limit.
    """

    budget_bytes: int
    max_models: int = 4
    ttl: float = 3600.0
    evict_on_memory_pressure: bool = True
    memory_bytes: int = 0

    def refuse_if_never(self, name: str, needed: int) -> None:
        """
        Refuse a model that does not fit into the budget even alone, or not into memory if there is no budget.

        Raises:
            SidecarError: MODEL_EXCEEDS_BUDGET with both figures.
        """
        if 0 < self.budget_bytes < needed:
            raise oversize(name, needed, self.budget_bytes)
        if not self.budget_bytes and 0 < self.memory_bytes < needed:
            raise oversize(name, needed, self.memory_bytes, allowed_by="memory")


@dataclass(slots=True)
class ModelCounters:
    """Totals since the start."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of lookups that found their model loaded; 0.0 before the first."""
        lookups = self.hits + self.misses
        return self.hits / lookups if lookups else 0.0


def oversize(name: str, needed: int, budget: int, allowed_by: str = "model_cache_mb") -> SidecarError:
    """Return the error for a model that can never fit."""
    needs, allowed = sizes_apart(needed, budget)
    return SidecarError(
        Reason.MODEL_EXCEEDS_BUDGET,
        f"{name} needs {needs} but {allowed_by} allows {allowed}; raise it or use a smaller model",
        metadata={"needed_bytes": str(needed), "budget_bytes": str(budget)},
    )


def in_use(name: str, needed: int, limits: ModelLimits, holders: Sequence[Entry[Any]]) -> SidecarError:
    """
    Return the error for a model that does not fit now, because others are in use or pinned.

    Its message names the limit, and tells a loaded model from one that was dropped and is used to the end.

    Args:
        name: The model.
        needed: Bytes of its weights.
        limits: The limits of the cache.
        holders: The models that cannot be evicted now.
    """
    bytes_by_names: Counter[str] = Counter()  # a draining model and a new copy of it have the same names
    for entry in holders:
        bytes_by_names[" = ".join(entry.names)] += entry.nbytes
    listing = ", ".join(map(_holder, holders))
    # A draining model takes bytes and no slot: without a lack of bytes, it is the slots that are taken.
    if sum(entry.nbytes for entry in holders) + needed > limits.budget_bytes:
        key, allowed = "model_cache_mb", size(limits.budget_bytes)
    else:
        key, allowed = "max_models", count(limits.max_models, "model")
    return SidecarError(
        Reason.BUDGET_IN_USE,
        f"no room for {name} ({size(needed)}): {key} allows {allowed}, and in use or pinned are {listing}; "
        f"try again shortly, unpin a model, or raise {key}",
        metadata={
            "needed_bytes": str(needed),
            "budget_bytes": str(limits.budget_bytes),
            **{names: str(nbytes) for names, nbytes in bytes_by_names.items()},
        },
        retry_after=RETRY_SECONDS,
    )


def _holder(entry: Entry[Any]) -> str:
    dropped = ", dropped while in use" if entry.draining else ""
    return f"{' = '.join(entry.names)} ({size(entry.nbytes)}{dropped})"


def not_loaded(name: str, *, kept: bool) -> SidecarError:
    """Return the error for a request that wants a loaded model; `kept` is whether models stay loaded at all."""
    advice = "GetOrLoad it first" if kept else "with model_cache_mb 0 no model stays loaded: unset require_loaded"
    return SidecarError(Reason.MODEL_NOT_CACHED, f"{name} is not loaded and require_loaded is set; {advice}")
