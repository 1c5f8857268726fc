"""The space of a disk, as the system tells it."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

from daemon.kv.disk.limits import Space

_STATFS_BYTES = 4096
"""Room for macOS's `struct statfs`, which has 2,168 bytes."""


class _Statfs(ctypes.Structure):
    """The beginning of macOS's `struct statfs` (sys/mount.h)."""

    _fields_ = (
        ("f_bsize", ctypes.c_uint32),
        ("f_iosize", ctypes.c_int32),
        ("f_blocks", ctypes.c_uint64),
        ("f_bfree", ctypes.c_uint64),
        ("f_bavail", ctypes.c_uint64),
    )


def space_of(place: Path, platform: str = sys.platform, libc: Any = None) -> Space:
    """
    Return the size of the disk that a directory is on, and what is free.

    Args:
        place: The directory.
        platform: As `sys.platform`: "darwin" or "linux".
        libc: The C library; for tests.

    Raises:
        OSError: If the system cannot tell.
    """
    if platform != "darwin":
        about = os.statvfs(place)
        return Space(about.f_blocks * about.f_frsize, about.f_bavail * about.f_frsize)
    # statvfs counts blocks in 32 bits there: above 16 TiB the numbers begin again at zero.
    library = libc or ctypes.CDLL(None, use_errno=True)
    room = ctypes.create_string_buffer(_STATFS_BYTES)
    if library.statfs(os.fsencode(place), room):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(place))
    found = _Statfs.from_buffer(room)
    return Space(found.f_blocks * found.f_bsize, found.f_bavail * found.f_bsize)
