"""Histograms of the engine's turns, of the gaps between tokens, and of the requests that share a step. Pure."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

_GROWTH = math.log(1.05)
"""Natural logarithm of the ratio of neighbouring buckets: they are five per cent apart."""


@dataclass(slots=True)
class Histogram:
    """Counts of values in logarithmic buckets; the range of the values bounds the number of buckets."""

    count: int = 0
    _buckets: Counter[int] = field(default_factory=Counter)

    def observe(self, value: float) -> None:
        """Add a value; a value below a millionth counts as a millionth."""
        self.count += 1
        self._buckets[round(math.log(max(value, 1e-6)) / _GROWTH)] += 1

    def quantile(self, share: float) -> float:
        """Return the quantile at a share from 0 to 1, within three per cent; 0 before the first value."""
        rank = share * self.count
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return math.exp(bucket * _GROWTH)
        return 0.0


class EngineTimings:
    """
    The measurements of an engine since its start.

    Attributes:
        steps: Seconds of the loop's turns that had something to do.
        gaps: Seconds between two tokens of one request.
        rows: Requests that got a token in one turn.
    """

    def __init__(self) -> None:
        self.steps = Histogram()
        self.gaps = Histogram()
        self.rows = Histogram()
