"""
A note that something of the disk tier's directory was invalidated while the directory could not be used.

It lies elsewhere and has no content: it outlives the process, which knows what was invalidated. A process that finds
the note of another one takes all of the directory as invalidated.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

NAME = "kv-invalidated-"
"""Begins the file's name; a digest of the directory's path follows."""


class Note:
    """
    See the top of this module. The disk's thread uses it.

    Args:
        place: The directory that it lies in.
        folder: The directory that it is about.
    """

    def __init__(self, place: Path, folder: Path) -> None:
        self.path = place / (NAME + hashlib.sha256(os.fsencode(folder)).hexdigest()[:16])
        self._own = False

    @property
    def left(self) -> bool:
        """Whether another process left one."""
        return not self._own and self.path.exists()

    def write(self) -> None:
        """
        Write it, if there is none yet.

        Raises:
            OSError: If that is not possible.
        """
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch(0o600)
            sync(self.path.parent)
            self._own = True

    def clear(self) -> None:
        """Remove it: all that was invalidated is gone."""
        self.path.unlink(missing_ok=True)
        self._own = False


def sync(directory: Path) -> None:
    """Make the names in a directory last, even if the machine dies."""
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
