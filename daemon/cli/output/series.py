"""Counters over time as rates and shares. A counter that fell began anew, with the engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from mlx_sidecar import HistorySample

MOST_POINTS = 60
"""Single samples of ten seconds hold a request or none: joined, they show a course."""


class Point(NamedTuple):
    """A value some seconds ago; None where there is nothing to show."""

    age: float
    value: float | None


def rates(history: Sequence[HistorySample], counter: str) -> list[Point]:
    """Return how much a counter grew each second."""
    return [Point(step.age, step.growth[0] / step.seconds) for step in _steps(history, counter)]


def shares(history: Sequence[HistorySample], part: str, whole: str) -> list[Point]:
    """Return how large a part of one counter's growth another one's was; None where neither grew."""
    steps = ((step.age, *step.growth) for step in _steps(history, part, whole))
    return [Point(age, parts / wholes if wholes else None) for age, parts, wholes in steps]


class _Step(NamedTuple):
    """What counters grew in so many seconds, until some seconds ago."""

    age: float
    seconds: float
    growth: tuple[int, ...]

    def joined(self, later: _Step) -> _Step:
        both = zip(self.growth, later.growth, strict=True)
        return _Step(later.age, self.seconds + later.seconds, tuple(one + two for one, two in both))


def _steps(history: Sequence[HistorySample], *counters: str) -> Iterator[_Step]:
    """Yield steps of equal length, as many as a chart can show, or of the samples' own if those are longer."""
    least = ((history[0].age or 0.0) - (history[-1].age or 0.0)) / MOST_POINTS if history else 0.0
    open_step: _Step | None = None
    for one, two in pairwise(history):
        step = _Step(two.age or 0.0, (one.age or 0.0) - (two.age or 0.0), _growth(one, two, counters))
        open_step = step if open_step is None else open_step.joined(step)
        if open_step.seconds > 0 and open_step.seconds >= least:
            yield open_step
            open_step = None
    if open_step is not None and open_step.seconds > 0:
        yield open_step


def _growth(one: HistorySample, two: HistorySample, counters: Sequence[str]) -> tuple[int, ...]:
    old = [getattr(one, name) for name in counters]
    new = [getattr(two, name) for name in counters]
    if any(late < early for early, late in zip(old, new, strict=True)):
        return tuple(new)
    return tuple(late - early for early, late in zip(old, new, strict=True))
