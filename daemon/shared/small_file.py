"""Small files of the daemon's own: read as a whole, if they are files and small."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


class NotSmall(OSError):  # noqa: N818 - its text says what it is
    """What has the name of a small file is none; `strerror` says why."""


def read_small(path: Path, most: int) -> bytes:
    """
    Return what a regular file holds, links followed. Nothing else is opened for long: a pipe would be waited for.

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
            if len(content) > most:  # of what is read and not of what the file system says: it may grow meanwhile
                raise NotSmall(errno.EFBIG, f"it has more than {most} bytes")
        return bytes(content)
    finally:
        os.close(fd)
