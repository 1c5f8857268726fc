"""
The disk tier of the prefix cache: what was used again is written behind, and read ahead when a prompt needs it again.

    begin() ──> opening ──> open <──────────────┐
                   └──────> off, tried again ───┘   another daemon has the directory, or it cannot be used

The MLX thread owns this object, decides everything and touches no file. The disk's own threads do what they are told:
an invalidated piece is removed after it was written, and before the call that invalidates it returns. Each turn of the
engine does at most one slice: one part that becomes bytes, or one that becomes an array.

Any fault costs time and never a request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

from daemon.kv.disk.catalog import Catalog, Entry
from daemon.kv.disk.codec import Codec
from daemon.kv.disk.format import most_header
from daemon.kv.disk.found import Found
from daemon.kv.disk.limits import Space, WriteLimit, budget
from daemon.kv.disk.log_lines import log_small
from daemon.kv.disk.note import Forgotten
from daemon.kv.disk.piece import Part, Piece, chain
from daemon.kv.disk.reads import Parts, Reads
from daemon.kv.disk.restores import Restore
from daemon.kv.disk.work import DiskWork
from daemon.kv.disk.write_behind import WriteBehind
from daemon.kv.keys import salt_partition
from daemon.kv.nodes import Node
from daemon.kv.place import Place, furthest
from daemon.kv.prefix_cache import PrefixCache
from daemon.kv.spec import PrefixSpec

INDEX_SECONDS = 300.0
INDEX_PIECES = 128
"""
The index is written when a change is so old, or so many pieces have changed. Other pieces are read at a start. At least
as often, the tier looks how much of the disk is free.
"""

REST_SECONDS = 5.0
"""Memory that pieces are read into is kept for so long after a read: new memory costs as much as the disk."""


class DiskTier:
    """
    See the top of this module.

    Args:
        work: The work of the disk's threads.
        wanted: Most bytes, None for `auto`; 0 removes what is there and keeps nothing.
        prefixes: The cache above.
        codec: Turns arrays into bytes and back.
        clock: Seconds that never go back.
        wall: Seconds since 1970, which may jump.
        has_room: Tells whether so many bytes of memory are free, or can be made free.
        alone: Whether no other rank does the same. A fault on the MLX thread of one rank must not pass for less KV.

    Attributes:
        work: The work of the disk's threads.
        open: Whether the directory can be used.
        opening: Whether that is being found out.
        catalog: What lies on the disk.
        restores: Prompts with KV that is being read.
        reads: The pieces that they read.
        prefixes: The cache above.
        codec: Turns arrays into bytes and back.
        clock: Seconds that never go back.
        moved: When the disk last gave a sign, in seconds of the clock.
        has_room: Tells whether so many bytes of memory are free, or can be made free.
        writer: Writes behind.
    """

    def __init__(
        self,
        work: DiskWork,
        wanted: int | None,
        prefixes: PrefixCache,
        codec: Codec,
        clock: Callable[[], float],
        wall: Callable[[], float],
        has_room: Callable[[int], bool] = lambda nbytes: True,
        *,
        alone: bool = True,
    ) -> None:
        self.work = work
        self._alone = alone
        self.open = False
        self.opening = False
        self.catalog = Catalog()
        self.restores: list[Restore] = []
        self.reads = Reads(self._read)
        self.has_room = has_room
        self.prefixes = prefixes
        self.codec = codec
        self.clock = clock
        self.moved = clock()
        self.writer = WriteBehind(prefixes.trie, self.catalog, codec, self._path_used, self._submit, has_room, clock)
        self._wanted = wanted
        self._wall = wall
        self._space, self._taken = Space(0, 0), 0  # at the last look: what is written or removed since keeps their sum
        self._writes = WriteLimit()
        self._used: set[str] = set()
        self._changes = 0
        self._forgotten = Forgotten(self.catalog)
        self._indexed = clock()

    @property
    def enabled(self) -> bool:
        """Whether there is a tier: not if its budget, or that of the cache above, is 0."""
        return self._wanted != 0 and self.prefixes.enabled

    @property
    def budget(self) -> int:
        """Bytes that it may take now, beside files that could not be opened."""
        return self._most(self._space) if self.open else 0

    @property
    def staged(self) -> int:
        """Bytes in memory on their way from the disk or to it, and what is kept for later reads."""
        return self.reads.nbytes + sum(each.copying for each in self.restores) + self.writer.staged + self.work.spare

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return self.open and (any(restore.ready for restore in self.restores) or self.writer.busy)

    @property
    def settled(self) -> bool:
        """Whether all that was invalidated is removed from the disk, if it can be used."""
        return not (self.work.removing or (self.opening and self._forgotten))

    def begin(self) -> None:
        """Open the directory, or remove what is there if the tier is turned off."""
        if not self.enabled:
            self.work.empty()
            return
        self.opening = True
        self.work.open(self._has_opened)

    def step(self, *, prompts: bool = False) -> None:
        """Do one slice: a request that waits comes first. Writing gives way while prompts are computed, for a while."""
        waiting = next((restore for restore in self.restores if restore.ready), None)
        if waiting is not None:
            self._restore(waiting)
        elif self.writer.busy:
            try:
                self.writer.step(prompts=prompts)
            except Exception as error:
                self._failed("encode", error)
                self.writer.clear()

    def tick(self) -> None:
        """Do what is due; called about once a second."""
        now = self.clock()
        if not self.enabled or self.opening:
            return
        if not self.open:
            if self.work.may_open:
                self.begin()
            return
        self.work.remove_again()
        if not self.restores and now - self.moved >= REST_SECONDS:
            self.work.rest()
        due = now - self._indexed >= INDEX_SECONDS
        if (due and (self._changes or self._used)) or self._changes >= max(INDEX_PIECES, len(self.catalog) // 8):
            self._write_index()
        elif due:
            self._indexed = now
            self.work.look(self._has_space)

    def restore(self) -> Restore:
        """Return the restore of one request, not begun."""
        return Restore(self)

    def knows(self, namespace: str, spec: PrefixSpec, model: str) -> None:
        """Note what a namespace consists of, and the name of its model."""
        self.writer.knows(namespace, spec, model)

    def namespace_of(self, model: str, salt: str) -> str:
        """
        Return the namespace on the disk of a model's content and a salt; empty if there is none.

        Of several, it is one that requests had, as a group may have cut the model otherwise before; then the largest.
        """
        names = self.catalog.salted(model, salt_partition(salt))
        return max(names, key=lambda name: (bool(self.writer.spec(name)), self.catalog.pieces_in(name)), default="")

    def restorable(self, namespace: str, path: Sequence[Node], packed: bytes) -> int:
        """Return after how many tokens of a prompt with this path in memory a request can go on."""
        spec = self.writer.spec(namespace)
        return (Place(path) if spec is None else furthest(path, packed, spec)).tokens

    def used(self, namespace: str, path: Sequence[Node], *, kept: bool = False) -> None:
        """Take a path that was used again, or that is kept."""
        if self.open and not self.work.paused:
            self.writer.used(namespace, path, kept=kept)

    def idle(self, namespace: str, path: Sequence[Node], seconds: float) -> bool:
        """Take a path that goes soon, as it was not used for so long; False if it should be offered again later."""
        return not (self.opening or self.work.paused) and (not self.open or self.writer.idle(namespace, path, seconds))

    def reused(self, tokens: int) -> None:
        """Count tokens of a request that came from the disk."""
        self.work.counters.hits += tokens > 0
        self.work.counters.tokens_reused += tokens

    def forget(self, accept: Callable[[str], bool], name: str = "") -> None:
        """Forget the namespaces that `accept` names, of the models that wrote under a name or of all. See `settled`."""
        self._stop(accept)
        self._forget(lambda: self.catalog.select(accept, name))

    def forget_prefix(self, namespace: str, keys: Sequence[bytes]) -> None:
        """Forget all prompts that begin with some blocks; without any, the whole namespace. See `settled`."""
        self._stop(lambda each: each == namespace)
        hashes = chain(namespace, keys)
        self._forget(lambda: self.catalog.beginning_with(namespace, hashes))

    def touched(self, entries: Iterable[Entry]) -> None:
        """Note that pieces are used now."""
        self._used.update(entry.piece.name for entry in self.catalog.touch(entries, self._wall()))

    def _read(self, entry: Entry, then: Callable[[Parts], None]) -> None:
        """Read a piece; one that is damaged or gone is removed with all that need it."""

        def there() -> bool:
            return self.catalog.get(entry.piece.name) is entry

        def arrived(parts: Parts, lost: bool) -> None:
            self.moved = self.clock()
            if lost and there():
                self._remove(self.catalog.drop([entry]))
            then(parts)

        self.work.read(entry.piece, arrived, there)

    def _restore(self, restore: Restore) -> None:
        try:
            restore.step()
        except Exception as error:
            self._failed("restore", error)
            restore.close()
        if restore in self.restores:  # the others have the next turns
            self.restores.append(self.restores.pop(self.restores.index(restore)))

    def _failed(self, kind: str, error: Exception) -> None:
        """Note a fault of the MLX thread. Unless it lies in what a file holds, other ranks may not have it."""
        self.work.note_fault(kind, error)
        if not (self._alone or isinstance(error, ValueError)):
            raise error

    def _has_opened(self, found: Found | Exception) -> None:
        self.opening = False
        if not isinstance(found, Exception):
            self.open = True
            self._writes = WriteLimit.of(found.hours)
            self._remove([*self.catalog.fill(found.pieces), *found.orphans])
            self._forget_noted(found.noted)
            self._has_space(found.space)
            log_small(found, self._wanted, self._most)
        for restore in list(self.restores):
            restore.read_ahead()

    def _most(self, space: Space) -> int:
        left = self.work.left_bytes
        return max(0, budget(self._wanted, self._taken + left, space) - left)

    def _forget(self, chosen: Callable[[], Iterable[Entry]]) -> None:
        """Remove pieces; those of a directory that cannot be used now are removed as soon as it can be used."""
        if self.open:
            self._remove(self.catalog.drop(chosen()), lasting=True)
        elif self.enabled:
            self.work.note()
            self._forgotten.add(chosen)

    def _forget_noted(self, by_another: bool) -> None:
        """Remove what was invalidated while the directory could not be used; if another process noted it, all."""
        if by_another or self._forgotten:
            names = self._forgotten.drop(everything=by_another)
            self._changes += len(names)
            self.work.remove_noted(names)

    def _stop(self, accept: Callable[[str], bool]) -> None:
        """Neither write nor restore what is being forgotten."""
        self.writer.forget(accept)
        for restore in list(self.restores):
            if accept(restore.namespace):
                restore.close()

    def _path_used(self, hashes: Sequence[bytes]) -> None:
        self.touched(self.catalog.path(hashes)[-1:])

    def _submit(self, piece: Piece, parts: list[Part], nbytes: int, idle: float | None) -> bool:
        """
        Take a piece to write, if the limits allow it, and tell whether they do.

        A piece that was used once and is idle pushes nothing out, and leaves half of a day's writes to others.
        """
        size = nbytes + most_header(piece, len(parts))
        most, now = self.budget, self._wall()
        daily = most if idle is None else most // 2
        if size > most or not self._writes.allows(size, daily, now) or self.work.paused:
            return False
        above = self.catalog.holder(piece.parent)
        if idle is None:
            self._remove(self.catalog.shrink(most - size, () if above is None else [above]))
        if self.catalog.nbytes + size > most:
            return False
        entry = self.catalog.add(replace(piece, nbytes=size), now - (idle or 0.0), ready=False)
        if entry is None:
            return False
        self._writes.wrote(size, now)
        self.writer.sent(size)
        self.work.write(piece, parts, partial(self._has_written, entry, size))
        return True

    def _has_written(self, entry: Entry, estimate: int, size: int | None) -> None:
        self.writer.over(estimate)
        there = self.catalog.get(entry.piece.name) is entry
        if size is None:
            self.writer.clear()
            if there:
                self._remove(self.catalog.drop([entry]))
            return
        self._writes.wrote(size - entry.piece.nbytes, self._wall())
        self._changes += 1
        if there:
            self.catalog.written(entry, size)

    def _remove(self, names: Sequence[str], *, lasting: bool = False) -> None:
        if self.open and (names or lasting):
            self._changes += len(names)
            self.work.remove(names, lasting=lasting)

    def _write_index(self) -> None:
        """Write the index and the times of use; it also tells what is free on the disk."""
        self._changes, self._indexed = 0, self.clock()
        entries = [entry for entry in self.catalog if entry.ready]
        times = [(entry.piece.name, entry.used) for entry in entries if entry.piece.name in self._used]
        self._used.clear()
        self.work.write_index([entry.piece for entry in entries], self._writes.pairs, times, self._has_space)

    def _has_space(self, space: Space) -> None:
        """Take what is free on the disk, and give back what it has no room for."""
        self._space, self._taken = space, sum(entry.piece.nbytes for entry in self.catalog if entry.ready)
        self._remove(self.catalog.shrink(self.budget))
