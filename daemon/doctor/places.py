"""Checks of the daemon's files: the socket with its directory, the log file, and cached prefixes on the disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from daemon.doctor.finding import Finding, failed, ok, skipped, warning
from daemon.kv.disk.limits import RESERVE, budget
from daemon.kv.disk.piece import SUFFIX
from daemon.kv.disk.space import space_of
from daemon.kv.disk.troubles import mend_small, small, too_small
from daemon.server.singleton import unclean_end
from daemon.server.socket_path import SocketPathError, check_name, check_vacant, prepare_directory
from daemon.shared.logs import MAX_FILE_BYTES
from daemon.shared.wording import size
from mlx_sidecar._address import MAX_SOCKET_BYTES


def socket(path: Path) -> Finding:
    """Check the path's length, its directory and their modes. Creates nothing."""
    directory = path.parent
    try:
        check_name(path)
        if os.path.lexists(directory):
            prepare_directory(path)
            check_vacant(path)
    except SocketPathError as error:
        found, _, fix = str(error).partition("; ")
        return failed("socket", found, fix)
    found = f"{path}, {len(os.fsencode(path))} of {MAX_SOCKET_BYTES} bytes, directory "
    if not os.path.exists(directory):
        return ok("socket", found + "not there yet")
    found += f"mode {_mode(directory):04o}"
    if (end := unclean_end(path)) is not None:
        found = f"the last daemon (pid {end.pid}, since {end.began}) ended without a shutdown after {end.last_seen}"
        hint = "see the end of its log, and the system's log: it was killed, it crashed, or the machine did"
        return warning("socket", found, hint)
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
        found = f"{path} cannot be written" + (
            "" if place == path else f": {place} is no directory that can be written to"
        )
        return failed("log file", found, "set log_file to a file in a directory of your own")
    free = space_of(place).free
    if free < MAX_FILE_BYTES:
        found = f"{path}, on a disk with {size(free)} left; one log file takes {size(MAX_FILE_BYTES)}"
        return failed("log file", found, "make room: log lines that do not fit are lost")
    return ok("log file", str(path))


def prefixes(folder: Path, wanted: int | None, check: str = "prefixes on disk") -> Finding:
    """
    Check that the daemon can keep prefixes on the disk. Writes nothing.

    Args:
        folder: The directory.
        wanted: Most bytes; None for `auto`, 0 if the tier is off.
        check: What is checked, in words.
    """
    if wanted == 0:
        return skipped(check, "kv_disk_mb is 0: cached prefixes do not outlive the engine")
    place = folder
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    about = place.lstat()
    if not stat.S_ISDIR(about.st_mode) or not os.access(place, os.W_OK | os.X_OK):
        return warning(check, f"{place} is no directory that can be written to", "mend it, or set kv_disk_dir")
    if place == folder and about.st_uid != os.geteuid():
        return warning(check, f"{folder} is another user's", "set kv_disk_dir to a directory of your own")
    if place == folder and _mode(folder) & 0o077:
        return warning(check, f"{folder} is open to other users", f"chmod 700 {folder}")
    used = sum(map(_size, folder.glob("*" + SUFFIX)))
    space = space_of(place)
    most = budget(wanted, used, space)
    found = f"{folder}, {size(used)} of {size(most)}; {size(space.free)} of the disk are free"
    if most <= used and space.free < space.total // RESERVE:
        return warning(check, f"{found}, less than a tenth: nothing is written", "make room on the disk")
    if too_small(wanted, most):
        return warning(check, f"{found}; {small(wanted, most)}", mend_small(wanted))
    return ok(check, found)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:  # the daemon has removed it meanwhile
        return 0


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)
