"""What passes of a model take with and without guesses, and how much guessing may still lose. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt

# What a guess adds to a pass is no straight line. A device may use other kernels for several tokens than for one, and
# it may compile them when it meets a pass of a shape for the first time. So the cost of each width is measured apart,
# in powers of two, and the first pass of a shape is not measured. A width that was not measured is tried only where it
# promises a gain, after the width below it, and where a pass that brings nothing would not break the bound. In seconds,
# of any part of the time, however short:
#
#   lost  <=  LOSS_SHARE * spent + (SAVED + CREDIT) * step
#
# Lost is what passes with guesses took, less what their tokens would have taken without guesses. `budget` is what may
# be lost now: it grows by a share of the time and by gains, up to SAVED steps. A pass begins before the one before it
# is read; guesses break this. The next pass without guesses counts as part of the loss as well. In a batch it may only
# feed tokens again: then the pass behind it begins late, too, and what it takes to begin it is lost as well.
#
# Tokens are worth what a step takes, and steps change with what is decoded. So passes without guesses are measured
# between those with guesses: after _SOON of them, or _LONGEST if they gain much, and once passes with guesses became
# shorter. If steps did as well, what was gained since the last step is counted anew.

LOSS_SHARE = 0.015
"""Share of the time that guessing in vain may take."""
_FIRST_COST = 0.1
"""What a guess is hoped to add to a pass, as a share of it, before anything is known."""
_LARGEST_COST = 1.0
"""What a guess is feared to add: single passes over the same tokens cost no more."""
_WEIGHT = 1 / 16
"""Weight of a new measurement in an average."""
_PLAIN = 4
"""Passes without a guess that are measured before the first guess."""
_LONGEST = 32
"""Passes with guesses after which passes without are measured again: they take longer behind more tokens."""
_SOON = 16
"""The same where guesses gain little: a step that became shorter may turn that into a loss."""
_MUCH = 1.5
"""Gain from which it is not little."""
_FASTER = 0.85
"""Share of what a pass with guesses is expected to take, below which passes are shorter than they were."""
_AGAIN = 2
"""How many passes without guesses are measured again."""
_MEASURED = 2
"""Measured passes that make the cost of a width known."""
_STALE = 4096
"""Passes after which a width that was not used is not known any more."""
_AGES = 64
"""Passes after which costs are computed again, if nothing was learnt meanwhile."""
SAVED = 3
"""Passes that may be lost at most at once, whatever was spent or gained before: an answer may be short."""
CREDIT = 1
"""Passes that sure guesses may lose before their share allows it; others less, as they are less likely to be right."""


@dataclass(slots=True)
class _Cost:
    """
    What guesses of some widths cost, as shares of a pass without.

    Attributes:
        each: What each adds to its pass, on average.
        behind: What the pass behind takes longer, on average of all passes: it begins late, or is fed tokens again.
        passes: How many were measured.
        latest: When the last one was.
    """

    each: float = 0.0
    behind: float = 0.0
    passes: int = 0
    latest: int = 0

    @property
    def weight(self) -> float:
        """Weight of the last pass in the averages."""
        return max(_WEIGHT * 2, 1 / self.passes)


@dataclass(slots=True)
class Purse:
    """
    What passes over all numbers of rows share.

    Attributes:
        seconds: What tries of a model may lose now.
        spent: What all passes took.
        learnt: Rises when a cost may have changed; until then no cost is computed twice.
    """

    seconds: float = 0.0
    spent: float = 0.0
    learnt: int = 0


@dataclass(slots=True)
class PassCosts:
    """
    What passes over some number of rows take.

    Attributes:
        purse: What passes over all numbers of rows share.
        fewer: Costs of passes over fewer rows, if they are known; more rows cost no less.
        step: Seconds of a pass without a guess; 0 if not known.
        budget: Seconds that guesses may lose now.
        vain: What a pass takes longer behind a wait for tokens that no guess continued, as a share of a pass.
    """

    purse: Purse
    fewer: PassCosts | None = None
    step: float = 0.0
    budget: float = 0.0
    vain: float = _FIRST_COST
    _costs: dict[int, _Cost] = field(default_factory=dict)
    _shapes: set[tuple[int, int]] = field(default_factory=set)
    """Rows and tokens of a row of passes that were made."""
    _plain: int = 0
    _passes: int = 0
    _in_a_row: int = 0
    _taken: float = 0.0
    """Seconds of passes with guesses since a pass without was measured."""
    _tokens: float = 0.0
    """Tokens of a row that they brought: they are worth less if passes without became shorter meanwhile."""
    _due: int = 0
    _faster: int = 0
    """How many of the last passes with guesses took less than such passes did."""
    _expected: dict[int, float] = field(default_factory=dict)
    """What `cost` returned of each width, at the state of `purse.learnt` in `_expected_at`."""
    _expected_at: int = 0

    @property
    def measured(self) -> bool:
        """Whether enough passes without a guess were measured to know what guesses cost."""
        return self._plain >= _PLAIN and self.step > 0

    @property
    def known(self) -> bool:
        """Whether guesses may be made now: passes without a guess were measured, not too long ago."""
        return self.measured and not self._due

    @property
    def stake(self) -> float:
        """Seconds that a try may lose now: passes over other numbers of rows may have lost what these gained."""
        return min(self.budget, self.purse.seconds)

    def knows(self, width: int) -> bool:
        """Whether passes with so many guesses were measured."""
        cost = self._costs.get(_bucket(width))
        aged = self._passes // _AGES * _AGES  # as `learnt` tells it: else a cost would depend on when it was asked for
        return cost is not None and cost.passes >= _MEASURED and aged - cost.latest < _STALE

    def cost(self, width: int) -> float:
        """Return what so many guesses are expected to add to a pass, as a share of it; the best case if not known."""
        if self._expected_at != self.purse.learnt:
            self._expected_at = self.purse.learnt
            self._expected.clear()
        found = self._expected.get(width)
        if found is None:
            found = self._expected[width] = self._expect(width)
        return found

    def _expect(self, width: int) -> float:
        if self.knows(width):
            cost = self._costs[_bucket(width)]
            return cost.each * width + cost.behind
        if self.fewer is not None and self.fewer.knows(width):
            return self.fewer.cost(width)
        measured = [bucket for bucket in self._costs if self.knows(1 << bucket)]
        if not measured:
            return _FIRST_COST * width if self.fewer is None else self.fewer.cost(width)
        nearest = min(measured, key=lambda bucket: abs(bucket - _bucket(width)))
        at = 1 << nearest
        return self._costs[nearest].each * at * min(width / at, sqrt(width / at)) + self._costs[nearest].behind

    def risk(self, width: int) -> float:
        """Return what so many guesses are feared to add to a pass, as a share of it."""
        if self.knows(width):
            return self.cost(width)
        narrower = [bucket for bucket in self._costs if bucket < _bucket(width) and self.knows(1 << bucket)]
        each = self._costs[max(narrower)].each if narrower else _LARGEST_COST
        return max(each * width, self.cost(width))

    def plain(self, seconds: float) -> None:
        """Measure a pass without a guess, which began while the one before it was computed."""
        self._plain += 1
        fell = seconds < _FASTER * self.step  # another request has fewer tokens: too long a step would hide a loss
        weight = max(_WEIGHT, 1 / self._plain, 1 / 2 if self._due else 0.0, 1 / 4 if fell else 0.0)
        # A pause of the machine is no pass: it counts as at most twice the usual.
        self.step += weight * (min(seconds, 2 * self.step or seconds) - self.step)
        if fell:
            self.lose(max(0.0, self._taken - self._tokens * self.step))
        self._taken = self._tokens = 0.0
        self._due = max(0, self._due - 1)
        self._in_a_row = 0
        self._spend(seconds)

    def first(self, rows: int, fed: int) -> bool:
        """Whether a pass is the first one of so many rows and tokens of each; the next one is not."""
        met = (rows, fed) in self._shapes
        self._shapes.add((rows, fed))
        return not met

    def guessed(self, seconds: float, width: int) -> float:
        """
        Measure what a pass with guesses took.

        Args:
            seconds: What it took.
            width: Most guesses of a row.

        Returns:
            The seconds without a pause of the machine: at most twice what was feared.
        """
        cost = self._costs.setdefault(_bucket(width), _Cost())
        known = self.cost(width) - cost.behind * self.knows(width) if cost.passes else self.risk(width)
        seconds = min(seconds, 2 * (1 + known) * self.step)
        faster = cost.passes >= _MEASURED and seconds < _FASTER * (1 + known) * self.step
        self._faster = self._faster + 1 if faster else 0
        each = max(seconds / self.step - 1, 0.0) / width
        cost.passes += 1
        cost.each += cost.weight * (each - cost.each)
        cost.behind -= cost.weight * cost.behind
        cost.latest = self._passes
        self.purse.learnt += 1
        return seconds

    def guessed_at(self, seconds: float, tokens: float) -> None:
        """Book a pass with guesses that no request asked for, and how many tokens it brought of each row."""
        plain = self.step * tokens
        self._in_a_row += 1
        if self._in_a_row >= (_LONGEST if plain > _MUCH * seconds else _SOON) or self._faster >= _AGAIN:
            self._in_a_row, self._due, self._faster = 0, _AGAIN, 0
        self._taken += seconds
        self._tokens += tokens
        self.lose(seconds - plain)
        self._spend(seconds)

    def lose(self, seconds: float) -> None:
        """Book a loss, or a gain below zero."""
        self.budget = min(SAVED * self.step, self.budget - seconds)
        self.purse.seconds = min(SAVED * self.step, self.purse.seconds - seconds)

    def resumed(self, seconds: float, width: int) -> float:
        """
        Book a pass without a guess that could not begin before the tokens of the last one were known.

        Args:
            seconds: What it took.
            width: Guesses of the last pass; 0 if it only waited for a token to guess.

        Returns:
            The seconds that were lost.
        """
        seconds = min(seconds, (2 + self.risk(width or 1)) * self.step)
        lost = seconds - self.step
        cost = self._costs.get(_bucket(width)) if width else None
        if cost is not None and cost.passes:
            cost.behind += cost.weight * lost / self.step
            self.purse.learnt += 1
        elif not width:
            self.vain += _WEIGHT * (max(0.0, lost / self.step) - self.vain)
        self.lose(lost)
        self._spend(seconds)
        return lost

    def _spend(self, seconds: float) -> None:
        self._passes += 1
        self.purse.spent += seconds
        self.purse.learnt += self._passes % _AGES == 0  # a width may not be known any more
        self.lose(-LOSS_SHARE * seconds)


def _bucket(width: int) -> int:
    return (width - 1).bit_length()
