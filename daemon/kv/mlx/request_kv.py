"""Live KV: the cache of a running request as a source of the prefix cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from daemon.kv.mlx.adapters import arrays
from daemon.kv.mlx.layout import Layout
from daemon.kv.nodes import Checkpoint, Extent


@dataclass(frozen=True, slots=True)
class Boundary:
    """
    The state of recurrent layers when a sequence last was at the end of a block: there is no way back to it later.

    Attributes:
        tokens: Tokens that it sums up.
        states: The arrays of each layer.
    """

    tokens: int
    states: arrays.States


class RequestKV:
    """
    Copies KV out of a request's cache.

    Args:
        layout: That of its model.
        caches: One cache for each layer.
        tokens: How many tokens they hold.
        boundary: The state at the last end of a block, where the layout has any.

    Raises:
        RuntimeError: If a layer holds another number of tokens.
    """

    def __init__(self, layout: Layout, caches: Sequence[Any], tokens: int, boundary: Boundary | None = None) -> None:
        layout.check_length(caches, tokens)
        self._layout = layout
        self._caches = caches
        self._tokens = tokens
        self._boundary = boundary

    def pack(self, group: int, start: int, stop: int) -> Extent:
        """Copy blocks of one layer group; see `Source.pack`."""
        return self._layout.pack(self._caches, group, start, stop)

    def checkpoint(self, tokens: int) -> Checkpoint | None:
        """Return the state after exactly so many tokens; None if it is not held."""
        if tokens == self._tokens:
            return arrays.pack(self._layout.state(self._caches))
        if self._boundary is not None and tokens == self._boundary.tokens:
            return arrays.pack(self._boundary.states)
        return None
