"""Decides how many tokens to guess, and whether guessing gains anything for a model on this machine. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

# What a guess costs and what it brings
#
# A pass over b rows that checks k guesses of each takes t * (1 + s * k) seconds, if a pass without guesses takes t. It
# brings of each row the guesses that were right up to the first wrong one, and one token more. With a chance p for each
#
#   one row brings    1 + p + p^2 + ... + p^k tokens
#   the gain is       (tokens of all rows) / (b * (1 + s * k))
#
# t and s are measured for each number of rows, as powers of two, and p for each source. `count` takes the k with the
# largest gain if all rows guess alike, and `width` the one for what the rows of a pass really have.
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
_WORTH = 1.03
"""Gain from which it is believed: times are measured with noise, and the best of several looks better than it is."""
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


@dataclass(frozen=True, slots=True)
class Check:
    """
    What a pass found out about the guesses of one row.

    Attributes:
        source: What guessed.
        guessed: Tokens that it guessed.
        accepted: How many of them were right.
        asked: Whether the request asks for guesses whatever they cost.
    """

    source: Source
    guessed: int
    accepted: int
    asked: bool = False


@dataclass(slots=True)
class Record:
    """
    What a source has brought.

    Attributes:
        guessed: Tokens guessed.
        accepted: Guesses that were right.
        chance: Chance that a guess is right if those before it were.
        seconds: Its seconds of passes with guesses: for each row its share of a usual pass, and of what guesses added.
        plain: Seconds that the tokens of these passes would have taken without guesses.
    """

    guessed: int = 0
    accepted: int = 0
    chance: float = _FIRST_CHANCE
    seconds: float = 0.0
    plain: float = 0.0

    def count(self, check: Check) -> None:
        """Count guesses, and which of them were right."""
        self.guessed += check.guessed
        self.accepted += check.accepted
        for right in [1.0] * check.accepted + [0.0] * (check.accepted < check.guessed):
            self.chance += max(_WEIGHT / 2, 1 / (self.guessed + 2)) * (right - self.chance)

    def brings(self, guesses: int) -> float:
        """Return how many of so many guesses are right, on average."""
        return sum(self.chance**power for power in range(1, guesses + 1))


@dataclass(slots=True)
class Size:
    """
    What passes over some number of rows take.

    Attributes:
        step: Seconds of a pass without a guess; 0 if not known.
        cost: What a guess adds to a pass, as a share of it.
        lost: Seconds that guesses have cost beyond what they brought.
    """

    step: float = 0.0
    cost: float = _FIRST_COST
    lost: float = 0.0
    _passes: int = 0
    _guesses: int = 0
    _spent: float = 0.0

    @property
    def known(self) -> bool:
        """Whether enough passes without a guess were measured."""
        return self._passes >= _PLAIN

    @property
    def budget(self) -> float:
        """Seconds that guesses may lose now."""
        return LOSS_SHARE * self._spent - self.lost

    def plain(self, seconds: float) -> None:
        """Measure a pass without a guess."""
        self._passes += 1
        weight = max(_WEIGHT, 1 / self._passes)
        # A pause of the machine is no pass: it counts as at most twice the usual.
        self.step += weight * (min(seconds, 2 * self.step or seconds) - self.step)
        self._spend(seconds)

    def guessed(self, seconds: float, width: int, plain: float, *, asked: bool) -> None:
        """
        Measure a pass with guesses.

        Args:
            seconds: What it took.
            width: Most guesses of a row.
            plain: Seconds that its tokens would have taken without guesses.
            asked: Whether they were asked for: what they lose is not lost by trying.
        """
        self._guesses += 1
        cost = min(max((seconds / self.step - 1) / width, 0.0), _LARGEST_COST)
        self.cost += max(_WEIGHT * 2, 1 / (self._guesses + 1)) * (cost - self.cost)
        if asked:
            return
        self.lost = max(-_PAID * self.step, self.lost + seconds - plain)
        self._spend(seconds)

    def _spend(self, seconds: float) -> None:
        self._spent += seconds
        if self._spent > _WINDOW * self.step > 0:
            self._spent, self.lost = self._spent / 2, self.lost / 2


class Governor:
    """
    What was measured of one model.

    Attributes:
        records: What each source has brought.
    """

    def __init__(self) -> None:
        self.records: dict[Source, Record] = {}
        self._sizes: dict[int, Size] = {}
        self.share(1)

    def share(self, rows: int) -> None:
        """Speak of passes that so many rows share, from now on."""
        self._rows = rows
        number = (rows - 1).bit_length()
        if number not in self._sizes:
            # More rows have more products for each guess, and no less.
            fewer = [size.cost for other, size in self._sizes.items() if other < number]
            self._sizes[number] = Size(cost=max(fewer, default=_FIRST_COST))
        self._size = self._sizes[number]

    def plain(self, seconds: float) -> None:
        """Measure a pass without a guess, which brought a token of each row."""
        self._size.plain(seconds)

    def guessed(self, seconds: float, checks: Sequence[Check], tokens: int) -> None:
        """
        Measure a pass with guesses.

        Args:
            seconds: How long the step took.
            checks: The guesses of its rows.
            tokens: Tokens that the step brought: of each row one more than were right, and those that a pass under way
                before it computed.
        """
        self.counted(checks)
        size, rows, width = self._size, self._rows, max(check.guessed for check in checks)
        if not size.known or not size.step:
            return
        ahead = rows + sum(check.accepted for check in checks)
        under_way = size.step * (tokens > ahead)
        seconds = min(seconds - under_way, (1 + _LARGEST_COST * width) * size.step)
        usual = size.step / rows
        for check in checks:
            record = self.records[check.source]
            record.seconds += usual + (seconds - size.step) / len(checks)
            record.plain += usual * (1 + check.accepted)
        size.guessed(seconds, width, usual * ahead, asked=any(check.asked for check in checks))

    def counted(self, checks: Iterable[Check]) -> None:
        """Count guesses, and which of them were right, without their time."""
        for check in checks:
            self.records.setdefault(check.source, Record()).count(check)

    def count(self, source: Source, most: int) -> int:
        """Return how many tokens a source may guess now, at most `most`; 0 to guess nothing."""
        size = self._size
        if not size.known or most < 1:
            return 0
        record = self.records.get(source) or Record()
        count, gain = _best(size, [(record, most)], 1)
        if gain > _WORTH and (record.guessed > _TRIED or size.budget > 0):
            return count if size.budget > 0 or size.lost < 2 * size.step else 0
        return 1 if size.budget > size.cost * size.step else 0

    def width(self, guesses: Sequence[tuple[Source, int]]) -> int:
        """
        Return how many guesses each row of the next pass may have at most.

        Args:
            guesses: Of each row that guesses, the source and how many there are.
        """
        size = self._size
        rows = [(self.records.get(source) or Record(), count) for source, count in guesses]
        width, gain = _best(size, rows, self._rows)
        if gain > _WORTH:
            return width
        return 1 if size.budget > size.cost * size.step else 0

    def kinds(self) -> dict[int, list[Source]]:
        """Return the sources that have guessed, by their kind."""
        kinds: dict[int, list[Source]] = {}
        for source in self.records:
            kinds.setdefault(source.kind, []).append(source)
        return kinds

    def gain(self, *sources: Source) -> float:
        """Return the tokens a second of rows with guesses, divided by those without; 0 if not known."""
        records = [self.records[source] for source in sources if source in self.records]
        seconds = sum(record.seconds for record in records)
        return sum(record.plain for record in records) / seconds if seconds > 0 else 0.0

    def parked(self, source: Source) -> bool:
        """Whether a source has lost so far with any number of rows, and is only tried now and then."""
        record = self.records.get(source)
        if record is None or record.guessed <= _TRIED:
            return False
        known = [size for size in self._sizes.values() if size.known]
        return bool(known) and all(_best(size, [(record, MOST_GUESSES)], 1)[1] <= _WORTH for size in known)


def _best(size: Size, guesses: Sequence[tuple[Record, int]], rows: int) -> tuple[int, float]:
    """Return the number of guesses a row with the largest gain, and the gain."""
    gains = []
    for width in range(1, max(count for _, count in guesses) + 1):
        tokens = rows + sum(record.brings(min(width, count)) for record, count in guesses)
        gains.append((tokens / (rows * (1 + size.cost * width)), -width))
    gain, width = max(gains)
    return -width, gain


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
