"""Reads small files of the daemon's own as a whole, and refuses anything else under their names."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


class NotSmall(OSError):  # noqa: N818 - its text says what it is
    """The path leads to no small regular file; `strerror` says why."""


def read_small(path: Path, most: int) -> bytes:
    """
    Return the content of a regular file; links are followed. A pipe is not read: that would block.

    Args:
        path: The file.
        most: Most bytes that it may have.

    Raises:
        NotSmall: If it is no regular file, or larger.
        OSError: If it is missing or cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise NotSmall(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise NotSmall(errno.EINVAL, "it is no regular file")
        content = bytearray()
        while piece := os.read(fd, most + 1 - len(content)):
            content += piece
            if len(content) > most:  # counted here: a file may grow after its size was read
                raise NotSmall(errno.EFBIG, f"it has more than {most} bytes")
        return bytes(content)
    finally:
        os.close(fd)
