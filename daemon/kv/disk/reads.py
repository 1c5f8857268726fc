"""
Reads of pieces from the disk: each is read once, however many restores wait for it, and held until none needs it.

    take() ──> being read ──> held ──> the last give_back(): gone
                    └─> it cannot be read: gone; each that waits for it is told None
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from daemon.kv.disk.catalog import Entry
from daemon.kv.disk.piece import Part

Parts = Sequence[Part] | None
"""The parts of a piece; None if it cannot be read."""

Taken = Callable[[Entry, Parts], None]


@dataclass(slots=True)
class _Read:
    """
    A piece that is read or held.

    Attributes:
        parts: Its parts, when they are there.
        users: How many restores have taken it and not given it back.
        waiting: Called when it is there.
    """

    parts: Parts = None
    users: int = 0
    waiting: list[Taken] = field(default_factory=list)


class Reads:
    """
    See the top of this module.

    Args:
        read: Reads a piece, then calls the function that it is given.
    """

    def __init__(self, read: Callable[[Entry, Callable[[Parts], None]], None]) -> None:
        self._read = read
        self._reads: dict[Entry, _Read] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all pieces that are held or being read."""
        return sum(entry.piece.nbytes for entry in self._reads)

    def take(self, entry: Entry, then: Taken) -> Parts:
        """Return the parts of a piece if they are held; else None, and `then` is called when they are there."""
        read = self._reads.get(entry)
        if read is None:
            read = self._reads[entry] = _Read()
            self._read(entry, partial(self._arrived, entry))
        read.users += 1
        if read.parts is None:
            read.waiting.append(then)
        return read.parts

    def give_back(self, entry: Entry) -> None:
        """Note that a restore does not need a piece that it took. A piece that could not be read is not given back."""
        read = self._reads[entry]
        read.users -= 1
        # Bytes that are being read take memory even if no restore waits for them any more.
        if not read.users and read.parts is not None:
            del self._reads[entry]

    def _arrived(self, entry: Entry, parts: Parts) -> None:
        read = self._reads[entry]
        read.parts, waiting, read.waiting = parts, read.waiting, []
        if parts is None or not read.users:
            del self._reads[entry]
        for then in waiting:
            then(entry, parts)
