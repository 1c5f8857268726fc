"""
SHA-256 digests of weight files, computed once for each state of a file and remembered.

A state of a file is its stamp: inode, size, mtime and ctime. A digest is looked for in this order:

1. the file was read before in the same state, by this process or, if large, by an earlier one (`digest_notes.py`);
2. huggingface_hub put it into its cache, where large files are named by their digest;
3. it is read from end to end, by a single thread (`keyed_lock.py`). A large file takes long: only callers that can wait
   have it read.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from daemon.cache.background_save import BackgroundSave
from daemon.cache.callbacks import Report, Rest, ignore
from daemon.cache.keyed_lock import KeyedLock
from daemon.cache.lru_dict import LruDict
from daemon.cache.model_files import opened
from daemon.shared import liveness

QUICK_BYTES = 64 << 20
"""Hashing this much takes some 50 ms: little enough to do while a request is prepared, and not worth a note."""

SETTLED_NS = 2_000_000_000
"""A file that was written to this recently may be written to again without a new time stamp: FAT's tick is 2 s."""

MOST_FILES = 4096
"""Digests of large files that are remembered, and as many of small files: more than the models of a machine have."""

_PIECE = 1 << 20
"""Bytes hashed between two looks at the rest that the thread should take."""
_REPORTED = 8 << 20
_BLOB = re.compile(r"[0-9a-f]{64}")


class TakesLong(Exception):  # noqa: N818 - it is no failure: the work belongs on another thread
    """
    Weights must be read from end to end before their digests are known.

    Attributes:
        nbytes: Bytes to read; None if they are not known because the files must be downloaded first.
    """

    def __init__(self, nbytes: int | None = None) -> None:
        super().__init__()
        self.nbytes = nbytes


@dataclass(frozen=True, slots=True)
class Stamp:
    """The state of a file as the file system knows it. Writing to a file or replacing it changes its stamp."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, file: Path) -> Stamp:
        """
        Return the stamp of a file, links followed.

        Raises:
            OSError: If the file system cannot tell.
        """
        return cls.from_status(file.stat())

    @classmethod
    def from_status(cls, status: os.stat_result) -> Stamp:
        """Return the stamp that a result of `os.stat` has."""
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Notes(Protocol):
    """A store of digests that outlives the process."""

    def read(self) -> dict[str, tuple[Stamp, str]]:
        """Return stamps and digests by path; nothing if they cannot be read."""

    def write(self, known: dict[str, tuple[Stamp, str]]) -> None:
        """Replace all of them. A failure is logged; it costs only time later."""


class Digests:
    """
    Digests by file and stamp. Any thread.

    They are what files are expected to hold. A stamp is no proof: a write through a memory mapping need not change it.
    So what is loaded is hashed while it is loaded (`hashing.py`), and `learn` gets the digests that differ.

    Args:
        notes: Keeps digests of large files for the next process; None keeps them in memory only.
        now_ns: Returns the time by the file system's clock, in nanoseconds.
        monotonic_ns: Returns the time by a clock that never jumps, in nanoseconds.
        aside: A context entered while a large file is read, so that running streams notice little of it. Its value is
            called after each mebibyte.

    Attributes:
        corrected: How often a digest was corrected. What was made of digests before may be wrong.
    """

    def __init__(
        self,
        notes: Notes | None = None,
        now_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        aside: Callable[[], AbstractContextManager[Rest]] = lambda: nullcontext(ignore),
    ) -> None:
        self.corrected = 0
        self._now_ns = now_ns
        self._monotonic_ns = monotonic_ns
        self._aside = aside
        # Apart, so that a folder with thousands of small files does not push out digests that take minutes to compute.
        self._large = LruDict[str, tuple[Stamp, str]](MOST_FILES, notes.read().items() if notes else ())
        self._small = LruDict[str, tuple[Stamp, str]](MOST_FILES)
        self._misnamed = LruDict[str, None](MOST_FILES)
        """Paths of which a load found that the file is not what its name says."""
        self._sightings = LruDict[str, tuple[Stamp, int]](MOST_FILES)
        """Stamps of files that were written lately or lie ahead of the clock, and when they were first seen."""
        self._lock = threading.Lock()
        self._readers = KeyedLock[Path]()
        self._save = BackgroundSave(lambda: notes.write(self._noted())).request if notes else ignore

    def digest(self, file: Path, *, hub: bool = False, report: Report | None = None) -> str:
        """
        Return the SHA-256 of a file's content, in hexadecimal.

        Args:
            file: The file.
            hub: Whether huggingface_hub put it there. Its large files are named by their SHA-256. That name counts as
                long as the file is in the state in which it was first seen, and no load found another digest.
            report: Gets the progress of reading a large file; None reads no large file.

        Raises:
            TakesLong: If a large file has to be read and `report` is None.
            OSError: If it cannot be read.
        """
        path = file.resolve()
        stamp = Stamp.of(path)
        known = self._find(path, stamp, hub)
        if known is not None:
            return known
        if report is None and stamp.size > QUICK_BYTES:
            raise TakesLong(stamp.size)
        with self._readers.locked(path):  # two callers of one file read it once
            return self._find(path, stamp, hub) or self._read(path, report)

    def learn(self, file: Path, stamp: Stamp, digest: str) -> None:
        """
        Correct the digest of a file, because a load read all of it and found another one.

        Args:
            file: The file.
            stamp: Its stamp before it was read.
            digest: The SHA-256 of the bytes that were read, in hexadecimal.
        """
        path = file.resolve()
        with self._lock:
            self._misnamed.put(str(path), None)
            self._large.discard(str(path))
            self._small.discard(str(path))
            self.corrected += 1
        if stamp.ctime_ns + SETTLED_NS < self._now_ns():
            self._remember(path, stamp, digest)
        else:
            self._save()

    def _find(self, path: Path, stamp: Stamp, hub: bool) -> str | None:
        """Return the digest of a file in a state, if that is known without reading it."""
        with self._lock:
            known = self._large.get(str(path)) or self._small.get(str(path))
            is_misnamed = str(path) in self._misnamed
        if known is not None:
            known_stamp, digest = known
            return digest if known_stamp == stamp else None
        if hub and not is_misnamed and path.parent.name == "blobs" and _BLOB.fullmatch(path.name):
            self._remember(path, stamp, path.name)
            return path.name
        return None

    def _read(self, path: Path, report: Report | None) -> str:
        started = self._now_ns()
        stamp = Stamp.of(path)
        is_settled = stamp.ctime_ns + SETTLED_NS < started or self._was_seen(path, stamp)
        with self._aside() if stamp.size > QUICK_BYTES else nullcontext(ignore) as rest:
            digest = _sha256(path, stamp.size, report, rest)
        if is_settled and Stamp.of(path) == stamp:
            self._remember(path, stamp, digest)
        return digest

    def _was_seen(self, path: Path, stamp: Stamp) -> bool:
        """Whether a file has had a stamp for so long that it is settled, whatever its time: a clock may be wrong."""
        now = self._monotonic_ns()
        with self._lock:
            seen = self._sightings.get(str(path))
            since = seen[1] if seen is not None and seen[0] == stamp else now
            self._sightings.put(str(path), (stamp, since))
        return since + SETTLED_NS < now

    def _remember(self, path: Path, stamp: Stamp, digest: str) -> None:
        is_large = stamp.size > QUICK_BYTES
        remembered, other = (self._large, self._small) if is_large else (self._small, self._large)
        with self._lock:
            other.discard(str(path))
            remembered.put(str(path), (stamp, digest))
        if is_large:
            self._save()

    def _noted(self) -> dict[str, tuple[Stamp, str]]:
        """Return what the notes should hold: digests that take long to compute."""
        with self._lock:
            return self._large.copy()


def _sha256(path: Path, size: int, report: Report | None, rest: Rest) -> str:
    state = hashlib.sha256()
    done = reported = 0
    buffer = memoryview(bytearray(min(_PIECE, max(1, size))))
    with opened(path) as file:
        began = time.thread_time()
        while read := file.readinto(buffer[: size - done]):  # no more than `size`: the file may grow without end
            state.update(buffer[:read])
            liveness.moved()
            done += read
            if report is not None and size > QUICK_BYTES and (done - reported >= _REPORTED or done == size):
                report(done, size)
                reported = done
            rest(time.thread_time() - began)
            began = time.thread_time()
    return state.hexdigest()
