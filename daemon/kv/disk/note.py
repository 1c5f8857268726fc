"""
Invalidations while the disk tier's directory cannot be used: remembered in this process, and as a note for others.

The note lies elsewhere and has no content: it outlives the process, which knows what was invalidated. A process that
finds the note of another one takes all of the directory as invalidated.

Each note has a name of its own. A process removes those that it saw before it looked at the directory's files, and no
later one, which may be about what it has read since.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from daemon.kv.disk.catalog import Catalog, Entry

NAME = "kv-invalidated-"
"""Begins the file's name; a digest of the directory's path follows, then what makes it unique."""

MOST_FORGOTTEN = 1024
"""Invalidations that are remembered; after more, all that the directory has goes."""


class Forgotten:
    """
    Invalidations while the directory cannot be used: functions that choose pieces of the catalog once it can be used.

    Args:
        catalog: The catalog.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._chosen: list[Callable[[], Iterable[Entry]]] = []

    def __bool__(self) -> bool:
        return bool(self._chosen)

    def add(self, chosen: Callable[[], Iterable[Entry]]) -> None:
        """Note an invalidation. After very many, all that the directory has goes."""
        self._chosen.append(chosen)
        if len(self._chosen) > MOST_FORGOTTEN:
            self._chosen[:] = [lambda: self._catalog]

    def drop(self, *, everything: bool) -> list[str]:
        """Drop what was chosen, or all, from the catalog, and return the names of the files."""
        chosen, self._chosen = self._chosen, []
        entries = [lambda: self._catalog] if everything else chosen
        return [name for choose in entries for name in self._catalog.drop(choose())]


class Note:
    """
    The note.

    Args:
        place: The directory that it lies in.
        folder: The directory that it is about.
    """

    def __init__(self, place: Path, folder: Path) -> None:
        self._place = place
        self._name = NAME + hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
        self._own = ""
        self._seen: set[str] = set()

    def look(self) -> bool:
        """
        Tell whether another process left one. Those that are there now are the ones that `clear` removes.

        Raises:
            OSError: If that cannot be found out.
        """
        self._seen = self._names()
        return bool(self._seen - {self._own})

    def write(self) -> None:
        """
        Write a new one, which stands for those before it as well.

        Raises:
            OSError: If that is not possible.
        """
        self._place.mkdir(mode=0o700, parents=True, exist_ok=True)
        before = self._names()
        name = f"{self._name}-{secrets.token_hex(8)}"
        (self._place / name).touch(0o600, exist_ok=False)
        sync(self._place)
        # Beside the note of another process this one does not know all that was invalidated.
        self._own = "" if before - {self._own} else name
        self._remove(before)

    def clear(self) -> None:
        """
        Remove its own one and those that it saw: all that was invalidated is gone.

        Raises:
            OSError: If one cannot be removed.
        """
        self._remove({*self._seen, self._own} - {""})
        self._seen, self._own = set(), ""

    def _names(self) -> set[str]:
        try:
            return {name for name in os.listdir(self._place) if name.startswith(self._name)}
        except FileNotFoundError:
            return set()

    def _remove(self, names: set[str]) -> None:
        for name in names:
            (self._place / name).unlink(missing_ok=True)


def sync(directory: Path) -> None:
    """Make the names in a directory last, even if the machine dies."""
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
        to_the_drive = getattr(fcntl, "F_FULLFSYNC", None)  # on macOS, fsync leaves it in the drive's own cache
        if to_the_drive is not None:
            with suppress(OSError):  # a file system without it, such as that of a server
                fcntl.fcntl(folder, to_the_drive)
    finally:
        os.close(folder)
