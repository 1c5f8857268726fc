"""What a scan of the disk tier's directory finds. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from daemon.kv.disk.limits import Space
from daemon.kv.disk.piece import Piece


@dataclass(slots=True)
class Found:
    """
    What a scan found.

    Attributes:
        pieces: The pieces, and when each was last used, in seconds since 1970.
        hours: Bytes written by the hour, see `WriteLimit`.
        space: The disk; in a group, what the smallest disk of all ranks leaves.
        directory: The directory, on this machine.
        disks: The directory and the disk of each rank of a group, the first rank first; none without a group.
        noted: Whether another process noted an invalidation, see `Note`.
        removed: Files that were removed because they are damaged or old.
        read: Headers that were read because the index did not have them.
        left: Names of the files that could not be opened.
        trouble: Why a file could not be opened, the first that could not; None if all could.
        orphans: Names of files that other ranks of a group lack, so that none of them is of use; none without a group.
    """

    pieces: list[tuple[Piece, float]] = field(default_factory=list)
    hours: list[list[int]] = field(default_factory=list)
    space: Space = field(default_factory=lambda: Space(0, 0))
    directory: str = ""
    disks: list[tuple[str, Space]] = field(default_factory=list)
    noted: bool = False
    removed: int = 0
    read: int = 0
    left: list[str] = field(default_factory=list)
    trouble: OSError | None = None
    orphans: list[str] = field(default_factory=list)
