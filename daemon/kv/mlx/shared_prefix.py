"""
A prefix that several running sequences read: one contiguous copy of its KV, whatever the number of its readers.

Prefixes form a tree. Each has the KV of some tokens behind those of its parent, so that readers of a long prefix share
its beginning with readers of a shorter one:

    tokens 0 .. 8191          8192 .. 12287
    [ root ] <--------------- [ child ]        a sequence reads one of them, and with it all above
       ^                         ^
    readers of 8 k            readers of 12 k

The tree changes without a copy. `split` cuts a prefix in two views of the same arrays, where a reader leaves it in the
middle. The last reader that drops a prefix frees it: caches refer to it, and nothing else does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

Arrays = tuple[mx.array, mx.array]
"""Keys and values, [1, heads, tokens, width] each."""


@dataclass(frozen=True, eq=False, slots=True)
class Memory:
    """
    Buffers that prefixes are views of; those that were one prefix once have them in common.

    Attributes:
        nbytes: Their bytes, with the room behind the prefix.
    """

    nbytes: int


class SharedPrefix:
    """
    KV of tokens `start` to `stop` of all layers with full attention.

    Args:
        start: The first token.
        stop: The token after the last.
        layers: Keys and values of each layer, by the number of its cache in the layout.
        memory: The buffers that they are in.
        parent: The prefix of the tokens before; None if there are none.
    """

    __slots__ = ("layers", "memory", "parent", "start", "stop")

    def __init__(
        self, start: int, stop: int, layers: Mapping[int, Arrays], memory: Memory, parent: SharedPrefix | None = None
    ) -> None:
        self.start = start
        self.stop = stop
        self.layers = dict(layers)
        self.memory = memory
        self.parent = parent

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedPrefix:
        """Return itself: a copied cache reads the same prefix."""
        return self

    @property
    def nbytes(self) -> int:
        """Bytes of its tokens."""
        return sum(array.nbytes for arrays in self.layers.values() for array in arrays)

    @property
    def path(self) -> list[SharedPrefix]:
        """All prefixes that its readers read, the first tokens first."""
        before = [] if self.parent is None else self.parent.path
        return [*before, self]

    @property
    def root(self) -> SharedPrefix:
        """The prefix of the first tokens."""
        return self if self.parent is None else self.parent.root

    def split(self, at: int) -> SharedPrefix:
        """Cut it before token `at`, and return the part before, which becomes its parent. All readers go on."""
        tokens = at - self.start
        front = {layer: (keys[:, :, :tokens], values[:, :, :tokens]) for layer, (keys, values) in self.layers.items()}
        back = {layer: (keys[:, :, tokens:], values[:, :, tokens:]) for layer, (keys, values) in self.layers.items()}
        mx.eval(*front.values(), *back.values())
        self.parent = SharedPrefix(self.start, at, front, self.memory, self.parent)
        self.start, self.layers = at, back
        return self.parent
