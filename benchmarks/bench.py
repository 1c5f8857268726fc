"""One benchmark run: its models, the systems under test, and the alternation of their turns."""

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
"""The measurements of one turn of one system."""


@dataclass
class Bench:
    """
    The context of all workloads of a run.

    Attributes:
        folder: Folder of the files of models and servers.
        starters: Start functions of the systems under test, mlx-sidecar first.
        rounds: Measured turns of each system.
        quick: Whether this is only a test of the harness, with tiny models and one round.
        left_out: Peers that failed at a workload, with the reason. The report shows them.
    """

    folder: Path
    starters: Sequence[StartsSystem]
    rounds: int
    quick: bool = False
    left_out: list[str] = field(default_factory=list)
    _models: dict[str, Path] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=count)

    def size(self, full: SizeT, quick: SizeT) -> SizeT:
        """Return `quick` in a quick run, else `full`."""
        return quick if self.quick else full

    def model(self, shape: str) -> Path:
        """Return the directory of a model of a shape, which is written at the first call."""
        if shape not in self._models:
            self._models[shape] = shapes.write(self.folder / "models", shape, tiny=self.quick, seed=len(self._models))
        return self._models[shape]

    @contextmanager
    def excused(self, what: str) -> Iterator[None]:
        """Continue without a peer that fails, and record the failure of `what` in `left_out`."""
        try:
            yield
        except Exception as error:
            reason = str(error).replace(str(self.folder), "")[:200]
            self.left_out.append(f"{what}: {type(error).__name__}: {reason}")
            print(f"  {self.left_out[-1]}", file=sys.stderr)

    @contextmanager
    def running(self, *models: Path, starters: Sequence[StartsSystem] | None = None) -> Iterator[list[System]]:
        """
        Start one server of each system, and end them after the block.

        A peer that cannot start with these models is left out. The first system must start.
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
        Measure all sides alternately (A B A B), and return their figures. Round 0 is a warm-up and is not counted.

        In a round, all sides get the same seed, so the same prompts. A side that fails is left out of all later rounds.

        Args:
            case: Name of the case, in the table.
            sides: For each system, the function that runs one turn with a seed.
            rounds: Number of rounds; by default that of the run.
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
