"""The file by which a `mlx-sidecar join` that listens is found: its process id, version and address, under a lock."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from daemon.shared.observed_time import polls
from daemon.shared.small_file import read_small

NAME = "join.json"
"""Its name in the state directory."""

_MOST_BYTES = 1 << 12
_LOCK_SECONDS = 1.0
"""A reader holds the lock for a moment, another process for its life."""
_POLL_SECONDS = 0.01


class Present(NamedTuple):
    """
    A process that listens for the first machine of a group.

    Attributes:
        pid: Its process.
        version: Its version.
        address: Where it listens.
    """

    pid: int
    version: str
    address: str


class AlreadyPresent(Exception):  # noqa: N818 - a state, and no fault of the program
    """Another process holds the file's lock."""


class Presence:
    """
    The file of this process. It is locked as long as this process lives, and stays when it ends.

    Args:
        fd: The locked file.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def listens(self, present: Present) -> None:
        """Write that this process listens."""
        os.pwrite(self._fd, json.dumps(present._asdict()).encode(), 0)


@contextmanager
def held(file: Path) -> Iterator[Presence]:
    """
    Lock the file, and empty it.

    Raises:
        AlreadyPresent: If another process holds it.
        OSError: If it cannot be written.
    """
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    try:
        if not any(_locked(fd, fcntl.LOCK_EX) for _ in polls(_LOCK_SECONDS, _POLL_SECONDS)):
            raise AlreadyPresent
        os.ftruncate(fd, 0)
        yield Presence(fd)
    finally:
        os.close(fd)


def find(file: Path) -> Present | None:
    """Return the process that holds the file; None if there is none, or it does not listen yet."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if _locked(fd, fcntl.LOCK_SH):
                return None  # its process is gone
        finally:
            os.close(fd)
        return Present(**json.loads(read_small(file, _MOST_BYTES)))
    except (OSError, ValueError, TypeError):
        return None


def began(file: Path) -> float:
    """Return when the process that holds the file began to listen, in seconds since 1970; 0 if there is no file."""
    try:
        return os.stat(file).st_mtime
    except OSError:
        return 0.0


def _locked(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
