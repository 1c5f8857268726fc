"""What guesses of the rows of a pass are expected to gain. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from daemon.engine.scheduling.guess_record import Record
from daemon.engine.scheduling.pass_costs import PassCosts

WORTH = 1.03
"""Gain from which it is believed: times are measured with noise, and the best of several looks better than it is."""


@dataclass(frozen=True, slots=True)
class Bet:
    """
    Guesses that a pass may check.

    Attributes:
        guesses: Of each row that guesses, its source and how many there are.
        rows: Rows that share the pass.
        waits: Whether it is not known yet if the guesses continue the pending tokens. Those of a row that do not are
            void, and if none do, the wait was in vain.
    """

    guesses: Sequence[tuple[Record, int]]
    rows: int = 1
    waits: bool = False

    def brings(self, width: int) -> float:
        """Return how many guesses of all rows are right in a pass of a width, on average."""
        return sum(self._fits(record) * record.brings(min(width, count)) for record, count in self.guesses)

    def best(self, costs: PassCosts, widths: Sequence[int], share: float = 1.0) -> tuple[int, float]:
        """
        Return the number of guesses a row, of some, with the largest gain, and the gain; (0, 1) of none.

        Passes are taken to cost a share of what they do.
        """
        best, most = 0, 1.0
        vain = prod(1 - self._fits(record) for record, _ in self.guesses)
        for width in widths:
            cost = share * ((1 - vain) * costs.cost(width) + vain * costs.vain)
            gain = (self.rows + self.brings(width)) / (self.rows * (1 + cost))
            if gain > most:
                best, most = width, gain
        return best, most

    @property
    def compared(self) -> bool:
        """Whether the chances of all guesses are known without a pass."""
        return all(record.compared for record, _ in self.guesses)

    @property
    def failed(self) -> bool:
        """Whether the last pass that checked guesses of one of the sources lost."""
        return any(record.failed for record, _ in self.guesses)

    def may_be_tried(self, costs: PassCosts, widths: Sequence[int]) -> bool:
        """Whether a try may find a gain: not where chances are known, and passes at half of their cost would lose."""
        return not self.compared or self.best(costs, widths, 0.5)[1] > WORTH

    def put_off(self, now: float) -> float:
        """Return for how many seconds of passes no try is made, as the last ones failed."""
        return max(0.0, max(record.until for record, _ in self.guesses) - now)

    def _fits(self, record: Record) -> float:
        return record.fits if self.waits else 1.0
