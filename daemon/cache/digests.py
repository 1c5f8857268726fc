"""Digests of weight files: SHA-256 of every byte, computed once for each state of a file and remembered."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

from daemon.cache.model_files import opened
from daemon.shared import liveness

Report = Callable[[int, int], None]
"""Called with bytes done and bytes to do; may raise to abandon the work."""

Rest = Callable[[float], None]
"""Called after each piece of long work with the processor seconds that it took; sleeps for as long as others need."""

QUICK_BYTES = 64 << 20
"""Hashing this much takes some 50 ms: little enough to do while a request is prepared, and not worth a note."""

SETTLED_NS = 2_000_000_000
"""A file that was written to this recently may be written to again without a new time stamp: FAT's tick is 2 s."""

_LOOK_SECONDS = 1.0
"""How often one that waits for its turn looks whether the one before moves on."""

_PIECE = 1 << 20
_REPORTED = 8 << 20
_BLOB = re.compile(r"[0-9a-f]{64}")


class TakesLong(Exception):  # noqa: N818 - it is no failure: the work belongs on another thread
    """
    Weights have to be read from end to end before they can be named.

    Attributes:
        nbytes: Bytes of all that is to be read; None if that is not known, as they are to be downloaded.
    """

    def __init__(self, nbytes: int | None = None) -> None:
        super().__init__()
        self.nbytes = nbytes


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the file system says of a file's state. Writing to a file or replacing it changes its stamp."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, file: Path) -> Stamp:
        """
        Return the stamp of a file, links followed.

        Raises:
            OSError: If it cannot be looked at.
        """
        return cls.from_status(file.stat())

    @classmethod
    def from_status(cls, status: os.stat_result) -> Stamp:
        """Return the stamp in what the system says of a file."""
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Notes(Protocol):
    """Where digests of large files outlive the process."""

    def read(self) -> dict[str, tuple[Stamp, str]]:
        """Return what was noted, by path; nothing if that cannot be told."""

    def write(self, known: dict[str, tuple[Stamp, str]]) -> None:
        """Replace what was noted. A failure is logged and costs only time later."""


class _Turn:
    """Whose turn it is to read one file."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._signs = 0

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for the turn and have it. Those that wait show signs of life as long as the one that reads does."""
        seen = self._signs
        while not self._lock.acquire(timeout=_LOOK_SECONDS):
            if seen != self._signs:
                seen = self._signs
                liveness.moved()
        before = liveness.current()

        def sign() -> None:
            self._signs += 1
            before()

        try:
            with liveness.watched(sign):
                yield
        finally:
            self._lock.release()


class Digests:
    """
    Digests by file and stamp. Any thread.

    They say what a file is expected to hold. A stamp does not tell everything: writing through a mapping need not move
    it. What is loaded is hashed while it is loaded, and `learn` is told.

    Args:
        notes: Keeps digests of large files for the next process; None keeps them in memory only.
        now_ns: The file system's clock.
        aside: Entered while a large file is read, so that those who compute notice little of it; gives the rest that
            the reader takes between pieces of a mebibyte.
    """

    def __init__(
        self,
        notes: Notes | None = None,
        now_ns: Callable[[], int] = time.time_ns,
        aside: Callable[[], AbstractContextManager[Rest]] = lambda: nullcontext(_none),
    ) -> None:
        self._notes = notes
        self._now_ns = now_ns
        self._aside = aside
        self._known = notes.read() if notes else {}
        self._turns: WeakValueDictionary[Path, _Turn] = WeakValueDictionary()
        self._misnamed: set[str] = set()
        self._lock = threading.Lock()

    def learn(self, file: Path, stamp: Stamp, digest: str) -> None:
        """
        Correct what was known of a file, because all of it was read and something else was found.

        Args:
            file: The file.
            stamp: Its state before it was read.
            digest: The SHA-256 of what was read, in hexadecimal.
        """
        path = file.resolve()
        with self._lock:
            self._misnamed.add(str(path))
            self._known.pop(str(path), None)
        if stamp.ctime_ns + SETTLED_NS < self._now_ns():
            self._remember(path, stamp, digest)
        else:
            self._write_notes()

    def digest(self, file: Path, *, hub: bool = False, report: Report | None = None) -> str:
        """
        Return the SHA-256 of a file's content, in hexadecimal.

        Args:
            file: The file.
            hub: Whether huggingface_hub put it there. Its large files are named by their SHA-256, which is expected
                for as long as the file is as it was when it was first seen, and no load found anything else.
            report: Gets the progress of reading a large file; None reads none.

        Raises:
            TakesLong: If a large file has to be read and `report` is None.
            OSError: If it cannot be read.
        """
        path = file.resolve()
        stamp = Stamp.of(path)
        found = self._find(path, stamp, hub)
        if found is not None:
            return found
        if report is None and stamp.size > QUICK_BYTES:
            raise TakesLong(stamp.size)
        with self._lock:
            turn = self._turns.setdefault(path, _Turn())
        with turn.taken():  # two callers of one file read it once
            return self._find(path, stamp, hub) or self._read(path, report)

    def _find(self, path: Path, stamp: Stamp, hub: bool) -> str | None:
        with self._lock:
            seen, digest = self._known.get(str(path), (None, ""))
        if seen == stamp:
            return digest
        if (
            seen is None
            and hub
            and str(path) not in self._misnamed
            and path.parent.name == "blobs"
            and _BLOB.fullmatch(path.name)
        ):
            self._remember(path, stamp, path.name)
            return path.name
        return None

    def _read(self, path: Path, report: Report | None) -> str:
        started = self._now_ns()
        before = Stamp.of(path)
        with self._aside() if before.size > QUICK_BYTES else nullcontext(_none) as rest:
            digest = _sha256(path, before.size, report, rest)
        settled = before.ctime_ns + SETTLED_NS < started
        if settled and Stamp.of(path) == before:
            self._remember(path, before, digest)
        return digest

    def _remember(self, path: Path, stamp: Stamp, digest: str) -> None:
        with self._lock:
            self._known.pop(str(path), None)
            self._known[str(path)] = stamp, digest
        if stamp.size > QUICK_BYTES:
            self._write_notes()

    def _write_notes(self) -> None:
        if self._notes is not None:
            with self._lock:
                large = {name: one for name, one in self._known.items() if one[0].size > QUICK_BYTES}
                self._notes.write(large)


def _sha256(path: Path, size: int, report: Report | None, rest: Rest) -> str:
    state = hashlib.sha256()
    done = reported = 0
    buffer = memoryview(bytearray(min(_PIECE, max(1, size))))
    with opened(path) as file:
        began = time.thread_time()
        while read := file.readinto(buffer[: size - done]):  # no more than it had: it may grow without end
            state.update(buffer[:read])
            liveness.moved()
            done += read
            if report is not None and size > QUICK_BYTES and (done - reported >= _REPORTED or done == size):
                report(done, size)
                reported = done
            rest(time.thread_time() - began)
            began = time.thread_time()
    return state.hexdigest()


def _none(seconds: float) -> None:
    """Take no rest."""
