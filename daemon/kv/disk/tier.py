"""
The disk tier of the prefix cache: what was used again is written behind, and read ahead when a prompt needs it again.

    begin() ──> opening ──> open <──────────────┐
                   └──────> off, tried again ───┘   another daemon has the directory, or it cannot be used

The MLX thread owns this object, decides everything and touches no file. The disk's own thread (`run`) does what it is
told in order: an invalidated piece is removed after it was written, and before the call that invalidates it returns.
Each turn of the engine does at most one slice: one part that becomes bytes, or one that becomes an array.

Any fault costs time and never a request. It is logged once, until the same work succeeds again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

import structlog

from daemon.kv.disk.catalog import Catalog, Entry
from daemon.kv.disk.codec import Codec
from daemon.kv.disk.files import Files, Found
from daemon.kv.disk.limits import Space, WriteLimit, budget
from daemon.kv.disk.piece import Part, Piece, chain
from daemon.kv.disk.restores import Restore, staged
from daemon.kv.disk.write_behind import WriteBehind
from daemon.kv.keys import salt_partition
from daemon.kv.nodes import Node
from daemon.kv.prefix_cache import PrefixCache
from daemon.kv.spec import PrefixSpec

log = structlog.get_logger()

RETRY_SECONDS = 30.0
"""Time until a directory that could not be used is tried again, and a disk that failed is written to again."""

INDEX_SECONDS = 300.0
INDEX_PIECES = 128
"""The index is written when a change is so old, or so many pieces have changed. Other pieces are read at a start."""

HEAD_BYTES = 16_384
"""Room for a header; a chain of hashes comes on top."""

T = TypeVar("T")


class Run(Protocol):
    """Runs work on the disk's thread, in order, then `then` with its result or its error on the MLX thread."""

    def __call__(self, work: Callable[[], T], then: Callable[[T | Exception], None]) -> None: ...


@dataclass(slots=True)
class DiskCounters:
    """Totals since the start."""

    hits: int = 0
    tokens_reused: int = 0
    written_bytes: int = 0
    read_bytes: int = 0
    faults: int = 0


class DiskTier:
    """
    See the top of this module.

    Args:
        files: The directory.
        wanted: Most bytes, None for `auto`; 0 removes what is there and keeps nothing.
        prefixes: The cache above.
        codec: Turns arrays into bytes and back.
        run: Runs work on the disk's thread.
        clock: Seconds that never go back.
        wall: Seconds since 1970, which may jump.

    Attributes:
        open: Whether the directory can be used.
        opening: Whether that is being found out.
        catalog: What lies on the disk.
        restores: Prompts whose KV is being read.
        counters: Totals since the start.
        most_blocks: Blocks of the longest prompt that is looked up.
    """

    def __init__(
        self,
        files: Files,
        wanted: int | None,
        prefixes: PrefixCache,
        codec: Codec,
        run: Run,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self.open = False
        self.opening = False
        self.catalog = Catalog()
        self.restores: list[Restore] = []
        self.counters = DiskCounters()
        self.prefixes = prefixes
        self.most_blocks = prefixes.limits.blocks
        self.codec = codec
        self.clock = clock
        self._files = files
        self._wanted = wanted
        self._run = run
        self._wall = wall
        self._space = Space(0, 0)
        self._writes = WriteLimit()
        self._writer = WriteBehind(prefixes.trie, self.catalog, codec, self._touched, self._submit)
        self._used: set[str] = set()
        self._changes = 0
        self._indexed = self._tried = self._paused_until = clock()
        self._told: set[str] = set()
        self._removing = 0

    @property
    def enabled(self) -> bool:
        """Whether there is a tier: not if its budget, or that of the cache above, is 0."""
        return self._wanted != 0 and self.prefixes.enabled

    @property
    def budget(self) -> int:
        """Bytes that it may take now."""
        return budget(self._wanted, self.catalog.nbytes, self._space) if self.open else 0

    @property
    def staged(self) -> int:
        """Bytes that were read ahead."""
        return staged(self.restores)

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return self.open and (any(restore.ready for restore in self.restores) or self._writer.busy)

    @property
    def settled(self) -> bool:
        """Whether all that was invalidated is removed from the disk."""
        return not (self._removing or self.opening)

    def begin(self) -> None:
        """Open the directory, or remove what is there if the tier is turned off."""
        if not self.enabled:
            self._run(self._emptied, lambda _: None)
            return
        self.opening, self._tried = True, self.clock()
        self._run(self._opened, self._has_opened)

    def step(self) -> None:
        """Do one slice: a request that waits comes first."""
        waiting = next((restore for restore in self.restores if restore.ready), None)
        if waiting is not None:
            try:
                waiting.step()
            except Exception as error:
                self.told("kv_disk_restore_failed", "restore", error)
                waiting.close()
            # The next one has the next turn.
            if waiting in self.restores:
                self.restores.append(self.restores.pop(self.restores.index(waiting)))
        elif self._writer.busy and self.open:
            try:
                self._writer.step()
            except Exception as error:
                self.told("kv_disk_write_failed", "encode", error)
                self._writer.clear()

    def tick(self) -> None:
        """Do what is due; called about once a second."""
        now = self.clock()
        if not self.enabled or self.opening:
            return
        if not self.open:
            if now - self._tried >= RETRY_SECONDS:
                self.begin()
            return
        due = now - self._indexed >= INDEX_SECONDS and (self._changes or self._used)
        if due or self._changes >= max(INDEX_PIECES, len(self.catalog) // 8):
            self._write_index()

    def restore(self) -> Restore:
        """Return the restore of one request, not begun."""
        return Restore(self)

    def knows(self, namespace: str, spec: PrefixSpec, model: str) -> None:
        """Note what a namespace consists of, and the name of its model."""
        self._writer.knows(namespace, spec, model)

    def namespace_of(self, model: str, salt: str) -> str:
        """Return the namespace on the disk of a model's content and a salt, with the most pieces; empty if none."""
        names = self.catalog.salted(model, salt_partition(salt))
        return max(names, key=lambda name: len(self.catalog.select(lambda each: each == name)), default="")

    def restorable(self, namespace: str, path: Sequence[Node]) -> int:
        """Return after how many blocks of a path in memory a request can go on."""
        spec = self._writer.spec(namespace)
        return len(path) if spec is None else spec.restorable(path)

    def used(self, namespace: str, path: Sequence[Node]) -> None:
        """Take a path that was used again, or that is kept."""
        if self.open and self.clock() >= self._paused_until:
            self._writer.used(namespace, path)

    def reused(self, tokens: int) -> None:
        """Count tokens of a request that came from the disk."""
        self.counters.hits += 1
        self.counters.tokens_reused += tokens

    def forget(self, accept: Callable[[str], bool]) -> None:
        """Forget the namespaces that `accept` names. See `settled`."""
        if not self.enabled:
            return
        self._stop(accept)
        self._when_open(lambda: self._remove(self.catalog.drop(self.catalog.select(accept)), lasting=True))

    def forget_prefix(self, namespace: str, keys: Sequence[bytes]) -> None:
        """Forget all prompts that begin with some blocks; without any, the whole namespace. See `settled`."""
        if not self.enabled:
            return
        self._stop(lambda each: each == namespace)
        hashes = chain(namespace, keys)

        def drop() -> None:
            self._remove(self.catalog.drop(self.catalog.beginning_with(namespace, hashes)), lasting=True)

        self._when_open(drop)

    def read(self, entry: Entry, then: Callable[[Entry, Sequence[Part] | None], None]) -> None:
        """Read a piece on the disk's thread."""

        def arrived(result: list[Part] | Exception) -> None:
            if isinstance(result, Exception):
                if self.catalog.get(entry.piece.name) is entry:
                    self.told("kv_disk_read_failed", "read", result)
                    self._remove(self.catalog.drop([entry]))
                then(entry, None)
                return
            self._told.discard("read")
            self.counters.read_bytes += entry.piece.nbytes
            then(entry, result)

        self._run(partial(self._files.read, entry.piece), arrived)

    def touched(self, entries: Iterable[Entry]) -> None:
        """Note that pieces are used now."""
        self._used.update(entry.piece.name for entry in self.catalog.touch(entries, self._wall()))

    def told(self, event: str, kind: str, error: object) -> None:
        """Log a fault, once until the same kind of work succeeds."""
        self.counters.faults += 1
        if kind not in self._told:
            self._told.add(kind)
            log.warning(event, error=str(error) or type(error).__name__)

    def _opened(self) -> Found:
        self._files.open()
        return self._files.scan(self._wall())

    def _emptied(self) -> None:
        if self._files.folder.is_dir():
            self._files.open()
            self._files.remove([*(piece.name for piece, _ in self._files.scan(self._wall()).pieces), "index"])
            self._files.close()

    def _has_opened(self, found: Found | Exception) -> None:
        self.opening = False
        if isinstance(found, Exception):
            self.told("kv_disk_unusable", "open", found)
            for restore in list(self.restores):
                restore.read_ahead()
            return
        self._told.discard("open")
        self.open, self._space = True, found.space
        self._writes = WriteLimit.of(found.hours)
        self._remove(self.catalog.fill(found.pieces))
        self._remove(self.catalog.shrink(self.budget))
        if found.removed:
            log.info("kv_disk_cleaned", files=found.removed)
        for restore in list(self.restores):
            restore.read_ahead()

    def _when_open(self, action: Callable[[], None]) -> None:
        """Do something now, or once the directory is open. If it is not even being opened, there is nothing to do."""
        if self.open:
            action()
        elif self.opening:
            self._removing += 1

            def later(_: object) -> None:
                self._removing -= 1
                if self.open:
                    action()

            self._run(lambda: None, later)  # the thread does its work in order: the scan is over then

    def _stop(self, accept: Callable[[str], bool]) -> None:
        """Neither write nor restore what is being forgotten."""
        self._writer.forget(accept)
        for restore in list(self.restores):
            if accept(restore.namespace):
                restore.close()

    def _touched(self, hashes: Sequence[bytes]) -> None:
        self.touched(self.catalog.path(hashes)[-1:])

    def _submit(self, piece: Piece, parts: list[Part]) -> bool:
        """Take a piece to write, if the limits allow it, and tell whether they do."""
        size = sum(len(part.data) for part in parts) + HEAD_BYTES + 512 * len(parts) + 128 * len(piece.hashes)
        most, now = self.budget, self._wall()
        if size > most or not self._writes.allows(size, most, now) or self.clock() < self._paused_until:
            return False
        above = self.catalog.holder(piece.parent)
        self._remove(self.catalog.shrink(most - size, () if above is None else [above]))
        if self.catalog.nbytes + size > most:
            return False
        entry = self.catalog.add(replace(piece, nbytes=size), now, ready=False)
        if entry is None:
            return False
        self._writes.wrote(size, now)
        self._writer.underway += 1
        self._run(partial(self._files.write, piece, parts), partial(self._has_written, entry))
        return True

    def _has_written(self, entry: Entry, size: int | Exception) -> None:
        self._writer.underway -= 1
        if isinstance(size, Exception):
            self.told("kv_disk_write_failed", "write", size)
            self._paused_until = self.clock() + RETRY_SECONDS
            self._writer.clear()
            if self.catalog.get(entry.piece.name) is entry:
                self._remove(self.catalog.drop([entry]))
            return
        self._told.discard("write")
        self.counters.written_bytes += size
        self._writes.wrote(size - entry.piece.nbytes, self._wall())
        self._changes += 1
        self._space = replace(self._space, free=max(0, self._space.free - size))
        if self.catalog.get(entry.piece.name) is entry:
            self.catalog.written(entry, size)

    def _remove(self, names: Sequence[str], *, lasting: bool = False) -> None:
        if not names and not lasting:
            return
        self._changes += len(names)
        self._removing += lasting

        def removed(result: None | Exception) -> None:
            self._removing -= lasting
            if isinstance(result, Exception):
                self.told("kv_disk_remove_failed", "remove", result)

        self._run(partial(self._files.remove, list(names), lasting=lasting), removed)

    def _write_index(self) -> None:
        """Write the index, the times of use, and look at the disk's free space."""
        self._changes, self._indexed = 0, self.clock()
        entries = [entry for entry in self.catalog if entry.ready]
        times = [(entry.piece.name, entry.used) for entry in entries if entry.piece.name in self._used]
        self._used.clear()
        pieces, hours = [entry.piece for entry in entries], self._writes.pairs

        def written() -> Space:
            self._files.used(times)
            self._files.write_index(pieces, hours)
            return self._files.space()

        def done(space: Space | Exception) -> None:
            if isinstance(space, Exception):
                self.told("kv_disk_write_failed", "index", space)
                return
            self._told.discard("index")
            self._space = space
            self._remove(self.catalog.shrink(self.budget))

        self._run(written, done)
