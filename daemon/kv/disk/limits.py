"""The limits of the disk tier: bytes that it may take, the disk space that stays free, and bytes written in a day."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

HOUR = 3600
DAY_HOURS = 24

AUTO_BYTES = 8 << 30
AUTO_SHARE = 20
"""`auto` takes so many bytes, or this part of what is free, whichever is less."""

RESERVE = 10
"""The last tenth of a disk is never written to."""

WRITES = 2
"""How many times the budget may be written in a day: a disk wears out."""

HOURLY = 2
"""An hour has this part of what is left of the day's writes: a busy hour leaves something to the others."""

_LEAST_SHARE = 1 << 20
"""Bytes that each of two tiers has at least: a number above 0 turns both on."""


def share(wanted: int | None, *, shared: bool) -> int | None:
    """
    Return the bytes of one tier.

    Args:
        wanted: The configured number for this machine; None for `auto`, which each tier has.
        shared: Whether two tiers share it: on the first machine of a group, that of its own models and the group's.
    """
    if not (shared and wanted):
        return wanted
    return max(_LEAST_SHARE, wanted // 2)


@dataclass(frozen=True, slots=True)
class Space:
    """
    The disk below the tier's directory, in bytes.

    Attributes:
        total: Its size.
        free: What is free for this user.
    """

    total: int
    free: int


def budget(wanted: int | None, used: int, space: Space) -> int:
    """
    Return the bytes that the tier may take now.

    Args:
        wanted: The configured number; None for `auto`.
        used: What it took when the disk was looked at.
        space: The disk.
    """
    reach = used + space.free
    most = min(AUTO_BYTES, reach // AUTO_SHARE) if wanted is None else wanted
    return max(0, min(most, reach - space.total // RESERVE))


def least(spaces: Sequence[Space]) -> Space:
    """Return a disk that leaves to each budget what the smallest of some disks leaves to it."""
    free = min(space.free for space in spaces)
    # Less than nothing may be left above the reserve; budgets count what they use back in.
    above = min(space.free - space.total // RESERVE for space in spaces)
    return Space((free - above) * RESERVE, free)


@dataclass(slots=True)
class WriteLimit:
    """
    The bytes written in the last day, by the hour.

    It survives restarts, and a clock that jumps: hours that lie in the future count as this one.

    Attributes:
        hours: Bytes written in each hour since 1970 that counts.
    """

    hours: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, pairs: Sequence[Sequence[int]]) -> WriteLimit:
        """Return what pairs of hours and bytes say; those of one hour are added up."""
        limit = cls()
        for hour, nbytes in pairs:
            limit.hours[hour] = limit.hours.get(hour, 0) + nbytes
        return limit

    @classmethod
    def of_all(cls, limits: Iterable[Sequence[Sequence[int]]]) -> WriteLimit:
        """Return the limit that allows no more than each of some, as `pairs` of each."""
        hours: dict[int, int] = {}
        for pairs in limits:
            for hour, nbytes in pairs:
                hours[hour] = max(nbytes, hours.get(hour, 0))
        return cls(hours)

    @property
    def pairs(self) -> list[list[int]]:
        """The hours and their bytes, to be written down."""
        return [[hour, nbytes] for hour, nbytes in self.hours.items()]

    def written(self, now: float) -> int:
        """Return the bytes written in the last day."""
        this = int(now // HOUR)
        kept: dict[int, int] = {}
        for hour, nbytes in self.hours.items():
            if hour > this - DAY_HOURS:
                kept[min(hour, this)] = kept.get(min(hour, this), 0) + nbytes
        self.hours = kept
        return sum(kept.values())

    def allows(self, nbytes: int, most: int, now: float) -> bool:
        """Tell whether so many bytes may be written beside a budget of `most`."""
        left = WRITES * most - self.written(now)
        lately = self.hours.get(int(now // HOUR), 0)
        return nbytes <= left and lately + nbytes <= (lately + left) // HOURLY

    def wrote(self, nbytes: int, now: float) -> None:
        """Count bytes."""
        hour = int(now // HOUR)
        self.hours[hour] = self.hours.get(hour, 0) + nbytes
