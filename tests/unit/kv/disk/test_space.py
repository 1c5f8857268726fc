"""The disk of a tier as its system has it."""

from __future__ import annotations

import ctypes
import errno
import os
import plistlib
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daemon.kv.disk.limits import Space
from daemon.kv.disk.space import leave_out_of_backups, space_of


def test_space_of_linux_is_told_by_statvfs(tmp_path: Path) -> None:
    """The whole disk, and what this user may fill."""
    about, found = os.statvfs(tmp_path), space_of(tmp_path, "linux")
    assert found.total == about.f_blocks * about.f_frsize
    assert 0 <= found.free <= found.total


def test_space_of_a_large_disk_is_whole_on_a_mac(tmp_path: Path) -> None:
    """Its statvfs has 32 bits for the number of blocks."""

    def statfs(path: bytes, room: Any) -> int:
        assert path == os.fsencode(tmp_path)
        ctypes.memmove(room, struct.pack("=IiQQQ", 4096, 1 << 20, 5 << 32, 3 << 32, 2 << 32), 32)
        return 0

    assert space_of(tmp_path, "darwin", SimpleNamespace(statfs=statfs)) == Space(80 << 40, 32 << 40)


def test_disk_that_is_gone_is_a_fault_on_a_mac(tmp_path: Path) -> None:
    """The error has the system's number, by which a remedy is found."""

    def statfs(*_: object) -> int:
        ctypes.set_errno(errno.ENOENT)
        return -1

    with pytest.raises(FileNotFoundError):
        space_of(tmp_path, "darwin", SimpleNamespace(statfs=statfs))


def test_backups_of_a_mac_leave_a_directory_out(tmp_path: Path) -> None:
    """By the mark of `tmutil addexclusion`. An Invalidate would reach no backup."""
    marks: list[tuple[object, ...]] = []

    def setxattr(path: bytes, name: bytes, value: bytes, size: ctypes.c_size_t, position: int, options: int) -> int:
        marks.append((path, name, value[: size.value], position, options))
        return 0

    leave_out_of_backups(tmp_path, "darwin", SimpleNamespace(setxattr=setxattr))
    leave_out_of_backups(tmp_path, "linux", SimpleNamespace(setxattr=setxattr))
    name = b"com.apple.metadata:com_apple_backup_excludeItem"
    value = plistlib.dumps("com.apple.backupd", fmt=plistlib.FMT_BINARY)
    assert marks == [(os.fsencode(tmp_path), name, value, 0, 0)]
