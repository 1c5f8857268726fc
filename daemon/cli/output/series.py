"""
Time series of the `stats` page: rates and ratios from the history's counters.

A counter that fell was reset by a restart of the engine; its new value is then the growth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from mlx_sidecar import HistorySample

MOST_POINTS = 60
"""Samples are joined to at most this many points, because single samples of ten seconds are too noisy."""


class Point(NamedTuple):
    """A value `age` seconds ago; None is a gap."""

    age: float
    value: float | None


def rates(history: Sequence[HistorySample], counter: str) -> list[Point]:
    """Return the growth of a counter per second."""
    return [Point(step.age, step.growth[0] / step.seconds) for step in _steps(history, counter)]


def shares(history: Sequence[HistorySample], part: str, whole: str) -> list[Point]:
    """Return the growth of counter `part` divided by the growth of counter `whole`; None where `whole` did not grow."""
    steps = ((step.age, *step.growth) for step in _steps(history, part, whole))
    return [Point(age, parts / wholes if wholes else None) for age, parts, wholes in steps]


class _Step(NamedTuple):
    """Growth of counters over an interval of `seconds` that ended `age` seconds ago."""

    age: float
    seconds: float
    growth: tuple[int, ...]

    def joined(self, later: _Step) -> _Step:
        pairs = zip(self.growth, later.growth, strict=True)
        return _Step(later.age, self.seconds + later.seconds, tuple(first + second for first, second in pairs))


def _steps(history: Sequence[HistorySample], *counters: str) -> Iterator[_Step]:
    """Yield at most MOST_POINTS steps of about equal length, each of one or more samples."""
    least = ((history[0].age or 0.0) - (history[-1].age or 0.0)) / MOST_POINTS if history else 0.0
    open_step: _Step | None = None
    for earlier, later in pairwise(history):
        seconds = (earlier.age or 0.0) - (later.age or 0.0)
        step = _Step(later.age or 0.0, seconds, _growth(earlier, later, counters))
        open_step = step if open_step is None else open_step.joined(step)
        if open_step.seconds > 0 and open_step.seconds >= least:
            yield open_step
            open_step = None
    if open_step is not None and open_step.seconds > 0:
        yield open_step


def _growth(earlier: HistorySample, later: HistorySample, counters: Sequence[str]) -> tuple[int, ...]:
    old = [getattr(earlier, name) for name in counters]
    new = [getattr(later, name) for name in counters]
    # One counter that fell means another engine: then all of them began at zero.
    if any(after < before for before, after in zip(old, new, strict=True)):
        return tuple(new)
    return tuple(after - before for before, after in zip(old, new, strict=True))
