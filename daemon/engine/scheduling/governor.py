"""Decides how many tokens to guess, and whether guessing gains anything for a model on this machine. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

# What a guess costs and what it brings
#
# A pass that checks k guesses takes t * (1 + s * k) seconds, if a pass without one takes t. It brings the guesses that
# were right up to the first wrong one, and one token more. With a chance p for each guess these are
#
#   1 + p + p^2 + ... + p^k tokens        so that the gain is  (1 + p + ... + p^k) / (1 + s * k)
#
# t, s and p are measured, p for each source. `count` takes the k with the largest gain.
#
# A source with a gain below 1 is parked. It is tried again where that costs little: what guessing lost against passes
# without a guess is summed up, in seconds, and must stay below a share of all seconds spent. A try that may lose half
# a pass so comes after 25 passes. A gain of the past pays for a loss of few passes alone.

MOST_GUESSES = 8
"""Most tokens guessed at a time from n-grams."""
LOSS_SHARE = 0.02
"""Share of the time that guessing in vain may take."""
_TRIED = 4
"""Guesses of a source before its gain is believed."""
_FIRST_COST = 0.1
_FIRST_CHANCE = 0.6
_WEIGHT = 1 / 16
"""Weight of a new measurement in an average."""
_WINDOW = 4096
"""Passes after which what was spent and lost counts half."""
_PLAIN = 4
"""Passes without a guess that are measured before the first guess."""
_LARGEST_COST = 1.0
"""Most that a guess adds to a pass: single passes over the same tokens cost no more. A pause of the machine may."""
_PAID = 4
"""A gain of the past pays for the loss of so many passes."""
_MOST_MODELS = 64


@dataclass(frozen=True, slots=True)
class Source:
    """
    What guesses come from.

    Attributes:
        kind: The kind of source, as a number of the API's `Speculation`.
        quality: Tells apart guesses of one kind that are better than others.
    """

    kind: int
    quality: str = ""


@dataclass(slots=True)
class Record:
    """
    What a source has brought.

    Attributes:
        guessed: Tokens guessed.
        accepted: Guesses that were right.
        chance: Chance that a guess is right if those before it were.
        passes: Passes with guesses.
        seconds: Seconds of these passes.
        tokens: Tokens of these passes.
    """

    guessed: int = 0
    accepted: int = 0
    chance: float = _FIRST_CHANCE
    passes: int = 0
    seconds: float = 0.0
    tokens: int = 0


@dataclass(slots=True)
class Governor:
    """
    What was measured of one model that decodes one request.

    Attributes:
        records: What each source has brought.
        step: Seconds of a pass without a guess; 0 if not known.
    """

    records: dict[Source, Record] = field(default_factory=dict)
    step: float = 0.0
    _passes: int = 0
    _cost: float = _FIRST_COST
    _spent: float = 0.0
    _lost: float = 0.0

    def plain(self, seconds: float) -> None:
        """Measure a pass without a guess, which brought one token."""
        self._passes += 1
        weight = max(_WEIGHT, 1 / self._passes)
        # A pause of the machine is no pass: it counts as at most twice the usual.
        self.step += weight * (min(seconds, 2 * self.step or seconds) - self.step)
        self._spend(seconds)

    def guessed(self, source: Source, seconds: float, guessed: int, accepted: int, tokens: int) -> None:
        """
        Measure a pass with guesses.

        Args:
            source: What guessed.
            seconds: How long the step took.
            guessed: Guesses that were checked.
            accepted: How many of them were right.
            tokens: Tokens that the step brought: one more, or two if a pass was under way before it.
        """
        self.counted(source, guessed, accepted)
        record = self.records[source]
        if self._passes < _PLAIN or not self.step:
            return
        under_way = tokens - accepted - 1
        seconds = min(seconds, (1 + under_way + _LARGEST_COST * guessed) * self.step)
        record.passes += 1
        record.seconds += seconds
        record.tokens += tokens
        cost = (seconds - under_way * self.step) / self.step - 1
        self._cost += _WEIGHT * 2 * (min(max(cost / guessed, 0.0), _LARGEST_COST) - self._cost)
        self._lost = max(-_PAID * self.step, self._lost + seconds - tokens * self.step)
        self._spend(seconds)

    def counted(self, source: Source, guessed: int, accepted: int) -> None:
        """Count guesses, and which of them were right, without their time."""
        record = self.records.setdefault(source, Record())
        record.guessed += guessed
        record.accepted += accepted
        for right in [1.0] * accepted + [0.0] * (accepted < guessed):
            record.chance += max(_WEIGHT / 2, 1 / (record.guessed + 2)) * (right - record.chance)

    def count(self, source: Source, most: int) -> int:
        """Return how many tokens a source may guess now, at most `most`; 0 to guess nothing."""
        if self._passes < _PLAIN or most < 1:
            return 0
        record = self.records.get(source) or Record()
        count = max(range(1, most + 1), key=lambda guesses: self._expected(record, guesses))
        budget = LOSS_SHARE * self._spent - self._lost
        if self._expected(record, count) > 1 and (record.guessed > _TRIED or budget > 0):
            return count if budget > 0 or self._lost < 2 * self.step else 0
        return 1 if budget > self._cost * self.step else 0

    def kinds(self) -> dict[int, list[Source]]:
        """Return the sources that have guessed, by their kind."""
        kinds: dict[int, list[Source]] = {}
        for source in self.records:
            kinds.setdefault(source.kind, []).append(source)
        return kinds

    def gain(self, *sources: Source) -> float:
        """Return the tokens a second of passes with guesses, divided by those without; 0 if not known."""
        records = [self.records[source] for source in sources if source in self.records]
        seconds = sum(record.seconds for record in records)
        return sum(record.tokens for record in records) * self.step / seconds if seconds else 0.0

    def parked(self, source: Source) -> bool:
        """Whether a source has lost so far, and is only tried now and then."""
        record = self.records.get(source)
        if record is None or record.guessed <= _TRIED:
            return False
        return max(self._expected(record, guesses) for guesses in range(1, MOST_GUESSES + 1)) <= 1

    def _expected(self, record: Record, guesses: int) -> float:
        tokens = sum(record.chance**power for power in range(guesses + 1))
        return tokens / (1 + self._cost * guesses)

    def _spend(self, seconds: float) -> None:
        self._spent += seconds
        if self._spent > _WINDOW * self.step > 0:
            self._spent, self._lost = self._spent / 2, self._lost / 2


class Governors:
    """The governors of models, kept while a model is not in use; the one that was used longest ago is forgotten."""

    def __init__(self) -> None:
        self._governors: dict[Hashable, Governor] = {}

    def of(self, model: Hashable) -> Governor:
        """Return the governor of a model."""
        governor = self._governors.pop(model) if model in self._governors else Governor()
        self._governors[model] = governor
        if len(self._governors) > _MOST_MODELS:
            del self._governors[next(iter(self._governors))]
        return governor

    def __iter__(self) -> Iterator[tuple[Hashable, Governor]]:
        """Iterate over the models that have a governor."""
        return iter(list(self._governors.items()))
