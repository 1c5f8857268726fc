"""
The work of the disk's threads, as the MLX thread orders it: counted, and its faults logged once.

Files are written and removed in order. Reads run beside that: a request need not wait for what is being written.
A fault is logged once for each kind of work, until that kind succeeds again. After a write that failed, nothing is
written for a while. Files that cannot be removed are tried again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from daemon.kv.disk.files import INDEX, Files
from daemon.kv.disk.found import Found
from daemon.kv.disk.limits import Space
from daemon.kv.disk.log_lines import log_fault, log_scan
from daemon.kv.disk.note import Note
from daemon.kv.disk.piece import Part, Piece
from daemon.kv.disk.reads import Parts
from daemon.kv.disk.troubles import passes
from daemon.shared.machine_faults import pass_on_device_failure
from daemon.shared.readings import agreed

RETRY_SECONDS = 2.0
MOST_RETRY_SECONDS = 60.0
"""
Time until a directory that could not be used is tried again, the first time and at most; it doubles. The engine of a
daemon that was killed lingers for a moment. On ranks of a group, each try scans the directories of all others.
"""

PAUSE_SECONDS = 30.0
"""After a write that failed, nothing is written for so long."""

T = TypeVar("T")


class Run(Protocol):
    """Runs work on a thread of the disk, then `then` with its result or its error on the MLX thread."""

    def __call__(self, what: str, work: Callable[[], T], then: Callable[[T | Exception], None]) -> None:
        """Run it; `what` it is in words, which are the same on each rank of a group."""


@dataclass(slots=True)
class DiskCounters:
    """
    Totals since the start.

    Attributes:
        hits: Requests that reused tokens from the disk.
        tokens_reused: These tokens.
        written_bytes: Bytes of pieces that were written.
        read_bytes: Bytes of pieces that were read.
        faults: Work that failed.
    """

    hits: int = 0
    tokens_reused: int = 0
    written_bytes: int = 0
    read_bytes: int = 0
    faults: int = 0


class DiskWork:
    """
    Gives work to the disk's threads.

    Args:
        files: The directory.
        note: Where invalidations are noted while it cannot be used.
        run: Runs work in order.
        run_read: Runs reads, in any order.
        clock: Seconds that never go back.
        wall: Seconds since 1970, which may jump.

    Attributes:
        counters: Totals since the start.
        removing: Removals that an invalidation waits for.
    """

    def __init__(
        self,
        files: Files,
        note: Note,
        run: Run,
        run_read: Run,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self.counters = DiskCounters()
        self.removing = 0
        self._files = files
        self._note = note
        self._run = run
        self._run_read = run_read
        self._clock = clock
        self._wall = wall
        self._failing: set[str] = set()
        self._paused_until = clock()
        self._retry = RETRY_SECONDS
        self._open_at = clock()
        self._unremoved: set[str] = set()
        self._writing: list[str] = []
        """Names of files that are to be written: a removal before that, which failed, is not tried again."""
        self._removing_again = False
        self._removal_error: Exception | None = None

    @property
    def may_open(self) -> bool:
        """Whether a directory that could not be used is tried again now."""
        return self._clock() >= self._open_at

    @property
    def paused(self) -> bool:
        """Whether a write failed lately."""
        return self._clock() < self._paused_until

    @property
    def left_bytes(self) -> int:
        """Bytes of files that the last scan could not open, and that are on the disk still."""
        return int(agreed(sum(list(self._files.left.values()))))  # a copy, as the disk's thread takes files out

    @property
    def spare(self) -> int:
        """Bytes of memory that are kept for later reads."""
        return int(agreed(self._files.buffers.nbytes))

    def rest(self) -> None:
        """Keep no memory for later reads: none came for a while."""
        self._files.buffers.clear()

    def note_fault(self, kind: str, error: Exception) -> None:
        """Count a fault of a kind of work, and log it if it is the first since that work succeeded."""
        pass_on_device_failure(error)
        self.counters.faults += 1
        if kind not in self._failing:
            self._failing.add(kind)
            log_fault(kind, error, str(self._files.folder))

    def open(self, then: Callable[[Found | Exception], None]) -> None:
        """Open the directory and scan it."""

        def opened() -> Found:
            self._files.open()
            noted = self._note.look()
            found = self._files.scan(self._wall())
            found.noted, found.directory = noted, str(self._files.folder)
            return found

        def done(found: Found | Exception) -> None:
            if self._failed("open", found) or isinstance(found, Exception):
                self._open_at = self._clock() + self._retry
                self._retry = min(2 * self._retry, MOST_RETRY_SECONDS)
            else:
                self._retry = RETRY_SECONDS
                log_scan(found)
            then(found)

        self._run("open", opened, done)

    def empty(self) -> None:
        """Remove all pieces of a directory that is not used any more, if there is one; or note that they are to go."""

        def emptied() -> None:
            if self._files.folder.is_dir():
                try:
                    self._files.open()
                    self._note.look()
                    pieces = self._files.scan(self._wall()).pieces
                    self._files.remove([*(piece.name for piece, _ in pieces), INDEX], lasting=True)
                except OSError:
                    self._note.write()
                    raise
                self._note.clear()
                self._files.close()

        def done(result: Exception | None) -> None:
            self._failed("empty", result)

        self._run("empty", emptied, done)

    def read(self, piece: Piece, then: Callable[[Parts, bool], None], wanted: Callable[[], bool]) -> None:
        """
        Read a piece.

        Args:
            piece: The piece.
            then: Takes its parts, or None if it cannot be read; and whether its file is of no use.
            wanted: Whether it should be there; if not, it is no fault that it cannot be read.
        """

        def done(parts: list[Part] | Exception) -> None:
            if isinstance(parts, Exception):
                if wanted():
                    self.note_fault("read", parts)
                then(None, not passes(parts))
                return
            self._failing.discard("read")
            self.counters.read_bytes += piece.nbytes
            then(parts, False)

        self._run_read(f"read {piece.name}", partial(self._files.read, piece), done)

    def write(self, piece: Piece, parts: Sequence[Part], then: Callable[[int | None], None]) -> None:
        """Write a piece; `then` takes the bytes of its file, or None if that failed."""
        self._unremoved.discard(piece.name)
        self._writing.append(piece.name)

        def done(size: int | Exception) -> None:
            self._writing.remove(piece.name)
            if self._failed("write", size) or isinstance(size, Exception):
                self._paused_until = self._clock() + PAUSE_SECONDS
                then(None)
                return
            self.counters.written_bytes += size
            then(size)

        self._run(f"write {piece.name}", partial(self._files.write, piece, parts), done)

    def remove(self, names: Sequence[str], *, lasting: bool = False) -> None:
        """
        Remove files. With `lasting` an invalidation waits for it, and they stay away even if the machine dies.

        It then also removes what could not be removed before: the catalog cannot tell any more whether that is meant.
        """
        if lasting:
            names = [*names, *self._unremoved]
        self.removing += lasting
        done = partial(self._removed, names=names, lasting=lasting)
        self._run(_removal(names), partial(self._files.remove, list(names), lasting=lasting), done)

    def note(self) -> None:
        """Note an invalidation of a directory that cannot be used, so that it outlives this process."""
        self.removing += 1
        self._run("note", self._note.write, self._removed)

    def remove_noted(self, names: Sequence[str]) -> None:
        """Remove what was invalidated while the directory could not be used; invalidations wait for it."""
        self.removing += 1
        self._run(_removal(names), partial(self._remove_with_note, names), partial(self._removed, names=names))

    def remove_again(self) -> None:
        """Try to remove what could not be removed; after that nothing is left of what was noted."""
        if self._unremoved and not (self.removing or self._removing_again):
            names, self._removing_again = list(self._unremoved), True

            def done(result: Exception | None) -> None:
                self._removing_again = False
                self._removed(result, names, lasting=False)

            self._run(_removal(names), partial(self._remove_with_note, names), done)

    def removal_error(self) -> Exception | None:
        """Return the error of the last removal that an invalidation waited for, once."""
        error, self._removal_error = self._removal_error, None
        return error

    def write_index(
        self,
        pieces: Sequence[Piece],
        hours: Sequence[Sequence[int]],
        times: Sequence[tuple[str, float]],
        then: Callable[[Space], None],
    ) -> None:
        """Write the index and the times of use; `then` takes the size of the disk."""

        def written() -> Space:
            self._files.used(times)
            self._files.write_index(pieces, hours)
            return self._files.space()

        self._run(f"index {len(pieces)}", written, partial(self._has_looked, "index", then))

    def look(self, then: Callable[[Space], None]) -> None:
        """Look how large the disk is, and how much of it is free."""
        self._run("space", self._files.space, partial(self._has_looked, "space", then))

    def _has_looked(self, kind: str, then: Callable[[Space], None], space: Space | Exception) -> None:
        if not self._failed(kind, space) and not isinstance(space, Exception):
            then(space)

    def _remove_with_note(self, names: Sequence[str]) -> None:
        self._files.remove(names, lasting=True)
        self._note.clear()

    def _removed(self, result: Exception | None, names: Sequence[str] = (), *, lasting: bool = True) -> None:
        self.removing -= lasting
        if self._failed("remove", result):
            self._unremoved.update(set(names).difference(self._writing))
            self._removal_error = result if lasting else self._removal_error
        else:
            self._unremoved.difference_update(names)

    def _failed(self, kind: str, result: object) -> bool:
        """Tell whether work failed, and note it either way."""
        if isinstance(result, Exception):
            self.note_fault(kind, result)
            return True
        self._failing.discard(kind)
        return False


def _removal(names: Sequence[str]) -> str:
    """Return what a removal is. The names have another order on other ranks."""
    return f"remove {hashlib.sha256(' '.join(sorted(names)).encode()).hexdigest()[:16]}"
