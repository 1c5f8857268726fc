"""Guesses that are not asked for cost a share of the time at most, on any machine, with any text."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from daemon.engine.scheduling.governor import MOST_GUESSES, Check, Governor, Source
from daemon.engine.scheduling.pass_costs import SAVED

STEP = 0.02
SHARE = 0.03
"""What guessing may cost: its share of the time, the first tries, and the rounding of what is measured."""
ANSWER = 300
"""Steps of an answer; the same holds for each, but for what may be lost at once."""

LINES: dict[str, Callable[[int], float]] = {
    "bound by weights": lambda fed: 1 + 0.02 * (fed - 1),
    "bound by products": lambda fed: 0.3 + 0.7 * fed,
    "other kernels for several tokens": lambda fed: 1.0 if fed == 1 else 2.8 + 0.02 * fed,
    "a step at eight tokens": lambda fed: 1 + 0.1 * (fed - 1) if fed < 8 else 4.0,
}
"""What a pass takes, in plain steps, by the tokens of a row."""


@dataclass(slots=True)
class Machine:
    """
    Decodes rows as the engine does, in simulated time.

    Attributes:
        source: Of all that is random.
        line: What a pass takes.
        rows: Rows that share a pass.
        recurrent: Whether tokens behind a wrong guess are fed once more.
        window: Most guesses of a pass, at random up to this.
        bubble: Share of a step that is lost when a pass cannot begin early.
        compiling: Seconds that the first pass of a shape takes beside; they are counted apart.
        drift: What a step takes more than the one before it, until a request with fewer tokens begins.
        usual: Seconds of a step that such a request begins with.
    """

    source: random.Random
    line: Callable[[int], float]
    rows: int = 1
    recurrent: bool = False
    window: int = MOST_GUESSES
    bubble: float = 0.0
    compiling: float = 0.0
    drift: float = 0.0
    governor: Governor = field(default_factory=Governor)
    seconds: float = 0.0
    plain: float = 0.0
    compiled: float = 0.0
    bursts: int = 0
    usual: float = STEP
    _step: float = STEP
    _late: bool = False
    _unfed: int = 0
    _shapes: set[int] = field(default_factory=lambda: {1})

    def step(self, chances: dict[Source, float], offered: float) -> None:
        """Take one step, in which rows have something to guess with a chance of `offered`."""
        self._step = self._step * (1 + self.drift) if self.drift and self._step < 1.4 * self.usual else self.usual
        governor, most = self.governor, self.source.randint(1, self.window)
        governor.share(self.rows)
        labels = {row: label for row in range(self.rows) if self.source.random() < offered
                  for label in [self.source.choice(list(chances))]}  # fmt: skip
        counts = {row: count for row, label in labels.items() if (count := governor.count(label, most))}
        if counts and not self._late and self.source.random() < 0.2:  # the pending token is another
            self._passed([Check(labels[row], 0, 0) for row in counts], 0)
            return
        if counts and self.rows > 1:
            width = governor.width([(labels[row], count) for row, count in counts.items()])
            counts = {row: min(width, count) for row, count in counts.items()} if width else {}
        checks = []
        for row, count in counts.items():
            right = next((i for i in range(count) if self.source.random() > chances[labels[row]]), count)
            checks.append(Check(labels[row], count, right, again=self._unfed))
        self._passed(checks, max(counts.values(), default=0))

    def _passed(self, checks: list[Check], width: int) -> None:
        fed = 1 + width + self._unfed
        waited = self._late or (checks and not width)  # a pass begins when the tokens before it are known
        took = self._step * (self.line(fed) + self.bubble * bool(waited)) * self.source.uniform(0.95, 1.05)
        burst = self.compiling * (fed not in self._shapes)
        self._shapes.add(fed)
        self.bursts += burst > 0
        tokens = self.rows + sum(check.accepted for check in checks)
        wrong = [check for check in checks if check.accepted < check.guessed]
        self._unfed = max((1 + check.accepted for check in wrong), default=0) if self.recurrent else 0
        self._late = width > 0
        self.governor.stepped(took + burst, self.rows, checks, tokens)
        self.seconds += took
        self.plain += self._step * tokens / self.rows
        self.compiled += burst


def machine(source: random.Random, line: str) -> Machine:
    """Return a machine with random properties."""
    return Machine(
        source,
        LINES[line],
        rows=source.choice([1, 4, 8]),
        recurrent=source.random() < 0.5,
        window=source.choice([2, MOST_GUESSES]),
        bubble=source.choice([0.0, 0.2]),
        compiling=source.choice([0.0, 1.0]),
        drift=source.choice([0.0, 0.002]),
    )


@pytest.mark.parametrize("line", LINES)
def test_guesses_cost_a_share_at_most_on_any_machine(line: str) -> None:
    """Texts change all the time from what is guessed well to what is not, and so does a step. Time is simulated."""
    for case in range(12):
        source = random.Random(f"{line}/{case}")
        runs, lost = machine(source, line), [0.0]
        sources = [Source(3, "long"), Source(3, "short"), Source(5)]
        jumps = source.random() < 0.5
        for _ in range(source.randint(3, 12)):
            runs.usual = STEP * (source.choice([0.7, 1.0, 1.4]) if jumps else 1.0)
            chances = {one: source.choice([0.0, 0.3, 0.6, 0.95]) for one in sources}
            offered = source.choice([0.1, 0.5, 1.0])
            for _ in range(source.randint(50, 600)):
                runs.step(chances, offered)
                lost.append((runs.seconds - (1 + SHARE) * runs.plain) / STEP)
        assert runs.bursts <= 20, f"case {case}: {runs.bursts} shapes were compiled"
        assert lost[-1] <= 0, f"case {case}: {runs.plain / runs.seconds:.3f} {runs}"
        most = max(after - before for before, after in zip(lost, lost[ANSWER:], strict=False))
        assert most <= 3 * SAVED, f"case {case}: {most:.1f} steps of an answer {runs}"
