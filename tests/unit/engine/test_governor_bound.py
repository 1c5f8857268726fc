"""Guesses that are not asked for cost a share of the time at most, on any machine, with any text."""

from __future__ import annotations

import itertools
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
        governor.set_rows(self.rows)
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


HEAD = Source(5)
"""Only passes tell how many of its guesses are right."""
TEXT = 800


def wrong(governor: Governor, steps: int, guess: float, again: float | None, begin: float, seed: int) -> list[float]:
    """
    Decode four rows whose guesses are never right, in the order of steps that the engine has.

    Args:
        governor: The governor.
        steps: Tokens of a row, at least.
        guess: What a pass with guesses takes, in plain steps.
        again: What the pass behind it takes, which feeds tokens again; None if there is none.
        begin: What it takes to begin the next pass before its tokens are waited for.
        seed: Of the noise.

    Returns:
        The steps lost so far, for each token of a row.
    """
    noise, lost, ahead, unfed, took = random.Random(seed), [0.0], False, False, 0.0
    governor.set_rows(4)
    while len(lost) <= steps:
        tries = governor.count(HEAD, 1) and governor.width([(HEAD, 1)] * 4, waits=ahead)
        if tries:
            step, tokens, ahead, unfed = guess + ahead, 1 + ahead, False, again is not None
        elif unfed:
            step, tokens, unfed = again or 0.0, 1, False
        elif not ahead:
            step, tokens, ahead = begin, 0, True
        else:
            step, tokens = 1.0, 1
        step *= noise.uniform(0.95, 1.05)
        took += step
        governor.stepped(step * STEP, 4, [Check(HEAD, 1, 0)] * 4 if tries else [], 4 * tokens)
        lost += [took - len(lost) - place for place in range(tokens)]
    return lost


@pytest.mark.parametrize("costs", [(1.2, 1.2, 0.9), (1.8, 1.2, 0.8), (2.4, 1.3, 0.1), (2.0, None, 0.5)])
def test_source_that_is_never_right_costs_two_percent_of_a_text(costs: tuple[float, float | None, float]) -> None:
    """With all that a try costs: its pass, the one behind it, and that none was under way. Later texts lose less."""
    for seed in range(10):
        governor = Governor()
        lost = wrong(governor, 3 * TEXT, *costs, seed)
        first, second, third = (after - before for before, after in itertools.pairwise(lost[::TEXT]))
        assert first <= 0.02 * TEXT, f"seed {seed}: {first:.1f} steps"
        assert max(second, third) <= 0.01 * TEXT, f"seed {seed}: {second:.1f}, {third:.1f} steps"
        assert governor.records[HEAD].guessed > 4 * 3, "it is tried again"
