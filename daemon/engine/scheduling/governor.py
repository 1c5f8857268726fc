"""Decides how many tokens to guess, and whether guessing gains anything for a model on this machine. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from daemon.engine.scheduling.bets import WORTH, Bet
from daemon.engine.scheduling.guess_record import TRIED, Record
from daemon.engine.scheduling.pass_costs import CREDIT, LOSS_SHARE, SAVED, PassCosts, Purse

# What a guess costs and what it brings
#
# A pass over b rows that checks k guesses of each takes t * (1 + c(k)) seconds, if a pass without guesses takes t. It
# brings of each row the guesses that were right up to the first wrong one, and one token more. With a chance p for each
#
#   one row brings    1 + p + p^2 + ... + p^k tokens
#   the gain is       (tokens of all rows) / (b * (1 + c(k)))
#
# t and c are measured for each number of rows, as powers of two (`pass_costs.py`), and p for each source. k is a power
# of two as well: a device compiles for few shapes then. `count` takes the k with the largest gain if all rows guess
# alike, and `width` the one for what the rows of a pass really have. N-grams need no pass to know p: what they would
# have guessed is compared with what was decoded, so they are tried only to know c, and where they may gain.
#
# A pass with guesses waits for its tokens, so the steps behind it are others than usual. `stepped` tells them apart by
# the tokens that each brings, beside the rows of the pass:
#
#   step                                                     tokens          booked
#   guess                                                    any             as a pass with guesses
#   feed again: states lack tokens that were guessed right   one a row       as a loss, beyond a usual step
#   begin: no pass was under way                             none, or fewer  with the step behind it
#   the step behind that                                     one a row       as a loss, beyond a usual step
#   wait: the pending token was not the expected one         one a row       as a loss, beyond a usual step
#
# A source with a gain below 1 is parked. It is tried again where that costs little: what guessing lost against passes
# without a guess is summed up, in seconds, and must stay below a share of all seconds spent. A try that may lose half
# a pass so comes after 33 passes. A gain of the past pays for a loss of few passes alone. A source that fails again and
# again is tried more rarely still: each failure in a row doubles the wait, up to eight times (`guess_record.py`).

MOST_GUESSES = 8
"""Most tokens guessed at a time from n-grams."""
_LONGEST_REST = 32
"""Steps for which a source is not asked at most: other requests of the model may find that it gains."""
_MOST_MODELS = 64
_WIDTHS = [1 << power for power in range(MOST_GUESSES.bit_length())]


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
        again: Tokens before the pending one that its model was fed once more.
    """

    source: Source
    guessed: int
    accepted: int
    asked: bool = False
    again: int = 0


class Governor:
    """
    What was measured of one model.

    Attributes:
        records: What each source has brought.
    """

    def __init__(self) -> None:
        self.records: defaultdict[Source, Record] = defaultdict(Record)
        self._costs_by_rows: dict[int, PassCosts] = {}
        """By the number of rows, rounded up to a power of two: its exponent."""
        self._purse = Purse()
        self._last: Sequence[Check] = ()
        self._late: float | None = None
        """Seconds since a step waited for all of its tokens, so that no pass began behind it; None if one did."""
        self._fed_again = False
        """Whether the last step may have been one that only fed tokens again: no pass began behind it, either."""
        self._counts: dict[tuple[Source, int], int] = {}
        """What `count` returned since a pass was measured: it is asked for each row of the next one."""
        self._rows = 0
        self.set_rows(1)

    def set_rows(self, rows: int) -> None:
        """Set how many rows share the passes that are measured, and decided on, from now on."""
        if rows == self._rows:
            return
        self._rows = rows
        self._counts.clear()
        power = (rows - 1).bit_length()
        if power not in self._costs_by_rows:
            fewer = max((other for other in self._costs_by_rows if other < power), default=None)
            self._costs_by_rows[power] = PassCosts(self._purse, None if fewer is None else self._costs_by_rows[fewer])
        self._costs = self._costs_by_rows[power]

    def stepped(self, seconds: float, rows: int, checks: Sequence[Check], tokens: int) -> None:
        """
        Measure a step of rows that share a pass.

        Args:
            seconds: How long it took.
            rows: How many rows.
            checks: What was guessed; no tokens of a row that only waited for its pending token.
            tokens: Tokens that the step brought.
        """
        self.set_rows(rows)
        guessed, late = [check for check in checks if check.guessed], self._late
        if late is None and self._fed_again and tokens != rows:
            late = 0.0
        self._late, self._fed_again = 0.0 if guessed else None, False
        if guessed:
            if late:  # the pass under way began behind guesses
                self.resumed(late + self._costs.step)
            self.guessed(seconds, guessed, tokens)
        elif tokens != rows:
            self._late = None if late is None else late + seconds
        elif checks or late is not None:  # a pass began only when the tokens before it were known
            self._fed_again = late == 0.0
            self._last = checks or self._last
            self.resumed((late or 0.0) + seconds)
        else:
            self.plain(seconds)

    def plain(self, seconds: float) -> None:
        """Measure a pass without a guess, which brought a token of each row."""
        self._counts.clear()
        self._late, self._fed_again = None, False
        self._costs.plain(seconds)

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
        costs, rows, width = self._costs, self._rows, max(check.guessed for check in checks)
        first = costs.first(rows, width + 1 + max(check.again for check in checks))
        if not costs.measured:
            return
        sampled = rows + sum(check.accepted for check in checks)
        seconds -= costs.step * (tokens > sampled)  # of the pass that was under way
        if first:  # it may have compiled what others of its shape only use
            seconds = min(seconds, (1 + costs.risk(width)) * costs.step)
        else:
            seconds = costs.guessed(seconds, width)
            self._share_out(checks, seconds)
        if not any(check.asked for check in checks):
            costs.guessed_at(seconds, sampled / rows)
            self._judge(checks, seconds - costs.step * sampled / rows)

    def unmeasured(self, rows: int, checks: Sequence[Check]) -> None:
        """Take a step of unknown time: guesses count as what they are feared to take."""
        self.set_rows(rows)
        self._late, self._fed_again = None, False
        costs, guessed = self._costs, [check for check in checks if check.guessed]
        self.counted(guessed)
        if guessed and costs.measured and not any(check.asked for check in guessed):
            seconds = costs.step * (1 + costs.risk(max(check.guessed for check in guessed)))
            tokens = 1 + sum(check.accepted for check in guessed) / rows
            costs.guessed_at(seconds, tokens)
            self._judge(guessed, seconds - costs.step * tokens)

    def resumed(self, seconds: float) -> None:
        """Measure the first pass without a guess behind a pass with guesses, or behind a wait for a token to guess."""
        self._counts.clear()
        if self._costs.measured and not any(check.asked for check in self._last):
            width = max((check.guessed for check in self._last), default=0)
            lost = self._costs.resumed(seconds, width)
            if width:
                self._put_off(self._last, lost)
            else:
                self._judge(self._last, lost)

    def counted(self, checks: Sequence[Check]) -> None:
        """Count guesses, and which of them were right, without their time."""
        self._counts.clear()
        self._last = checks
        for check in checks:
            self.records[check.source].count(check.guessed, check.accepted)

    def _judge(self, checks: Sequence[Check], lost: float) -> None:
        """Learn what a pass with guesses, or a wait for what they continue, has lost; it gained what is below zero."""
        failed = lost > 0 or not any(check.accepted for check in checks)
        for source in {check.source for check in checks}:
            if failed:
                self.records[source].failed_at(self._purse.spent)
            else:
                self.records[source].gained()
        self._put_off(checks, lost)

    def _put_off(self, checks: Sequence[Check], lost: float) -> None:
        """Put off tries of sources that failed, until the share of what passes take has paid for what was lost."""
        for record in [self.records[source] for source in {check.source for check in checks}]:
            if record.failed:
                record.pays(lost / LOSS_SHARE)

    def see(self, source: Source, right: bool) -> None:
        """Compare a guess of a source with a token that was decoded: that costs no pass, and tells its chance."""
        self.records[source].see(right)

    def count(self, source: Source, most: int) -> int:
        """
        Return how many tokens a source may guess now, at most `most`; 0 to guess nothing.

        It is the same for all rows of a pass: what is seen in one of them counts once a pass was measured.
        """
        key = source, most
        if key not in self._counts:
            self._counts[key] = self._chosen(Bet([(self.records[source], most)]))
        return self._counts[key]

    def rest(self, source: Source) -> int:
        """
        Return for about how many steps a source will be allowed no guess; 0 if that is not known.

        What may be lost grows by a share of each step, until it pays for a try. A gain elsewhere may come before.
        """
        costs, record = self._costs, self.records[source]
        if not costs.known:
            return 0
        bet = Bet([(record, MOST_GUESSES)])
        width, gain = bet.best(costs, _WIDTHS)
        put_off = bet.put_off(self._purse.spent)
        if gain > WORTH and (not put_off or bet.compared or costs.knows(width)):
            return 0
        if gain <= WORTH and not bet.may_be_tried(costs, _WIDTHS):
            return _LONGEST_REST
        lacking = max((_stake(costs) - costs.stake) / LOSS_SHARE, put_off)
        return max(0, min(_LONGEST_REST, int(lacking / costs.step)))

    def right(self, source: Source) -> None:
        """Take guesses that were right without a pass: tries are no longer put off for what was lost before."""
        self.records[source].gained()

    def width(self, guesses: Sequence[tuple[Source, int]], *, waits: bool = False) -> int:
        """
        Return how many guesses each row of the next pass may have at most.

        Args:
            guesses: Of each row that guesses, the source and how many there are.
            waits: Whether their pending tokens are still computed. A wait is a bet: it is in vain if no guess continues
                them, so what guesses bring and cost is weighed with the chance that they do.
        """
        return self._chosen(Bet([(self.records[source], count) for source, count in guesses], self._rows, waits))

    def gains(self, source: Source) -> bool:
        """Whether a source was tried, and gains."""
        record = self.records.get(source)
        return record is not None and record.guessed > TRIED and not self.parked(source)

    def _chosen(self, bet: Bet) -> int:
        costs, most = self._costs, max(count for _, count in bet.guesses)
        if not costs.known or most < 1:
            return 0
        widths = _WIDTHS[: most.bit_length()]
        width, gain = bet.best(costs, widths)
        unpaid = bet.failed and (self._late is not None or self._fed_again)  # what the last try cost is not known yet
        put_off = unpaid or bet.put_off(self._purse.spent) > 0
        # What is likely to be right may lose more at first: a text that repeats itself gains it back soon.
        credit = CREDIT * costs.step * max(record.chance for record, _ in bet.guesses)
        if gain > WORTH and not costs.knows(width):
            unknown = next(one for one in widths if not costs.knows(one))
            feared = costs.risk(unknown)
            risked = max(feared - bet.brings(unknown) / bet.rows, feared / 2) * costs.step
            if costs.stake + credit > risked and (bet.compared or not put_off):
                return unknown
            width, gain = bet.best(costs, [one for one in widths if costs.knows(one)])
        if gain > WORTH and costs.budget + credit > 0:
            return width
        return 1 if costs.stake > _stake(costs) and not put_off and bet.may_be_tried(costs, widths) else 0

    def _share_out(self, checks: Sequence[Check], seconds: float) -> None:
        usual = self._costs.step / self._rows
        for check in checks:
            record = self.records[check.source]
            record.seconds += usual + (seconds - self._costs.step) / len(checks)
            record.plain += usual * (1 + check.accepted)

    def kinds(self) -> dict[int, list[Source]]:
        """Return the sources that have guessed, by their kind."""
        kinds: dict[int, list[Source]] = {}
        for source, record in self.records.items():
            if record.guessed:
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
        if record is None or record.guessed <= TRIED:
            return False
        known = [costs for costs in self._costs_by_rows.values() if costs.measured]
        return bool(known) and all(Bet([(record, MOST_GUESSES)]).best(costs, _WIDTHS)[1] <= WORTH for costs in known)


def _stake(costs: PassCosts) -> float:
    """Return the seconds that must be allowed to be lost before one guess is tried: less than what may be saved up."""
    return min(costs.risk(1), 0.99 * SAVED) * costs.step


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
