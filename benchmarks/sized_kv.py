"""KV and files of the disk tier that have sizes and no bytes, for simulations of the policies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from daemon.kv.disk.files import Files
from daemon.kv.disk.found import Found
from daemon.kv.disk.limits import Space
from daemon.kv.disk.piece import Part, Piece
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.nodes import Checkpoint, Extent, Node
from daemon.kv.spec import KVSource, LayerGroup, PrefixSpec
from daemon.shared.slices import LONG, Sliced

BLOCK_BYTES, STATE_BYTES = 65_000 * BLOCK_TOKENS, 150_000_000
SPEC = PrefixSpec((LayerGroup(BLOCK_BYTES),), STATE_BYTES)
DISK = Space(1000 * 10**9, 900 * 10**9)


class Sized(bytes):
    """Bytes that only have a length."""

    nbytes: int

    @classmethod
    def of(cls, nbytes: int) -> Sized:
        """Return so many bytes."""
        sized = cls()
        sized.nbytes = nbytes
        return sized

    def __len__(self) -> int:
        return self.nbytes


class Source:
    """KV of any tokens."""

    def pack(self, group: int, start: int, stop: int) -> Extent:
        """Return blocks."""
        return Extent(group, (stop - start) * BLOCK_BYTES, 1, start, stop - start)

    def tail(self, group: int, first: int, last: int) -> Extent:
        """Return a tail."""
        return Extent(group, (last - first) * BLOCK_BYTES // BLOCK_TOKENS, 1, last // BLOCK_TOKENS, 1)

    def checkpoint(self, tokens: int) -> Checkpoint | None:
        """Return the state."""
        return Checkpoint(tokens, STATE_BYTES, 1)


class Codec:
    """Turns KV without bytes into parts that have a length."""

    def blocks(self, nodes: Sequence[Node], spec: PrefixSpec) -> Iterator[Part]:
        """Yield blocks."""
        yield Part({}, Sized.of(len(nodes) * spec.block_bytes))

    def resume(self, path: Sequence[Node], spec: PrefixSpec) -> Iterator[Part]:
        """Yield the state."""
        yield Part({}, Sized.of(spec.state_bytes))

    def decoded(self, parts: Sequence[Part]) -> Sliced[KVSource]:
        """Return a source."""
        yield LONG
        return Source()


class Names(Files):
    """The names of the files of a tier."""

    def __init__(self) -> None:
        super().__init__(Path("/nowhere"))
        self.pieces: dict[str, tuple[Piece, float]] = {}
        self.hours: list[list[int]] = []

    def open(self) -> None:
        """Do nothing."""

    def space(self) -> Space:
        """Return the size of the disk."""
        return DISK

    def scan(self, now: float) -> Found:
        """Return the pieces."""
        return Found(list(self.pieces.values()), self.hours, DISK)

    def write(self, piece: Piece, parts: Sequence[Part]) -> int:
        """Note a piece."""
        size = sum(len(part.data) for part in parts)
        self.pieces[piece.name] = (replace(piece, nbytes=size), 0.0)
        return size

    def read(self, piece: Piece) -> list[Part]:
        """Return a part that has a length."""
        return [Part({}, Sized.of(piece.nbytes))]

    def remove(self, names: Any, *, lasting: bool = False) -> None:
        """Forget pieces."""
        for name in names:
            self.pieces.pop(name, None)

    def used(self, times: Any) -> None:
        """Note times of use."""
        self.pieces.update({name: (self.pieces[name][0], time) for name, time in times if name in self.pieces})

    def write_index(self, pieces: Sequence[Piece], hours: Sequence[Sequence[int]]) -> int:
        """Note what was written by the hour."""
        self.hours = [list(pair) for pair in hours]
        return 0


def copied(extent: Extent, first: int, last: int) -> Extent:
    """Copy blocks of an extent into a new extent."""
    return Extent(extent.payload, (last - first) * BLOCK_BYTES, 1, extent.start + first, last - first)
