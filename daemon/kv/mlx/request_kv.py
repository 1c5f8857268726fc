"""The KV cache of a running request, as a source that the prefix cache copies from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from daemon.kv.mlx import checkpoints
from daemon.kv.mlx.layout import Layout
from daemon.kv.nodes import Checkpoint, Extent


@dataclass(frozen=True, slots=True)
class Boundary:
    """
    The states of recurrent layers at the last end of a block that a sequence passed.

    It is kept because a state cannot go back: it sums up all tokens so far.

    Attributes:
        tokens: Tokens that it sums up.
        states: The arrays of each layer.
    """

    tokens: int
    states: checkpoints.States


class RequestKV:
    """
    Copies KV out of a request's cache.

    Args:
        layout: Layout of its model.
        caches: One cache for each layer.
        tokens: How many tokens they hold.
        boundary: The states at the last end of a block, if the layout has recurrent layers.

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
        """Copy blocks of one layer group; see `KVSource.pack`."""
        return self._layout.pack(self._caches, group, start, stop)

    def tail(self, group: int, first: int, last: int) -> Extent:
        """Copy tokens of one layer group; see `KVSource.tail`."""
        return self._layout.tail(self._caches, group, first, last)

    def checkpoint(self, tokens: int) -> Checkpoint | None:
        """Return the states after exactly `tokens` tokens; None if they are not held."""
        if tokens == self._tokens:
            return checkpoints.pack(self._layout.state(self._caches))
        if self._boundary is not None and tokens == self._boundary.tokens:
            return checkpoints.pack(self._boundary.states)
        return None
