"""Figures: what was measured, as medians, spreads and ratios of one run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, NamedTuple

OURS = "mlx-sidecar"
LESS, MORE = "less", "more"


class Metric(NamedTuple):
    """What a number means; `better` is LESS, MORE, or empty where neither is."""

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
        case: What was asked, such as "2048 tokens".
        metric: What was measured.
        system: Who was asked.
        values: One value for each round, in the order of the rounds; systems took turns within each.
    """

    case: str
    metric: Metric
    system: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return median(self.values)

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> Row:
        """Read what `Result.raw` wrote."""
        return cls(raw["case"], Metric(*raw["metric"]), raw["system"], tuple(raw["values"]))


@dataclass(frozen=True, slots=True)
class Target:
    """What the project wants of a figure; `value` is what this run gave."""

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
    """What one workload gave."""

    title: str
    rows: list[Row] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)

    def find(self, case: str, metric: Metric, system: str) -> Row | None:
        """Return one row, if that was measured."""
        return next((row for row in self.rows if (row.case, row.metric, row.system) == (case, metric, system)), None)

    def ratios(self, case: str, metric: Metric, system: str, to: str) -> list[float]:
        """Return one ratio for each round, `system` to the system `to`; empty if one of them was not measured."""
        one, other = self.find(case, metric, system), self.find(case, metric, to)
        if one is None or other is None:
            return []
        return [a / b for a, b in zip(one.values, other.values, strict=False) if b]

    def aim(self, text: str, values: Iterable[float], bound: float, better: str = LESS) -> None:
        """Set a target for the median of figures; nothing if there are none, because a system was left out."""
        if values := list(values):
            self.targets.append(Target(text, median(values), bound, better))

    @property
    def raw(self) -> dict[str, Any]:
        """As JSON wants it."""
        return {
            "title": self.title,
            "rows": [asdict(row) for row in self.rows],
            "targets": [{**asdict(target), "reached": target.reached} for target in self.targets],
        }

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> Result:
        """Read what `raw` wrote."""
        targets = [Target(t["text"], t["value"], t["bound"], t["better"]) for t in raw["targets"]]
        return cls(raw["title"], [Row.parse(row) for row in raw["rows"]], targets)
