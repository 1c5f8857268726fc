"""The interface of a KV source: the cache of a running request, from which the prefix cache copies blocks."""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol

from daemon.kv.nodes import Checkpoint, Extent


class NotHeldError(ValueError):
    """A source does not hold these tokens, or no longer: a window has moved past them."""


class KVSource(Protocol):
    """KV that can be copied into the prefix cache: of a running request, or of a state noted earlier."""

    def pack(self, group: int, start: int, stop: int) -> Extent:
        """
        Copy blocks `start` to `stop` of one layer group into an evaluated extent.

        Raises:
            NotHeldError: If it does not hold them, or no longer.
        """

    def checkpoint(self, tokens: int) -> Checkpoint | None:
        """Return the state of the recurrent layers after exactly `tokens` tokens; None if it is not held."""


class Resume(Enum):
    """
    Whether a store makes the end of its tokens a resume point, after which requests can go on.

    With full attention in every layer, the end of every block is a resume point anyway.
    """

    NO = auto()
    PASSING = auto()
    """A resume point until a later store of the same prompt; it saves KV that a window is about to forget."""
    YES = auto()
