"""
Restores: while a request waits, what its prompt has on the disk is read ahead and copied into the prefix cache.

    begin() ──> reads some pieces ahead ──> go(): its model is loaded ──> a slice for each turn ──> over
                                                  └─ over: nothing to gain, or the disk has given no sign for too long

A request then finds its prefix in memory as any other. So a fault of the disk, at any moment, only means that less is
found: the rest is computed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from daemon.kv.disk.catalog import Entry, Plan
from daemon.kv.disk.piece import Part, Piece, chain
from daemon.kv.keys import BLOCK_TOKENS, block_keys, pack
from daemon.kv.spec import KVSource, PrefixSpec, Resume
from daemon.shared.slices import Sliced

if TYPE_CHECKING:
    from types import TracebackType

    from daemon.kv.disk.tier import DiskTier

STALL_SECONDS = 2.0
"""A request waits so long for a sign of the disk; then it computes what is missing."""

AHEAD_BYTES = 32 << 20
"""Bytes read ahead for one request."""

STAGED_BYTES = 128 << 20
"""Bytes read ahead for all requests."""


@dataclass(slots=True)
class _Staged:
    """A piece that was read."""

    entry: Entry
    parts: Sequence[Part]


class Restore:
    """
    What one prompt has on the disk, on its way into memory. A context manager: at its end nothing more is read.

    Attributes:
        in_memory: Tokens that could be reused without the disk; None if nothing was restored.
        staged: Bytes that were read and are not copied, or are being read.
    """

    def __init__(self, tier: DiskTier) -> None:
        self.in_memory: int | None = None
        self.staged = 0
        self.namespace = ""
        self._tier = tier
        self._tokens: Sequence[int] = ()
        self._find: Callable[[], str] | None = None
        self._plan: Plan | None = None
        self._hashes: Sequence[bytes] = ()
        self._unread: deque[Entry] = deque()
        self._read: deque[_Staged] = deque()
        self._reading = False
        self._spec: PrefixSpec | None = None
        self._decoding: Sliced[KVSource] | None = None
        self._moved = 0.0
        self._closed = False

    def __enter__(self) -> Restore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def begin(self, tokens: Sequence[int], find: Callable[[], str]) -> None:
        """
        Begin to read ahead.

        Args:
            tokens: The prompt.
            find: Returns the namespace on the disk that the prompt may be found in; empty if there is none.
        """
        if self._find is None and not self._closed:
            self._tokens, self._find = tokens, find
            self._tier.restores.append(self)
            self.read_ahead()

    def go(self, namespace: str, spec: PrefixSpec) -> None:
        """Copy into the prefix cache what is read, from now on: the model is loaded, and its namespace is known."""
        self._moved = self._tier.clock()
        if self._plan is not None and namespace != self.namespace:
            self.close()
        self._spec = spec

    def over(self) -> bool:
        """Whether nothing more will come; a call waits for this."""
        if self._closed or self._find is None:
            return True
        if self._tier.clock() - max(self._moved, self._tier.moved) > STALL_SECONDS:
            self._tier.work.told("slow", TimeoutError())
            self.close()
        return self._closed

    def close(self) -> None:
        """Read and copy no more; harmless twice."""
        if not self._closed:
            self._closed = True
            self._unread.clear()
            self._read.clear()
            self._decoding = None
            self.staged = 0
            if self in self._tier.restores:
                self._tier.restores.remove(self)

    def read_ahead(self) -> None:
        """Read the next piece, if the tier is open and there is room for it."""
        if self._plan is None and not self._begin():
            return
        if self._reading or self._closed or not self._unread:
            return
        waits = self._spec is not None and not self._read
        size = self._unread[0].piece.nbytes
        if waits or (self.staged + size <= AHEAD_BYTES and self._tier.staged + size <= STAGED_BYTES):
            self._reading = True
            self.staged += size
            self._tier.read(self._unread.popleft(), self._arrived)

    @property
    def ready(self) -> bool:
        """Whether `step` has something to do."""
        return self._spec is not None and bool(self._read)

    def step(self) -> None:
        """Copy one slice into the prefix cache."""
        assert self._spec is not None
        staged = self._read[0]
        if self._decoding is None:
            self._decoding = self._tier.codec.decoded(staged.parts)
        self._tier.moved = self._tier.clock()
        try:
            next(self._decoding)
        except StopIteration as end:
            self._read.popleft()
            self._decoding = None
            self.staged -= staged.entry.piece.nbytes
            self._store(staged.entry.piece, end.value, self._spec)
            self.read_ahead()
            self._end_if_done()

    def _begin(self) -> bool:
        """Decide what to read, as soon as the disk is open; False before."""
        if not self._tier.open:
            if not self._tier.opening:
                self.close()
            return False
        assert self._find is not None
        self.namespace = self._find()
        tier, keys, packed = self._tier, block_keys(self._tokens[:-1]), pack(self._tokens[:-1])
        self._hashes = hashes = chain(self.namespace, keys) if self.namespace else []
        path = tier.prefixes.trie.walk(self.namespace, keys)
        self._plan = Plan()
        if hashes:
            self.in_memory = tier.restorable(self.namespace, path, packed)
            self._plan = tier.catalog.plan(hashes, packed, len(path), self.in_memory)
        if not self._plan.entries or self._plan.tokens < tier.prefixes.min_prefix_len:
            self.in_memory = None
            self.close()
            return False
        tier.touched(self._plan.entries)
        self._unread.extend(self._plan.entries)
        return True

    def _arrived(self, entry: Entry, parts: Sequence[Part] | None) -> None:
        """Take a piece that was read; without it, all behind it is of no use."""
        self._reading = False
        if self._closed:
            return
        if parts is None:
            self._unread.clear()
            self.staged -= entry.piece.nbytes
            self._end_if_done()
            return
        self._read.append(_Staged(entry, parts))
        self.read_ahead()

    def _store(self, piece: Piece, source: KVSource, spec: PrefixSpec) -> None:
        """Store a piece in the prefix cache, as if it had just been computed."""
        assert self._plan is not None
        # A piece may go on as another prompt does.
        stop = min(piece.reach(self._hashes), self._plan.blocks)
        tokens = self._tokens[: self._plan.tokens if piece.tail else stop * BLOCK_TOKENS]
        prefixes = self._tier.prefixes
        prefixes.store(self.namespace, tokens, spec, source, resume=Resume.YES if piece.resume else Resume.NO)
        if len(prefixes.trie.walk(self.namespace, block_keys(tokens))) < stop:
            self.close()  # no room

    def _end_if_done(self) -> None:
        if not (self._unread or self._read or self._reading):
            self.close()
