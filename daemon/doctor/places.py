"""Checks of the daemon's files: the socket with its directory, and the log file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from daemon.doctor.finding import Finding, failed, ok, skipped
from daemon.server.socket_path import MAX_SOCKET_BYTES, SocketPathError, check_name, check_vacant, prepare_directory
from daemon.shared.logs import MAX_FILE_BYTES
from daemon.shared.wording import size


def socket(path: Path) -> Finding:
    """Check the path's length, its directory and their modes. Creates nothing."""
    directory = path.parent
    try:
        check_name(path)
        if os.path.lexists(directory):
            prepare_directory(path)
            check_vacant(path)
    except SocketPathError as error:
        return failed("socket", str(error), "the sentence says it")
    found = f"{path}, {len(os.fsencode(path))} of {MAX_SOCKET_BYTES} bytes, directory "
    if not directory.exists():
        return ok("socket", found + "not there yet")
    found += f"mode {_mode(directory):04o}"
    if not path.exists():
        return ok("socket", found)
    if _mode(path) != 0o600:
        return failed(
            "socket", f"{found}, socket mode {_mode(path):04o}", "restart the daemon: it makes its socket anew"
        )
    return ok("socket", f"{found}, socket mode 0600")


def log_file(path: Path | None) -> Finding:
    """Check that the daemon can write its log, and that the disk has room for a log file. Writes nothing."""
    if path is None:
        return skipped("log file", "none is configured: the daemon logs to stderr")
    place = path
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    good = os.access(place, os.W_OK) and (place == path or place.is_dir())
    if not good or path.is_dir():
        return failed("log file", f"{path} cannot be written", "set log_file to a file in a directory of your own")
    disk = os.statvfs(place)
    free = disk.f_bavail * disk.f_frsize
    if free < MAX_FILE_BYTES:
        found = f"{path}, on a disk with {size(free)} left; one log file takes {size(MAX_FILE_BYTES)}"
        return failed("log file", found, "make room: log lines that do not fit are lost")
    return ok("log file", str(path))


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)
