"""How much of a model to read at a time: as much as running streams hardly notice. Pure; times are passed in."""

from __future__ import annotations

from dataclasses import dataclass

SLICE_SECONDS = 0.02
"""A slice of a load should take no longer, because running streams wait for it: about a token of a mid-sized model."""

LEAST_BYTES = 4 << 20
_FIRST_BYTES = 32 << 20


@dataclass(slots=True)
class Pace:
    """
    Finds the bytes that take about `SLICE_SECONDS` to read. It moves by at most a factor of two at a time.

    Attributes:
        most: Most bytes of a slice, whatever the disk can do.
        nbytes: Bytes that the next slice should have; a single array may be larger.
    """

    most: int
    nbytes: int = _FIRST_BYTES

    def __post_init__(self) -> None:
        self.nbytes = min(self.most, self.nbytes)

    def measured(self, nbytes: int, seconds: float) -> None:
        """Learn from a slice. Those that are much smaller than planned say little and are left out."""
        if 2 * nbytes >= self.nbytes:
            factor = min(2.0, max(0.5, SLICE_SECONDS / max(seconds, 1e-9)))
            self.nbytes = min(self.most, max(LEAST_BYTES, int(self.nbytes * factor)))
