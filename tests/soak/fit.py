"""Fits a line to the memory of a process over time, with a confidence interval of its slope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, linear_regression

WARM_UP = 0.25
"""Share of a run that is left out: caches fill, arenas grow to their size."""
BLOCKS = 12
"""Samples are averaged over so many stretches of time: neighbouring samples say the same, and would feign certainty."""
T_95 = 2.228
"""Student's t for a two-sided 95 % interval, with `BLOCKS` - 2 degrees of freedom."""
MOST_BYTES_PER_HOUR = 1_000_000


@dataclass(frozen=True, slots=True)
class Slope:
    """
    Growth in bytes an hour.

    Attributes:
        value: Least-squares estimate.
        margin: Half the width of its 95 % confidence interval.
    """

    value: float
    margin: float

    @property
    def leaks(self) -> bool:
        """Whether it is above 1 MB an hour, and not by chance: the interval does not reach down to zero."""
        return self.value > MOST_BYTES_PER_HOUR and self.value > self.margin

    @property
    def conclusive(self) -> bool:
        """Whether a leak of 1 MB an hour would have shown: the interval lies below it, or is a leak."""
        return self.leaks or self.value + self.margin <= MOST_BYTES_PER_HOUR

    def __str__(self) -> str:
        """Return it in MB an hour."""
        low, high = _mb(self.value - self.margin), _mb(self.value + self.margin)
        return f"{_mb(self.value)} MB/h (95 % interval {low} to {high})"


def slope(samples: Sequence[tuple[float, int]]) -> Slope:
    """
    Fit a line to memory after the warm-up.

    Samples of one process are no independent draws: memory stays where it is for seconds. So they are averaged over
    twelve stretches of equal length first, and the line goes through the averages; its residuals, with ten degrees of
    freedom, give the interval. A step at the end of a run widens it, a steady growth does not.

    Args:
        samples: Seconds and bytes, in order of time.

    Raises:
        ValueError: If there are fewer than two samples a stretch.
    """
    first, last = samples[0][0], samples[-1][0]
    begin = first + WARM_UP * (last - first)
    length = (last - begin) / BLOCKS
    stretches: list[list[tuple[float, int]]] = [[] for _ in range(BLOCKS)]
    for when, size in samples:
        if when >= begin:
            stretches[min(BLOCKS - 1, int((when - begin) / length))].append((when, size))
    if min(map(len, stretches)) < 2:
        raise ValueError(f"{len(samples)} samples are too few for {BLOCKS} stretches after the warm-up")
    times = [fmean(when for when, _ in stretch) / 3600 for stretch in stretches]
    sizes = [fmean(size for _, size in stretch) for stretch in stretches]
    line = linear_regression(times, sizes)
    residuals = [size - (line.slope * time + line.intercept) for time, size in zip(times, sizes, strict=True)]
    middle = fmean(times)
    variance = sum(r * r for r in residuals) / (BLOCKS - 2)
    error = (variance / sum((time - middle) ** 2 for time in times)) ** 0.5
    return Slope(line.slope, T_95 * error)


def _mb(value: float) -> str:
    return f"{value / 1e6:+.3f}"
