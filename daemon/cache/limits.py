"""What the model cache may hold."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.cache.refusals import oversize


@dataclass(frozen=True, slots=True)
class Limits:
    """
    What the cache may hold.

    Attributes:
        budget_bytes: Most bytes of weights; 0 disables caching: each call loads, uses and frees its own.
        max_models: Most models.
        ttl: Idle time to live of an entry, in seconds.
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
