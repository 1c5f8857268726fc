"""
The content of a lock file: which daemon holds it, with which engine and since when.

    the daemon's process id
    its engine's process id
    when the daemon began, in seconds since 1970

What is not known is a -. The file's time of modification is the daemon's last sign of life.

A daemon that ends leaves nothing but its engine's process id: an engine that hangs still holds the lock, and the next
daemon kills it. A daemon that takes the lock and finds another one's process id and time knows that it was killed, or
died with the machine.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import NamedTuple

from daemon.shared.wording import date

_MOST_BYTES = 64


class Holder(NamedTuple):
    """
    A daemon as the file names it; None for each part that is not written.

    Attributes:
        pid: Its process id.
        engine: The process id of its engine.
        began: When it began, in seconds since 1970.
    """

    pid: int | None = None
    engine: int | None = None
    began: int | None = None


class UncleanEnd(NamedTuple):
    """
    The end of a daemon that could not note it; times as the log writes them.

    Attributes:
        pid: Its process id.
        began: When it began.
        last_seen: Its last sign of life.
    """

    pid: int
    began: str
    last_seen: str


def read(fd: int) -> Holder:
    """Return the daemon that a file names."""
    lines = os.pread(fd, _MOST_BYTES, 0).split()
    return Holder(*(int(line) if line.isdigit() else None for line in lines[: len(Holder._fields)]))


def note(fd: int, holder: Holder) -> None:
    """Note a daemon in a file."""
    text = "".join(f"{'-' if part is None else part}\n" for part in holder).encode("ascii")
    os.pwrite(fd, text, 0)
    os.ftruncate(fd, len(text))


def touch(fd: int) -> None:
    """Note a sign of life, if that is possible: without it, the last one is only older."""
    with suppress(OSError):
        os.utime(fd)


def end(fd: int) -> None:
    """Note that the daemon has ended. Its engine may not have."""
    note(fd, Holder(engine=read(fd).engine))


def unclean_end(fd: int) -> UncleanEnd | None:
    """Return what is known of a daemon that did not note its end; None if there is none, or not of this form."""
    pid, _, began = read(fd)
    if pid is None or began is None:
        return None
    return UncleanEnd(pid, _written(began), _written(os.fstat(fd).st_mtime))


def _written(seconds: float) -> str:
    return date(seconds).isoformat(timespec="seconds").replace("+00:00", "Z")
