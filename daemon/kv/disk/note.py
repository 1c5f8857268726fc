"""
A note that something of the disk tier's directory was invalidated while the directory could not be used.

It lies elsewhere and has no content: it outlives the process, which knows what was invalidated. A process that finds
the note of another one takes all of the directory as invalidated.

Each note has a name of its own. A process removes those that it saw before it looked at the directory's files, and no
later one, which may be about what it has read since.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

NAME = "kv-invalidated-"
"""Begins the file's name; a digest of the directory's path follows, then what makes it unique."""


class Note:
    """
    See the top of this module.

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
        self._place.mkdir(parents=True, exist_ok=True)
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
    finally:
        os.close(folder)
