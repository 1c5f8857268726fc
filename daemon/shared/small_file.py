"""Small files of the daemon's own: read and replaced as a whole. What else has their name is not read."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from contextlib import suppress
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


def replace_small(path: Path, content: bytes) -> None:
    """
    Replace a file as a whole: a reader finds the old content or the new one. Only its owner may read it.

    Args:
        path: The file; its directory is made if it is missing.
        content: What it holds from now on.

    Raises:
        OSError: If that is not possible; the old content stays.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_in_place(path, content, 0o600)


def replace_in_place(path: Path, content: bytes, mode: int) -> None:
    """
    Replace a file in a directory that is there, as a whole. A failure leaves nothing beside it.

    Args:
        path: The file.
        content: What it holds from now on.
        mode: Its permissions, as those of `chmod`.

    Raises:
        OSError: If that is not possible; the old content stays.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, mode)
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise
