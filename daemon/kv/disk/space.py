"""The disk of a tier as its system has it: the space, what its backups leave out, and whether it is mounted."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from pathlib import Path
from typing import Any

from daemon.kv.disk.limits import Space

_STATFS_BYTES = 4096
"""Room for macOS's `struct statfs`, which has 2,168 bytes."""

_LEFT_OUT = b"com.apple.metadata:com_apple_backup_excludeItem"
_BY_TIME_MACHINE = b"bplist00_\x10\x11com.apple.backupd\x08" + bytes(6) + b"\x01\x01" + struct.pack(">QQQ", 1, 0, 28)
"""The attribute and the value, a binary property list, that `tmutil addexclusion` gives to a file or a directory."""


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


def leave_out_of_backups(folder: Path, platform: str = sys.platform, libc: Any = None) -> None:
    """
    Mark a directory so that Time Machine leaves out all that is in it. Nothing is done on other systems.

    No Invalidate reaches a backup. A disk that keeps no attributes is ignored: its system has no other mark.

    Args:
        folder: The directory.
        platform: As `sys.platform`: "darwin" or "linux".
        libc: The C library; for tests.
    """
    if platform == "darwin":
        library, size = libc or ctypes.CDLL(None), ctypes.c_size_t(len(_BY_TIME_MACHINE))
        library.setxattr(os.fsencode(folder), _LEFT_OUT, _BY_TIME_MACHINE, size, 0, 0)


def is_there(file: int, path: Path) -> bool:
    """Tell whether a path still leads to an open file, which may have been removed, or replaced with its directory."""
    try:
        return os.path.samestat(os.fstat(file), path.lstat())
    except OSError:
        return False


def is_away(file: int, path: Path) -> bool:
    """Tell whether a path no longer leads to an open file because the disk is away, and not because it was removed."""
    folder = path.parent if path.parent.exists() else path.parent.parent
    try:
        return not path.exists() and os.fstat(file).st_dev != folder.stat().st_dev
    except OSError:
        return True
