"""Log lines of the disk tier: faults, what a scan removed, and a disk that is too small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog

from daemon.kv.disk.files import UnusableError
from daemon.kv.disk.format import DamagedError
from daemon.kv.disk.found import Found
from daemon.kv.disk.limits import Space
from daemon.kv.disk.troubles import too_small
from daemon.shared.errors import SidecarError
from daemon.shared.log_fields import Words, cause

log = structlog.get_logger()


def log_fault(kind: str, error: Exception, folder: str) -> None:
    """
    Log a fault of a kind of work.

    Args:
        kind: The kind of work.
        error: The fault.
        folder: The directory of this machine. A fault of another rank of a group names its own.
    """
    where = _where(error, folder)
    match kind:
        case "open":
            log.warning("kv_disk_unusable", error=shown(error), **where)
        case "read":
            log.warning("kv_disk_read_failed", error=shown(error), **where)
        case "restore":
            log.warning("kv_disk_restore_failed", error=shown(error), **where)
        case "slow":
            log.warning("kv_disk_slow", error=shown(error), **where)
        case "remove" | "empty":
            log.warning("kv_disk_remove_failed", error=shown(error), **where)
        case _:
            log.warning("kv_disk_write_failed", error=shown(error), **where)


def log_scan(found: Found) -> None:
    """Log what a scan removed, and how many files it left out."""
    if found.removed or found.orphans:
        log.info("kv_disk_cleaned", files=found.removed + len(found.orphans))
    if found.trouble is not None:
        trouble = shown(found.trouble)
        log.warning("kv_disk_left_out", files=len(found.left), error=trouble, directory=found.directory)


def log_small(found: Found, wanted: int | None, most: Callable[[Space], int]) -> None:
    """Log of which rank the disk leaves a budget, `most`, that is too small to write anything; see `too_small`."""
    for rank, (directory, space) in enumerate(found.disks or [(found.directory, found.space)]):
        if too_small(wanted, nbytes := most(space)):
            of_rank = {"rank": rank} if found.disks else {}
            log.warning("kv_disk_too_small", budget_bytes=nbytes, directory=directory, **of_rank)


def shown(error: Exception) -> str:
    """Return an error for the log. The tier's own ones and the system's have texts without names and contents."""
    if isinstance(error, UnusableError | DamagedError | SidecarError):
        return Words(error)
    said = isinstance(error, OSError) and error.strerror
    return Words(f"{cause(error)}, {said}") if said else cause(error)


def _where(error: Exception, folder: str) -> dict[str, Any]:
    if isinstance(error, SidecarError) and "rank" in error.metadata:
        return {"rank": int(error.metadata["rank"]), "directory": error.metadata.get("directory")}
    return {"directory": folder}
