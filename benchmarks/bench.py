"""A run: its models, the systems under test, and the turns that they take."""

from __future__ import annotations

import gc
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TypeVar

from benchmarks import shapes
from benchmarks.figures import Metric, Row
from benchmarks.systems import StartsSystem, System

SizeT = TypeVar("SizeT")
Figures = Mapping[Metric, float]
"""What one turn of one system gave."""


@dataclass
class Bench:
    """
    What workloads need.

    Attributes:
        folder: Where models and servers have their files.
        starters: Starts the systems under test, ours first.
        rounds: Turns of each system that count.
        quick: Whether this only shows that the harness works: tiny models, one round.
        left_out: Peers that could not do a workload, and why: their absence is a result.
    """

    folder: Path
    starters: Sequence[StartsSystem]
    rounds: int
    quick: bool = False
    left_out: list[str] = field(default_factory=list)
    _models: dict[str, Path] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=count)

    def size(self, full: SizeT, quick: SizeT) -> SizeT:
        """Return the size of this run."""
        return quick if self.quick else full

    def model(self, shape: str) -> Path:
        """Return a model of a shape, written when it is asked for first."""
        if shape not in self._models:
            self._models[shape] = shapes.write(self.folder / "models", shape, tiny=self.quick, seed=len(self._models))
        return self._models[shape]

    @contextmanager
    def excused(self, what: str) -> Iterator[None]:
        """Go on without a peer that fails, and note it."""
        try:
            yield
        except Exception as error:
            reason = str(error).replace(str(self.folder), "")[:200]
            self.left_out.append(f"{what}: {type(error).__name__}: {reason}")
            print(f"  {self.left_out[-1]}", file=sys.stderr)

    @contextmanager
    def running(self, *models: Path, starters: Sequence[StartsSystem] | None = None) -> Iterator[list[System]]:
        """
        Run one of each system. A peer that cannot start with these models is left out; the first must be there.
        """
        systems: list[System] = []
        try:
            for start in starters or self.starters:
                folder = self.folder / f"{next(self._numbers)}"
                if not systems:
                    systems.append(start(folder, models))
                    continue
                with self.excused(f"{start.name} cannot serve {[path.name for path in models]}"):
                    systems.append(start(folder, models))
            yield systems
        finally:
            for system in systems:
                system.close()

    def take_turns(
        self, case: str, sides: Mapping[str, Callable[[str], Figures]], rounds: int | None = None
    ) -> list[Row]:
        """
        Let each side do its turn in each round, A B A B, and return its figures. Round 0 warms up and does not count.

        A turn gets a seed, the same for all sides of a round. A side whose turn fails is out from then on.
        """
        print(f"  {case}", file=sys.stderr, flush=True)
        rounds = rounds or self.rounds
        values: dict[tuple[Metric, str], list[float]] = defaultdict(list)
        playing = dict(sides)
        for number in range(rounds + 1):
            for name, turn in list(playing.items()):
                if name == next(iter(sides)):
                    figures = turn(f"{case}/{number}")
                else:
                    figures = {}
                    del playing[name]
                    with self.excused(f"{name} failed at {case}"):
                        figures = turn(f"{case}/{number}")
                        playing[name] = turn
                for metric, value in figures.items() if number else ():
                    values[metric, name].append(value)
                gc.collect()
        order = {name: position for position, name in enumerate(sides)}
        rows = [Row(case, metric, name, tuple(got)) for (metric, name), got in values.items() if len(got) == rounds]
        return sorted(rows, key=lambda row: order[row.system])
