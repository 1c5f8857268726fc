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
from daemon.kv.disk.piece import Piece, chain
from daemon.kv.disk.reads import Parts
from daemon.kv.keys import BLOCK_TOKENS, block_keys, pack
from daemon.kv.nodes import Checkpoint, Extent, Node
from daemon.kv.spec import KVSource, PrefixSpec, Resume
from daemon.shared.slices import Sliced

if TYPE_CHECKING:
    from types import TracebackType

    from daemon.kv.disk.tier import DiskTier

STALL_SECONDS = 2.0
"""A request waits so long for a sign of the disk; then it computes what is missing."""

AHEAD_BYTES = 48 << 20
"""Bytes read ahead for one request."""

STAGED_BYTES = 128 << 20
"""Bytes read ahead for all requests."""

READS = 3
"""Pieces of a request that are with the disk's threads, so that each has the next one when it is done with one."""


@dataclass(slots=True)
class _Staged:
    """
    A piece that was read, or is being read.

    Attributes:
        entry: The piece.
        parts: Its parts, when they are there.
    """

    entry: Entry
    parts: Parts


@dataclass(frozen=True, slots=True)
class _Billed(KVSource):
    """
    A piece with extents that count as computed ones do: on a rank with fewer layers, as those of the largest.

    Attributes:
        source: The piece.
        spec: What a prefix consists of.
    """

    source: KVSource
    spec: PrefixSpec

    def pack(self, group: int, start: int, stop: int) -> Extent:
        """Copy blocks."""
        extent = self.source.pack(group, start, stop)
        if self.spec.resumes_anywhere:  # others have as many layers on each rank
            extent.nbytes = extent.blocks * self.spec.groups[group].block_bytes
        return extent

    def tail(self, group: int, first: int, last: int) -> Extent:
        """Copy a tail."""
        return self.source.tail(group, first, last)

    def checkpoint(self, tokens: int) -> Checkpoint | None:
        """Return the states of the recurrent layers."""
        return self.source.checkpoint(tokens)


class Restore:
    """
    What one prompt has on the disk, on its way into memory. A context manager: at its end nothing more is read.

    Attributes:
        in_memory: Tokens that could be reused without the disk; None if nothing was restored.
        staged: Bytes that were read and are not copied, or are being read.
        namespace: Digest of the namespace on the disk; empty if there is none.
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
        self._keys: Sequence[bytes] = ()
        self._path: list[Node] = []
        """The blocks of the prompt that were in memory at the last look."""
        self._unread: deque[Entry] = deque()
        self._read: deque[_Staged] = deque()
        self._spec: PrefixSpec | None = None
        self._decoding: Sliced[KVSource] | None = None
        self._moved = 0.0
        self._came = False
        """Whether anything of the plan has come into memory."""
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
        self._spec, self.namespace = spec, namespace
        if self._plan is not None:
            self.read_ahead()  # others may have had the room so far

    def over(self) -> bool:
        """Tell whether nothing more will come, which a call waits for; give up if the disk has long given no sign."""
        if self._closed or self._find is None:
            return True
        if self._tier.clock() - max(self._moved, self._tier.moved) > STALL_SECONDS:
            self._tier.work.note_fault("slow", TimeoutError())
            self.close()
        return self._closed

    def close(self) -> None:
        """Read and copy no more; harmless twice."""
        if not self._closed:
            self._closed = True
            if not self._came:
                self.in_memory = None
            self._decoding = None
            self._drop_read()
            if self in self._tier.restores:
                self._tier.restores.remove(self)

    def read_ahead(self) -> None:
        """Read the next pieces, if the tier is open and there is room for them."""
        if self._plan is None and not self._begin():
            return
        while self._unread and not self._closed and self._may_read(self._unread[0]):
            entry = self._unread.popleft()
            if self._in_memory(entry):
                self._came = True
                continue
            self.staged += entry.piece.nbytes
            self._read.append(_Staged(entry, self._tier.reads.take(entry, self._arrived)))
        if self._plan is not None:
            self._end_if_done()

    @property
    def ready(self) -> bool:
        """Whether `step` has something to do."""
        return self._spec is not None and bool(self._read) and self._read[0].parts is not None

    @property
    def copying(self) -> int:
        """Bytes of the arrays that are being made of a piece: they are in memory beside it."""
        return 0 if self._decoding is None else self._read[0].entry.piece.nbytes

    def step(self) -> None:
        """Copy one slice into the prefix cache."""
        staged = self._read[0]
        assert self._spec is not None
        assert staged.parts is not None
        if self._decoding is None:
            if self._in_memory(staged.entry):  # another request has waited for the same
                self._done_with(staged)
                return
            if not self._tier.has_room(staged.entry.piece.nbytes):
                self.close()  # so there is no room for its arrays beside it
                return
            self._decoding = self._tier.codec.decoded(staged.parts)
        self._tier.moved = self._tier.clock()
        try:
            next(self._decoding)
        except StopIteration as end:
            self._decoding = None
            self._store(staged.entry.piece, _Billed(end.value, self._spec), self._spec)
            self._done_with(staged)

    def _done_with(self, staged: _Staged) -> None:
        """Give the first piece back, and read another."""
        if not self._closed:
            self._came = True
            self._read.popleft()
            self._give_back(staged)
            self.read_ahead()

    def _begin(self) -> bool:
        """Decide what to read, as soon as the disk is open; False before."""
        if not self._tier.open:
            if not self._tier.opening:
                self.close()
            return False
        assert self._find is not None
        if self._spec is None:
            self.namespace = self._find()
        self._keys = keys = block_keys(self._tokens[:-1])
        tier, packed = self._tier, pack(self._tokens[:-1])
        self._hashes = hashes = chain(self.namespace, keys) if self.namespace else []
        path = tier.prefixes.trie.walk(self.namespace, keys)
        self._plan = Plan()
        if hashes:
            self.in_memory = tier.restorable(self.namespace, path, packed)
            self._plan = tier.catalog.plan(hashes, packed, len(path), self.in_memory)
        if not self._plan.entries or self._plan.tokens < tier.prefixes.min_prefix_len:
            self.close()
            return False
        tier.touched(self._plan.entries)
        self._unread.extend(self._plan.entries)
        return True

    def _may_read(self, entry: Entry) -> bool:
        """Whether a piece may be read now. A request whose model is there may have one of any size."""
        size, tier = entry.piece.nbytes, self._tier
        if sum(staged.parts is None for staged in self._read) >= READS:
            return False
        within = self.staged + size <= AHEAD_BYTES and tier.staged + size <= STAGED_BYTES
        needed = self._spec is not None and not self._read
        if not (within or needed):
            return False
        if tier.has_room(size):
            return True
        if needed:
            self.close()  # so there is no room for more prefixes
        return False

    def _stop(self, piece: Piece) -> int:
        """Return the blocks of the prompt up to the end of a piece; it may go on as another prompt does."""
        assert self._plan is not None
        return min(piece.reach(self._hashes), self._plan.blocks)

    def _in_memory(self, entry: Entry) -> bool:
        """Whether the prefix cache has what a piece holds of the prompt."""
        stop = self._stop(entry.piece)
        path = self._look(stop)
        if not entry.piece.resume:
            return len(path) >= stop
        if entry.piece.tail:
            tail = self._tail(path, stop)
            return self._spec is not None and tail is not None and self._spec.resumes_at(tail)
        return self._spec is not None and self._spec.restorable(path[:stop]) >= stop

    def _tail(self, path: Sequence[Node], stop: int) -> Node | None:
        """Return the tail that the plan ends with, if it is in memory."""
        assert self._plan is not None
        key = pack(self._tokens[stop * BLOCK_TOKENS : self._plan.tokens])
        return path[stop - 1].child(key) if 0 < stop <= len(path) else None

    def _look(self, stop: int) -> list[Node]:
        """Return the blocks of the prompt that are in memory, as far as `stop` or farther."""
        if self._path and self._path[-1].parent is None:  # evicted: blocks before it may be gone as well
            self._path.clear()
        self._tier.prefixes.trie.follow(self.namespace, self._path, self._keys[len(self._path) : stop])
        return self._path

    def _arrived(self, entry: Entry, parts: Parts) -> None:
        """Take a piece that was read; without it, all behind it is of no use."""
        staged = next((staged for staged in self._read if staged.entry is entry), None)
        if staged is None:
            return
        staged.parts = parts
        if parts is None:
            self.staged -= entry.piece.nbytes
            behind = list(self._read)[self._read.index(staged) :]
            for each in behind:
                self._read.remove(each)
            for each in behind[1:]:
                self._give_back(each)
            self._unread.clear()
        self.read_ahead()

    def _give_back(self, staged: _Staged) -> None:
        self.staged -= staged.entry.piece.nbytes
        self._tier.reads.give_back(staged.entry)

    def _drop_read(self) -> None:
        self._unread.clear()
        while self._read:
            self._give_back(self._read.popleft())

    def _store(self, piece: Piece, source: KVSource, spec: PrefixSpec) -> None:
        """Store a piece in the prefix cache, as if it had just been computed; not without the blocks before it."""
        assert self._plan is not None
        if len(self._look(piece.start)) < piece.start:
            self.close()  # they were evicted meanwhile
            return
        stop = self._stop(piece)
        tokens = self._tokens[: self._plan.tokens if piece.tail else stop * BLOCK_TOKENS]
        prefixes = self._tier.prefixes
        prefixes.store(self.namespace, tokens, spec, source, resume=Resume.YES if piece.resume else Resume.PART)
        path = self._look(stop)
        if len(path) < stop:
            self.close()  # no room
        elif piece.resume:
            end = self._tail(path, stop) if piece.tail else path[stop - 1]
            if end is not None and end.checkpoint is not None:
                end.checkpoint.below = True

    def _end_if_done(self) -> None:
        if not (self._unread or self._read):
            self.close()
