"""The contract between the disk tier and the arrays: KV as bytes and back, in slices that fit between steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from daemon.kv.disk.piece import Part
from daemon.kv.nodes import Node
from daemon.kv.spec import KVSource, PrefixSpec
from daemon.shared.slices import Sliced

PART_BYTES = 4 << 20
"""Bytes of a part: copying them takes about a millisecond, so that running streams do not notice."""

PIECE_BYTES = 16 << 20
"""Bytes of a piece with blocks: a file for each few blocks would cost more to find and to store than to read."""


class Codec(Protocol):
    """Turns evaluated arrays into bytes and back, on the thread that owns them. Each `next` is one slice."""

    def blocks(self, nodes: Sequence[Node], spec: PrefixSpec) -> Iterator[Part]:
        """Yield the KV of consecutive blocks, of all layers with full attention."""

    def resume(self, path: Sequence[Node], spec: PrefixSpec) -> Iterator[Part]:
        """Yield the windows and the recurrent states that a request needs to go on after a path."""

    def decoded(self, parts: Sequence[Part]) -> Sliced[KVSource]:
        """Return the KV of a piece, as a source that the prefix cache copies from."""
