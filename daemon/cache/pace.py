"""
How large the slices of a load are, and how often they come, so that running streams hardly notice. Pure policy.

Three parts keep the gaps between the tokens of a stream short. `Pace` finds how many bytes fit a slice. `paced` joins
short pieces of other work into slices. `Share` makes the load wait after each slice.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

from daemon.shared.slices import Sliced

P = TypeVar("P")
R = TypeVar("R")

SLICE_SECONDS = 0.02
"""Longest time of a slice, because running streams wait for it: about a token of a mid-sized model."""

LEAST_BYTES = 1 << 20
"""Smallest slice of weights: smaller reads cost more per byte than they save."""

_FIRST_BYTES = 4 << 20
"""Size of the first slice, before the disk's speed is known: 20 ms at 200 MB/s, a slow disk."""


@dataclass(slots=True)
class Pace:
    """
    Finds how many bytes can be read in the time that streams may wait.

    Attributes:
        most: Most bytes of a slice.
        seconds: Returns how long streams may wait now.
        nbytes: Bytes that the next slice should have. It is at most doubled or halved after a slice, because a single
            measurement can be far off. A single array may be larger.
    """

    most: int
    seconds: Callable[[], float] = lambda: SLICE_SECONDS
    nbytes: int = _FIRST_BYTES

    def __post_init__(self) -> None:
        self.nbytes = min(self.most, self.nbytes)

    def measured(self, nbytes: int, seconds: float) -> None:
        """Learn from the bytes and the time of a slice. A slice of less than half of the planned bytes is ignored."""
        if 2 * nbytes >= self.nbytes:
            factor = min(2.0, max(0.5, self.seconds() / max(seconds, 1e-9)))
            self.nbytes = min(self.most, max(LEAST_BYTES, int(self.nbytes * factor)))


def paced(
    work: Sliced[R], report: P, clock: Callable[[], float], seconds: Callable[[], float]
) -> Generator[P, None, R]:
    """
    Join pieces of work into slices, and yield after each slice.

    A slice ends if one more piece as long as the last would make it too long. It also ends before a piece that was
    announced as LONG (`slices.py`).

    Args:
        work: The pieces.
        report: What to yield.
        clock: Returns seconds that never go back.
        seconds: Returns how long a slice may take now.
    """
    slice_began = piece_began = clock()
    while True:
        try:
            is_long = next(work)
        except StopIteration as end:
            result: R = end.value
            return result
        now = clock()
        slice_seconds, piece_seconds = now - slice_began, now - piece_began
        if is_long or slice_seconds + piece_seconds > seconds():
            yield report
            slice_began = piece_began = clock()
        else:
            piece_began = now


class Share:
    """
    Gives a load half of the time: after each slice it waits until streams were served for as long as the slice took.

    A slice cannot always be short: an array or a layer of a forward pass may be large. With this rule at most every
    second gap between the tokens of a stream is longer than its own step.
    """

    def __init__(self) -> None:
        self._owed = 0.0
        """Seconds for which streams must be served before the next slice."""

    @property
    def due(self) -> bool:
        """Whether the load may go on."""
        return self._owed <= 0

    def loaded(self, seconds: float) -> None:
        """Note how long a slice took."""
        self._owed = seconds

    def served(self, seconds: float) -> None:
        """Note how long streams were served."""
        self._owed -= seconds
