"""The budget of cached prefixes: a share of the machine's memory, as far as the rest of the engine leaves it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.engine.memory.memory_budget import MemoryBudget, Use

SHARE_OF_MEMORY = 4
"""Without a number in the configuration, prefixes may take a quarter of the machine's memory."""

LEAST_IDLE_SECONDS = 60.0
"""Blocks are not idle before that, however short `model_ttl` is: the next turn of a conversation takes a moment."""


@dataclass(frozen=True, slots=True)
class PrefixBudget:
    """
    Decides how many bytes the prefix cache may hold now.

    Attributes:
        most: Most bytes at any time; 0 if nothing is cached.
        budget: The limit of all bytes in use.
    """

    most: int
    budget: MemoryBudget

    @classmethod
    def of(cls, chosen: int | None, memory: int, budget: MemoryBudget) -> PrefixBudget:
        """
        Return the budget of a machine.

        Args:
            chosen: Bytes that the configuration allows; None for what suits the machine.
            memory: Bytes of the machine.
            budget: The limit of all bytes in use.
        """
        return cls(min(memory // SHARE_OF_MEMORY if chosen is None else chosen, budget.limit), budget)

    def bytes(self, use: Use) -> int:
        """Return the bytes that prefixes may take beside weights and running requests; 0 or more."""
        return max(0, min(self.most, self.budget.limit - use.weights - use.live_kv - use.staged))
