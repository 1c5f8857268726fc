"""Data types of benchmark results: metrics, rows of values, ratios and targets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, NamedTuple

OURS = "mlx-sidecar"
LESS, MORE = "less", "more"


class Metric(NamedTuple):
    """A measured quantity. `better` is LESS, MORE, or empty if neither is better."""

    name: str
    unit: str
    better: str = LESS


FIRST_TOKEN = Metric("first token", "ms")
SPEED = Metric("throughput", "tokens/s", MORE)
WALL = Metric("all of it", "ms")
COMPUTED = Metric("prompt tokens computed", "tokens")


@dataclass(frozen=True, slots=True)
class Row:
    """
    One figure of one system.

    Attributes:
        case: The measured case, such as "2048 tokens".
        metric: The metric.
        system: Name of the system.
        values: One value for each round, in the order of the rounds. Within a round, systems were measured in turn.
    """

    case: str
    metric: Metric
    system: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the values."""
        return median(self.values)

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> Row:
        """Parse a row of `Result.raw`."""
        return cls(raw["case"], Metric(*raw["metric"]), raw["system"], tuple(raw["values"]))


@dataclass(frozen=True, slots=True)
class Target:
    """A bound that the project sets for a figure; `value` is the figure of this run."""

    text: str
    value: float
    bound: float
    better: str = LESS

    @property
    def reached(self) -> bool:
        """Whether the figure is on the right side of the bound."""
        return self.value <= self.bound if self.better == LESS else self.value >= self.bound


@dataclass(slots=True)
class Result:
    """The result of one workload."""

    title: str
    rows: list[Row] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)

    def find(self, case: str, metric: Metric, system: str) -> Row | None:
        """Return one row; None if it was not measured."""
        return next((row for row in self.rows if (row.case, row.metric, row.system) == (case, metric, system)), None)

    def ratios(self, case: str, metric: Metric, system: str, to: str) -> list[float]:
        """Return for each round the ratio of `system` to the system `to`; empty if one of them was not measured."""
        one, other = self.find(case, metric, system), self.find(case, metric, to)
        if one is None or other is None:
            return []
        return [a / b for a, b in zip(one.values, other.values, strict=False) if b]

    def aim(self, text: str, values: Iterable[float], bound: float, better: str = LESS) -> None:
        """Add a target for the median of values; none if there are no values, because a system was left out."""
        if values := list(values):
            self.targets.append(Target(text, median(values), bound, better))

    @property
    def raw(self) -> dict[str, Any]:
        """The result as plain data for JSON."""
        return {
            "title": self.title,
            "rows": [asdict(row) for row in self.rows],
            "targets": [{**asdict(target), "reached": target.reached} for target in self.targets],
        }

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> Result:
        """Parse the data of `raw`."""
        targets = [Target(t["text"], t["value"], t["bound"], t["better"]) for t in raw["targets"]]
        return cls(raw["title"], [Row.parse(row) for row in raw["rows"]], targets)
