"""Line charts of the `stats` page as coordinates, which its template draws as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from daemon.cli.output.series import Point

WIDTH, HEIGHT = 560, 150
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_PAST_SECONDS = (60, 120, 300, 600, 1200, 1800, 3600)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart: name, number of its colour, pieces as SVG `points`, and single points as dots."""

    name: str
    colour: int
    pieces: tuple[str, ...]
    dots: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """
    Lines over the last minutes.

    Attributes:
        title: Its title.
        lines: The lines.
        rows: Height and text of each horizontal rule.
        columns: Position and text of each time on the axis.
    """

    title: str
    lines: tuple[Line, ...]
    rows: tuple[tuple[float, str], ...]
    columns: tuple[tuple[float, str], ...]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(line.pieces or line.dots for line in self.lines)


def chart(
    title: str, lines: Iterable[tuple[str, Sequence[Point]]], show: Callable[[float], str], top: float | None = None
) -> Chart:
    """
    Lay lines out on common axes. The right end of the time axis is now.

    Args:
        title: The title.
        lines: Name and points of each line.
        show: Formats a value of the vertical axis.
        top: Highest value of the axis; None for the next round number above the lines.
    """
    given = list(lines)
    known = [point for _, points in given for point in points if point.value is not None]
    ceiling = top or nice_ceiling(max((point.value or 0.0 for point in known), default=0.0))
    oldest = max((point.age for point in known), default=0.0)
    past = next((span for span in _PAST_SECONDS if span >= oldest), oldest)

    def place(point: Point) -> tuple[float, float]:
        return round(WIDTH * (1 - point.age / past), 1), round(HEIGHT * (1 - (point.value or 0.0) / ceiling), 1)

    drawn = []
    for number, (name, points) in enumerate(given):
        runs = [[place(point) for point in run] for run in _runs(points)]
        pieces = tuple(" ".join(f"{x},{y}" for x, y in run) for run in runs if len(run) > 1)
        drawn.append(Line(name, number, pieces, tuple(run[0] for run in runs if len(run) == 1)))
    rows = tuple((round(HEIGHT * (1 - part), 1), show(part * ceiling)) for part in (0.0, 0.5, 1.0))
    columns = tuple((round(WIDTH * (1 - part), 1), _ago(part * past)) for part in (1.0, 0.5, 0.0))
    return Chart(title, tuple(drawn), rows, columns)


def nice_ceiling(value: float) -> float:
    """Return a round number that is at least `value`; 1 for zero."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in _STEPS if step * power >= value * (1 - 1e-9))


def _runs(points: Sequence[Point]) -> list[list[Point]]:
    """Return the runs of points between gaps."""
    runs: list[list[Point]] = [[]]
    for point in points:
        if point.value is None:
            runs.append([])
        else:
            runs[-1].append(point)
    return [run for run in runs if run]


def _ago(seconds: float) -> str:
    return f"{seconds / 60:g} min ago" if seconds else "now"
