"""What keeps a disk tier from its work without a fault: a disk that is too small, and things that are no pieces."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from daemon.kv.disk.codec import PIECE_BYTES
from daemon.shared.wording import size

MEND_SMALL = "make room on the disk, set kv_disk_dir to a larger one, or set kv_disk_mb"


def too_small(wanted: int | None, most: int) -> bool:
    """
    Tell whether `auto` came to a budget that a piece of usual size does not fit in.

    Args:
        wanted: The configured bytes; None for `auto`. A number that was set is meant.
        most: The budget that it came to, in bytes.
    """
    return wanted is None and most < PIECE_BYTES


def small(most: int) -> str:
    """Return the sentence about a budget that is too small."""
    return f"kv_disk_mb = auto comes to {size(most)}, and a piece of a prefix takes up to {size(PIECE_BYTES)}"


def no_piece(path: Path) -> str:
    """Return what lies under the name of a piece but cannot be one, and what to do; empty for a file of this user."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return ""  # gone meanwhile
    if stat.S_ISDIR(mode):
        return "is a directory, which the daemon leaves alone; move it away"
    if stat.S_ISLNK(mode):
        return "is a link, which the daemon does not follow; remove the link, or the next start of the daemon does"
    if not stat.S_ISREG(mode):
        return "is no plain file; remove it, or the next start of the daemon does"
    if not os.access(path, os.R_OK):
        return "cannot be read by this user; remove it, or the next start of the daemon tries to"
    return ""
