"""Gauges: how long the engine's turns and the gaps between tokens are, and how many share a step. Pure."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

_GROWTH = math.log(1.05)
"""Buckets of a distribution are five per cent apart."""


@dataclass(slots=True)
class Histogram:
    """Values since the start, kept as counts of buckets: its size is bounded by the range of what was seen."""

    count: int = 0
    _buckets: Counter[int] = field(default_factory=Counter)

    def observe(self, value: float) -> None:
        """Add a value; those below a millionth count as that."""
        self.count += 1
        self._buckets[round(math.log(max(value, 1e-6)) / _GROWTH)] += 1

    def quantile(self, share: float) -> float:
        """Return the least value that this share of all is not above, within three per cent; 0 before the first."""
        rank = share * self.count
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return math.exp(bucket * _GROWTH)
        return 0.0


class EngineTimings:
    """
    What the engine measures of itself.

    Attributes:
        steps: Seconds of the loop's turns that had something to do.
        gaps: Seconds between two tokens of one request.
        rows: Requests that got a token in one turn.
    """

    def __init__(self) -> None:
        self.steps = Histogram()
        self.gaps = Histogram()
        self.rows = Histogram()
