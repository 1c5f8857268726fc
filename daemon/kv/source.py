"""Sources: where the prefix cache copies KV from."""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol

from daemon.kv.nodes import Checkpoint, Extent


class NotHeldError(ValueError):
    """A source does not hold the tokens asked for (any more)."""


class Source(Protocol):
    """KV that can be copied into the cache: that of a live request, or a snapshot that somebody kept."""

    def pack(self, group: int, start: int, stop: int) -> Extent:
        """
        Copy blocks `start` to `stop` of one layer group into an evaluated extent.

        Raises:
            NotHeldError: If it does not hold them (any more).
        """

    def checkpoint(self, tokens: int) -> Checkpoint | None:
        """Return the state of the recurrent layers after exactly so many tokens; None if it is not held."""


class Resume(Enum):
    """
    Whether a store makes the end of its tokens a position that requests can go on from.

    Where every layer looks back at everything, every block is one anyway.
    """

    NO = auto()
    PASSING = auto()
    """Until a later store of the same prompt: keeps what a window is about to forget."""
    YES = auto()
