"""
The files of the disk tier: opened, scanned, written, read and removed. It blocks; only reads run beside other work.

The directory is this user's alone (0700), its files are 0600, and a lock keeps a second daemon out. A file is written
under a private name, synced and renamed. A file that is damaged, torn, old or not this user's is removed at the scan,
or when it is read; files with names that the tier does not write are left alone. A file that cannot be opened may be
sound: it is left out until the next scan, and goes with the next lasting removal, which may have been meant for it.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from daemon.kv.disk.buffers import ReadBuffers
from daemon.kv.disk.format import (
    FIRST_BYTES,
    DamagedError,
    decode_header,
    decode_index,
    decode_parts,
    encode_header,
    encode_index,
    header_length,
)
from daemon.kv.disk.found import Found
from daemon.kv.disk.limits import HOUR, RESERVE, Space, WriteLimit
from daemon.kv.disk.note import sync
from daemon.kv.disk.piece import SUFFIX, Part, Piece
from daemon.kv.disk.space import is_away, is_there, leave_out_of_backups, space_of
from daemon.shared import liveness
from daemon.shared.failpoints import failpoint

LOCK, INDEX, PRIVATE = "lock", "index", ".new"
_MOST_INDEX = 1 << 30
_FIRST_STEP = 128 << 10
"""Bytes of the first read of a file: the system reads ahead of a second one, and not of a first one that wants all."""

_READ_STEP = 8 << 20
"""Bytes read at a time after that; after each, a disk that is only slow has given a sign of life."""


class UnusableError(OSError):
    """The directory cannot be used; the text says why."""


def _new(nbytes: int) -> memoryview:
    return memoryview(bytearray(nbytes))


class Files:
    """
    One directory with the files of a disk tier.

    Args:
        folder: The directory; it is created if it is missing.
        part: Of which part of a model its pieces are, in a group, and what code computes them; pieces of another part,
            or of other code, are removed.

    Attributes:
        buffers: What pieces are read into.
        left: Names of files that the last scan could not open, with their bytes; they count against the budget.
    """

    def __init__(self, folder: Path, part: str = "") -> None:
        self.folder = folder
        self._part = part
        self.buffers = ReadBuffers()
        self.left: dict[str, int] = {}
        self._lock: int | None = None

    def open(self) -> None:
        """
        Create the directory if it is missing, and lock it; again, if it was removed meanwhile.

        Raises:
            UnusableError: If it is another user's, open to others, another daemon's, or on a disk that is gone.
            OSError: If it cannot be created.
        """
        if self._lock is not None:
            if is_there(self._lock, self.folder / LOCK):
                return
            if is_away(self._lock, self.folder / LOCK):
                raise UnusableError("its disk is not mounted any more")
            self.close()
        # It may be the directory of another tier, which must be private too.
        self.folder.parent.mkdir(0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            self.folder.mkdir(0o700)
            leave_out_of_backups(self.folder)
        about = self.folder.lstat()
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid():
            raise UnusableError("it is not a directory of this user")
        if stat.S_IMODE(about.st_mode) & 0o077:
            raise UnusableError("other users can enter it; run: chmod 700")
        lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            held = isinstance(error, BlockingIOError)
            raise UnusableError("another daemon uses it" if held else "its file system has no locks") from error
        self._lock = lock

    def close(self) -> None:
        """Give the directory back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def space(self) -> Space:
        """Return the size of the disk, and what is free."""
        return space_of(self.folder)

    def scan(self, now: float) -> Found:
        """
        Return the pieces without reading their KV, and remove what cannot be used.

        Args:
            now: The time, in seconds since 1970; no file counts as used later.
        """
        found = Found()
        self.left.clear()
        known: dict[str, Piece] = {}
        with suppress(OSError, DamagedError):
            pieces, found.hours = decode_index(bytes(self._whole(INDEX, _MOST_INDEX)))
            known = {piece.name: piece for piece in pieces}
        with os.scandir(self.folder) as items:
            for item in items:
                liveness.moved()
                if item.name == INDEX + PRIVATE or item.name.endswith(SUFFIX + PRIVATE):
                    found.removed += self._discard(item.name)
                elif item.name.endswith(SUFFIX):
                    self._look(item, known, found, now)
        found.left, found.space, found.hours = list(self.left), self.space(), WriteLimit.of(found.hours).pairs
        return found

    def look(self) -> Iterator[tuple[str, Piece | None, float]]:
        """
        Yield name, piece and time of last use of each file, and change nothing; None for one that is damaged.

        A daemon may run, and remove a file meanwhile: that is as if it had been removed before.
        """
        try:
            items = os.scandir(self.folder)
        except FileNotFoundError:
            return
        with items:
            for item in items:
                with suppress(FileNotFoundError):
                    if item.name.endswith(SUFFIX):
                        yield self._looked(item)

    def _looked(self, item: os.DirEntry[str]) -> tuple[str, Piece | None, float]:
        about = item.stat(follow_symlinks=False)
        try:
            return item.name, self._piece(item.name, about.st_size), about.st_mtime
        except FileNotFoundError:
            raise
        except (OSError, DamagedError):
            return item.name, None, about.st_mtime

    def write(self, piece: Piece, parts: Sequence[Part]) -> int:
        """
        Write a piece, and return the bytes of its file.

        Raises:
            OSError: If the disk is full or fails; nothing is left of it.
        """
        self.open()
        header = encode_header(self._own(piece), parts)
        size = len(header) + sum(len(part.data) for part in parts)
        space = self.space()
        if space.free - size < space.total // RESERVE:
            raise UnusableError("less than a tenth of the disk is free, and the tier leaves that to others")
        self.left.pop(piece.name, None)
        with self._published(piece.name) as file:
            failpoint("disk.write")
            _write(file, header)
            for part in parts:
                failpoint("disk.part")
                _write(file, part.data)
                liveness.moved()
        return size

    def read(self, piece: Piece) -> list[Part]:
        """
        Return the parts of a piece.

        Raises:
            DamagedError: If it is not what the catalog says, or its bytes have changed.
            OSError: If it cannot be read.
        """
        data = self._whole(piece.name, piece.nbytes, self.buffers.take)
        header = decode_header(bytes(data[: header_length(bytes(data[:FIRST_BYTES]))]), len(data))
        told = header.piece
        if (told.name, told.hashes, told.part) != (piece.name, piece.hashes, piece.part or self._part):
            raise DamagedError("another piece")
        failpoint("disk.read")
        return decode_parts(header, data)

    def remove(self, names: Iterable[str], *, lasting: bool = False) -> None:
        """
        Remove files; one that is not there is no error.

        Args:
            names: Their names.
            lasting: Whether they must stay away even if the machine dies now.

        Raises:
            OSError: If one cannot be removed.
        """
        self.open()
        for name in [*names, *(self.left if lasting else ())]:
            failpoint("disk.remove")
            (self.folder / name).unlink(missing_ok=True)
            self.left.pop(name, None)
            liveness.moved()
        if lasting:
            sync(self.folder)

    def write_index(self, pieces: Sequence[Piece], hours: Sequence[Sequence[int]]) -> int:
        """
        Write the index of all pieces, and return its bytes.

        Raises:
            OSError: If the disk is full or fails; the old one stays.
        """
        self.open()
        data = encode_index(map(self._own, pieces), hours)
        with self._published(INDEX) as file:
            failpoint("disk.index")
            _write(file, data)
        return len(data)

    def used(self, times: Iterable[tuple[str, float]]) -> None:
        """Note when files were last used."""
        for name, seconds in times:
            with suppress(OSError):
                os.utime(self.folder / name, (seconds, seconds), follow_symlinks=False)

    @contextmanager
    def _published(self, name: str) -> Iterator[int]:
        """Open a private file, and give it its name when it is written and synced."""
        private = self.folder / (name + PRIVATE)
        private.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(private, flags, 0o600)
        try:
            try:
                yield file
                failpoint("disk.written")
                os.fsync(file)
            finally:
                os.close(file)
            failpoint("disk.synced")
            private.rename(self.folder / name)
        except BaseException:
            with suppress(OSError):
                private.unlink(missing_ok=True)
            raise
        failpoint("disk.renamed")

    def _look(self, item: os.DirEntry[str], known: dict[str, Piece], found: Found, now: float) -> None:
        """Add the piece of one file to what was found, remove the file if it is none, or leave it out."""
        size = 0
        try:
            about = item.stat(follow_symlinks=False)
            size, piece = about.st_size, known.get(item.name)
            if not _ours(about):
                raise DamagedError("another user's file")
            if piece is None or piece.nbytes != about.st_size:
                piece = self._piece(item.name, about.st_size)
                found.read += 1
                if piece.name != item.name:
                    raise DamagedError("a piece under another name")
            if piece.part != self._part:
                raise DamagedError("a piece of another part of the model, or of other code")
        except DamagedError:
            found.removed += self._discard(item.name)
            return
        except FileNotFoundError:
            return  # gone meanwhile
        except OSError as error:  # too many open files, or a fault of the disk that may pass
            self.left[item.name] = size
            found.trouble = found.trouble or error
            return
        used = min(about.st_mtime, now)
        if piece is not known.get(item.name):  # newer than the index, which has the bytes that were written before it
            found.hours.append([int(used // HOUR), size])
        found.pieces.append((piece, used))

    def _own(self, piece: Piece) -> Piece:
        return replace(piece, part=self._part) if self._part else piece

    def _piece(self, name: str, size: int) -> Piece:
        with self._opened(name) as file:
            first = os.read(file, FIRST_BYTES)
            length = header_length(first)
            if length > size:
                raise DamagedError("a torn header")
            return decode_header(first + os.read(file, length - len(first)), size).piece

    def _whole(self, name: str, most: int, room: Callable[[int], memoryview] = _new) -> memoryview:
        """Return the bytes of a file of this user, in a buffer that `room` returns."""
        with self._opened(name) as file:
            size = os.fstat(file).st_size
            if size > most:
                raise DamagedError("a file of another size")
            data, done = room(size), 0
            while done < size:
                count = os.readv(file, [data[done : done + (_READ_STEP if done else _FIRST_STEP)]])
                if not count:
                    raise DamagedError("a torn file")
                done += count
                liveness.moved()
        return data

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        file = os.open(self.folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not _ours(os.fstat(file)):
                raise DamagedError("another user's file")
            yield file
        finally:
            os.close(file)

    def _discard(self, name: str) -> int:
        with suppress(OSError):
            (self.folder / name).unlink()
            return 1
        return 0


def _ours(about: os.stat_result) -> bool:
    """Whether a file is a plain one of this user, which no other user can read or write and no other name reaches."""
    private = not stat.S_IMODE(about.st_mode) & 0o077
    return stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid() and private and about.st_nlink == 1


def _write(file: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
