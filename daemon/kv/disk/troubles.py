"""What keeps a disk tier from its work without a fault: too small a disk, what is no piece, missing threads."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from daemon.kv.disk.codec import PIECE_BYTES
from daemon.shared.errors import Reason, SidecarError
from daemon.shared.machine_faults import machine_fault
from daemon.shared.wording import size


def too_small(wanted: int | None, most: int) -> bool:
    """
    Tell whether the disk leaves a budget that a piece of usual size does not fit in.

    Args:
        wanted: The configured bytes; None for `auto`. A number that is small by itself is meant.
        most: The budget that it came to, in bytes.
    """
    return most < (PIECE_BYTES if wanted is None else min(wanted, PIECE_BYTES))


def small(wanted: int | None, most: int) -> str:
    """Return the sentence about a budget that is too small; `wanted` and `most` as in `too_small`."""
    if wanted is None:
        told = f"kv_disk_mb = auto comes to {size(most)}"
    else:
        told = f"kv_disk_mb allows {size(wanted)}; the disk has room for {size(most)} of it: its last tenth stays free"
    return f"{told}; a piece of a prefix takes up to {size(PIECE_BYTES)}, so little or nothing is written"


def mend_small(wanted: int | None) -> str:
    """Return what to do then: a number can be set for `auto`, which takes a small part of what is free."""
    return f"make room on the disk, or set kv_disk_dir to a larger one{', or set kv_disk_mb' * (wanted is None)}"


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
        return "cannot be read by this user; give it the mode 600 back, or remove it"
    return ""


def passes(error: Exception) -> bool:
    """Tell whether a read failed for want of a thread, of memory or of descriptors: the file may be as good as ever."""
    fault = error if isinstance(error, SidecarError) else machine_fault(error, "a file of the disk tier cannot be read")
    return fault is not None and fault.reason in (Reason.MODEL_NOT_RESPONDING, Reason.MACHINE_EXHAUSTED)
