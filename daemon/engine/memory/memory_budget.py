"""The memory budget: one formula for the KV bytes of a request, and one limit for all bytes in use."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from daemon.shared.config import Config
from daemon.shared.errors import RETRY_SECONDS, Reason, SidecarError
from daemon.shared.wording import size, sizes_apart

DECODE_ROOM = 256
"""Tokens of KV that a request is given beyond those it holds; it grows by as many when they are used up."""

SCORED_TOKENS = 128
"""Most tokens of a prompt that are fed at a time if the log-probabilities of all of them are wanted."""

SCORED_ROWS = 16
"""Tokens of them that are scored at a time."""

_LOGIT_BYTES = 4
"""Bytes of a logit, of a log-probability, and of a place in their order."""

_SHARE_OF_WORKING_SET = 0.9
_SHARE_OF_RAM = 0.7
_SHARE_OF_GROUP = 0.75


def memory_limit(working_set: int | None) -> int:
    """
    Return the bytes that weights, prefix cache and running requests may use together: a share of the device's memory.

    Args:
        working_set: Bytes that a GPU allows; None without one, where the RAM counts instead.
    """
    if working_set:
        return int(_SHARE_OF_WORKING_SET * working_set)
    return int(_SHARE_OF_RAM * machine_memory())


def group_share(limit: int, config: Config, *, leads: bool) -> int:
    """
    Return the bytes of a machine's limit that the engine of its group may use.

    Args:
        limit: The machine's limit.
        config: Its configuration.
        leads: Whether it is the first rank, where another engine runs the models of this machine alone.
    """
    if config.group_memory_mb == "auto":
        return int(limit * (_SHARE_OF_GROUP if leads else 1))
    return min(limit, config.group_memory_mb << 20)


def machine_memory() -> int:
    """Return the bytes of the machine's memory, as the operating system counts it."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Costs(Protocol):
    """The memory costs of a model's KV cache."""

    @property
    def state_bytes(self) -> int:
        """Bytes of the states of all recurrent layers."""

    def live_bytes(self, tokens: int, chunk: int, held: int | None = None) -> int:
        """
        Return the bytes of a cache with room for `tokens`, of which at most `chunk` are computed at a time.

        It holds `held` tokens at most, if that is given.
        """


def kv_need(costs: Costs, held: int, left: int, chunk: int, *, prompt: bool = False) -> int:
    """
    Return the KV bytes of a request: its cache, and the states at its last end of a block, which it keeps as well.

    Room to decode is reserved in steps of DECODE_ROOM: reserving all of `max_tokens` would refuse most requests for no
    reason. What passes and copies take for a moment is no part of it; see `execution/bill.py`.

    Args:
        costs: The costs of its model.
        held: Tokens of the prompt and tokens generated so far.
        left: Tokens that may still be generated.
        chunk: Most tokens computed at a time.
        prompt: Whether it is still a prompt, with no token generated.
    """
    room = held + min(left, DECODE_ROOM)
    return costs.live_bytes(room, chunk, held if prompt else None) + costs.state_bytes


def scoring_need(vocab: int) -> int:
    """
    Return the bytes that the log-probabilities of a prompt take while it is computed, for logits of width `vocab`.

    The logits of a chunk; and for the rows that are scored at a time: logits, log-probabilities, their exponentials,
    their negatives, and their order.
    """
    return _LOGIT_BYTES * vocab * (SCORED_TOKENS + 1 + 5 * SCORED_ROWS)


@dataclass(frozen=True, slots=True)
class Use:
    """Bytes in use: of weights, of the prefix cache, promised to running requests, and on their way to or from disk."""

    weights: int
    trie: int
    live_kv: int
    staged: int = 0

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.trie + self.live_kv + self.staged


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """
    Compares needs with the limit.

    Attributes:
        limit: Most bytes that may be in use.
    """

    limit: int

    def headroom(self, use: Use) -> int:
        """Return the bytes that are free; negative above the limit."""
        return self.limit - use.total

    def refuse_if_never(self, need: Callable[[int], int], tokens: int, weights: int) -> None:
        """
        Refuse a request that does not fit even when it runs alone, with no other model and no cached prefix.

        Args:
            need: Returns the bytes of the request with a prompt of so many tokens.
            tokens: Tokens of its prompt.
            weights: Bytes of its model.

        Raises:
            SidecarError: REQUEST_EXCEEDS_MEMORY with the bytes needed and available, and the longest prompt that fits.
        """
        needed, available = need(tokens), max(0, self.limit - weights)
        if needed <= available:
            return
        longest = self.longest(need, tokens, weights)
        needs, free = sizes_apart(needed, available)
        raise SidecarError(
            Reason.REQUEST_EXCEEDS_MEMORY,
            f"the request needs {needs} of KV cache and workspace but at most {free} can be free beside its model; "
            + (f"a prompt of at most {longest} tokens would fit" if longest > 0 else "no prompt would fit")
            + f", and this one has {tokens}: shorten it, ask for fewer samples or use a smaller model",
            metadata={
                "needed_bytes": str(needed),
                "available_bytes": str(available),
                "longest_prompt_tokens": str(max(0, longest)),
            },
        )

    def longest(self, need: Callable[[int], int], tokens: int, weights: int) -> int:
        """
        Return how many of so many tokens fit beside weights when the request runs alone; none: 0 or less.

        Args:
            need: Returns the bytes of the request with so many tokens, more for more tokens.
            tokens: Most tokens to look at.
            weights: Bytes of its model, and of others that stay.
        """
        free = max(0, self.limit - weights)
        if need(tokens) <= free:  # usually: each call of GetOrLoad asks
            return tokens
        return bisect_right(range(tokens + 1), free, key=need) - 1

    def shortfall(self, need: int, use: Use) -> int:
        """Return the bytes that must be freed before a request fits; 0 if it fits now."""
        return max(0, need - self.headroom(use))


def in_use(needed: int) -> SidecarError:
    """Return the error of a sequence that needs so many bytes and does not fit although nothing runs."""
    return SidecarError(
        Reason.BUDGET_IN_USE,
        f"the request needs {size(needed)} of KV cache and workspace, and models that are in use or pinned leave "
        "less; unload a model, or try again shortly",
        metadata={"needed_bytes": str(needed)},
        retry_after=RETRY_SECONDS,
    )


def weights_in_use(name: str, lacking: int) -> SidecarError:
    """Return the error of weights that have no room beside running requests: so many bytes are lacking."""
    return SidecarError(
        Reason.BUDGET_IN_USE,
        f"no room for {name}: running requests and models that are in use or pinned leave {size(lacking)} too little "
        "of the memory ceiling; try again when requests have ended, or unload a model",
        metadata={"lacking_bytes": str(lacking)},
        retry_after=RETRY_SECONDS,
    )
