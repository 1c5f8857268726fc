"""
Decides which request is next, how much time a prefill turn has, and how many tokens fit into that time. Pure.

The engine's loop runs in turns. A turn is one decode step of each model, then one prefill turn. Every stream waits for
the whole turn, so the time of prefill bounds the gap between two tokens of a stream.

    | decode, model A | decode, model B | prefill: chunks up to the allowance | decode, model A | ...
                                        |<----------- Allowance ------------->|

*Which request is next* (`Turns`). A starvation bound comes first: a request that was passed over 16 times goes at
once. Then the highest priority, then the program with the oldest last turn, then the namespace with the oldest last
turn, then the order of arrival. The same rule picks the request that gets a slot and the prompt that is computed next.

*What a turn may take* (`Allowance`). Beside streams: one chunk of `AIM_SECONDS`, or two decode steps where those take
longer. Without streams: two chunks of one long prompt, or sixteen chunks' time for several short ones of a slow model.

*How chunks are sized* (`StepTimes`). A forward pass takes `seconds = fixed + per_token * tokens`: `fixed` reads the
weights, `per_token` computes. A chunk is the number of tokens that took `AIM_SECONDS` at the last measurement. It at
most doubles after a fast pass and shrinks by at most eight after a slow one. Short prompts that share a pass pay
`fixed` once; `fixed` is the time of a decode step, which computes one token.

Times are passed in, and nothing here knows arrays, models or messages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import count
from statistics import median
from typing import Any, Generic, Protocol, TypeVar

# name                   value   unit      meaning
AIM_SECONDS = 0.17  #            s         the time that a chunk is sized for; chunks vary by a quarter
CHUNK_SECONDS = 0.25  #          s         a prefill turn starts no further pass after this time
LEAST_COST = AIM_SECONDS / 8  #  s         the least cost of a prompt's turn: lookup, restore, joining the batch
IDLE_CHUNKS = 2.0  #             chunks    a long prompt's turn without streams; larger passes are more efficient
IDLE_ROOM = 16.0  #              chunks    several short prompts' turn without streams: 3 s at most
STEPS_BESIDE = 2.0  #            steps     a prefill turn beside streams, where that is more than a chunk
MIN_CHUNK = 16  #                tokens    the least chunk beside streams
MIN_IDLE_CHUNK = 64  #           tokens    the least chunk without streams: each pass reads all weights
MAX_CHUNK = 2048  #              tokens    the largest chunk
_FIRST_CHUNK = 256  #            tokens    the chunk of a model without measurements
MOST_SHRINKING = 8  #            ratio     a chunk shrinks by at most this factor at a time
MOST_PASSED = 16  #              turns     later arrivals may pass a request this often
_RECENT_STEPS = 16  #            steps     decode steps that the usual one is the median of
_MOST_REMEMBERED = 1024  #       entries   models and namespaces that are remembered

_ROUNDING = 1e-9
"""Seconds within which two sums of costs are equal: eight costs of an eighth are one chunk."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """
    The time that a prefill turn may take.

    Attributes:
        long: Seconds for one long prompt.
        short: Seconds for several short ones.
        least: Tokens of a long prompt that a pass has at least, however slow they are.
    """

    long: float
    short: float
    least: int

    @classmethod
    def beside(cls, decode: float | None) -> Allowance:
        """
        Return the allowance of the next turn.

        Args:
            decode: Seconds that a turn's decode usually takes; None if no stream waits for its next token.
        """
        if decode is None:
            return cls(IDLE_CHUNKS * AIM_SECONDS, IDLE_ROOM * AIM_SECONDS, MIN_IDLE_CHUNK)
        # A slow model's streams hardly notice a chunk, and its prompts would take hundreds of them.
        seconds = max(AIM_SECONDS, STEPS_BESIDE * decode)
        return cls(seconds, seconds, MIN_CHUNK)

    def cost(self, tokens: int, size: int) -> float:
        """
        Return the seconds that a pass is billed.

        Args:
            tokens: Tokens of the pass.
            size: Tokens that take the time of a long prompt's turn.
        """
        return min(self.long, max(LEAST_COST, self.long * (tokens / size)))


class Budget:
    """
    The seconds that are left of one prefill turn.

    Args:
        allowance: What the turn may take in all.
    """

    def __init__(self, allowance: Allowance) -> None:
        self._long = allowance.long
        self._left = allowance.short

    @property
    def spent(self) -> bool:
        """Whether nothing is left."""
        return self._left <= _ROUNDING

    def covers(self, cost: float) -> bool:
        """Whether a pass of so many seconds fits into the rest of the turn."""
        return cost <= self._left + _ROUNDING

    def spend(self, cost: float) -> None:
        """Take the cost of a pass away. A pass that fills a long prompt's turn takes all that is left."""
        self._left = self._left - cost if cost < self._long else 0.0


@dataclass(slots=True)
class StepTimes:
    """
    The time that one model's forward passes take: `seconds = fixed + per_token * tokens`.

    Attributes:
        chunk: Tokens of prefill that take `AIM_SECONDS`; None before the first measurement.
    """

    chunk: float | None = None
    _last: tuple[int, float] | None = None
    """Tokens and seconds of the last prefill pass that changed the chunk."""
    _steps: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT_STEPS))
    _steps_after_prefill: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT_STEPS))
    """Decode steps right behind a prefill pass, kept apart: a device may compute them together with that pass."""

    @property
    def decode(self) -> float:
        """Seconds that a decode step usually takes; 0 before the first."""
        return max(median(steps or (0.0,)) for steps in (self._steps, self._steps_after_prefill))

    def stepped(self, seconds: float, *, after_prefill: bool = False) -> None:
        """Note the time of a decode step."""
        (self._steps_after_prefill if after_prefill else self._steps).append(seconds)

    def measured(self, tokens: int, seconds: float) -> None:
        """Learn from a prefill pass. A pass that the end of its prompt cut short counts only if it took too long."""
        chunk = float(_FIRST_CHUNK) if self.chunk is None else self.chunk
        if tokens < int(chunk) and seconds <= AIM_SECONDS:
            return
        self._last = tokens, seconds
        in_time = tokens * AIM_SECONDS / max(seconds, 1e-9)
        # Growth is limited because one measurement may be wrong. Shrinking is faster: all streams feel a long chunk.
        chunk = min(2 * chunk, max(chunk / MOST_SHRINKING, in_time))
        self.chunk = min(MAX_CHUNK, max(MIN_CHUNK, chunk))

    def tokens_within(self, seconds: float) -> int:
        """
        Return the number of tokens of one pass over several prompts that takes so many seconds.

        It solves `seconds = fixed + per_token * tokens`. `fixed` is one decode step, but at most half of the last
        measured pass: decode steps of many rows do more than read the weights.
        """
        if self._last is None:
            return _FIRST_CHUNK
        tokens, measured = self._last
        fixed = min(self.decode, measured / 2)
        return max(MIN_CHUNK, int((seconds - fixed) * tokens / max(measured - fixed, 1e-9)))


class ChunkSizer:
    """The step times of all models, and the chunk sizes that follow from them."""

    def __init__(self) -> None:
        self._times: dict[Hashable, StepTimes] = {}
        self._limits: dict[Hashable, int] = {}

    def limit(self, model: Hashable, tokens: int) -> None:
        """Let no pass of a model have more tokens, until the next call: memory allows no more."""
        self._limits[model] = tokens
        _forget_first(self._limits)

    def size(self, model: Hashable, seconds: float = AIM_SECONDS, least: int = MIN_CHUNK) -> int:
        """
        Return the number of tokens of one prompt that take so many seconds.

        A model without measurements gets its first chunk, whatever the time: twice as much could take half a minute.
        """
        chunk = self._of(model).chunk
        if chunk is None:
            return min(_FIRST_CHUNK, self._limit(model))
        return min(self._limit(model), max(least, int(chunk * (seconds / AIM_SECONDS))))

    def most(self, model: Hashable) -> int:
        """Return the most tokens that the next pass of a model may have, over one prompt or several."""
        together = self.most_together(model, IDLE_ROOM * AIM_SECONDS)
        return max(self.size(model, IDLE_CHUNKS * AIM_SECONDS, MIN_IDLE_CHUNK), min(together, MAX_CHUNK))

    def most_together(self, model: Hashable, seconds: float) -> int:
        """
        Return the most tokens of short prompts that may share a pass of so many seconds.

        A pass as it would be beside a stream is enough where it is worth reading the weights for: the first prompts
        have their first token earlier then, and the others follow as fast.
        """
        times = self._of(model)
        enough = times.tokens_within(min(seconds, Allowance.beside(times.decode).short))
        return min(self._limit(model), enough if enough >= MIN_IDLE_CHUNK else times.tokens_within(seconds))

    def usual_step(self, model: Hashable) -> float:
        """Return the seconds that a decode step of a model usually takes; 0 before the first."""
        return self._of(model).decode

    def stepped(self, model: Hashable, seconds: float, *, after_prefill: bool = False) -> None:
        """Note the time of a decode step of a model."""
        self._kept(model).stepped(seconds, after_prefill=after_prefill)

    def measured(self, model: Hashable, tokens: int, seconds: float) -> None:
        """Learn from a prefill pass of a model."""
        self._kept(model).measured(tokens, seconds)

    def _limit(self, model: Hashable) -> int:
        return self._limits.get(model, MAX_CHUNK)

    def _of(self, model: Hashable) -> StepTimes:
        return self._times.get(model) or StepTimes()

    def _kept(self, model: Hashable) -> StepTimes:
        times = self._times.get(model)
        if times is None:
            times = self._times[model] = StepTimes()
            _forget_first(self._times)
        return times


def _forget_first(table: dict[Any, Any]) -> None:
    """Drop the oldest entry of a full table; a model that comes again is measured again."""
    if len(table) > _MOST_REMEMBERED:
        del table[next(iter(table))]


class Candidate(Protocol):
    """A request or a prompt that waits for its turn."""

    @property
    def model_key(self) -> Hashable:
        """Its model."""

    @property
    def namespace(self) -> Hashable:
        """Model and salt: requests of one namespace can share prefixes. Namespaces take turns."""

    @property
    def program(self) -> Hashable:
        """The program that called. Programs take turns."""

    @property
    def priority(self) -> int:
        """Higher goes first."""


R = TypeVar("R", bound=Candidate)


class Turns(Generic[R]):
    """
    The order of turns. Candidates are given in order of arrival.

    The first rule that decides counts:

    1. A request that was passed over `MOST_PASSED` times by later arrivals goes first, the oldest of them, so that no
       request starves.
    2. The highest priority.
    3. The program with the oldest last turn.
    4. The namespace with the oldest last turn of that program.
    5. The order of arrival.
    """

    def __init__(self) -> None:
        self._serial = count(1)
        self._served: dict[Hashable, int] = {}
        self._programs: dict[Hashable, int] = {}
        """The serial number of the last turn of each program's namespaces, and of each program, the oldest first."""
        self._passed: dict[R, int] = {}
        """How often later arrivals passed a request since its last turn, also while it was no candidate."""

    def first(self, candidates: Sequence[R]) -> R | None:
        """Return the candidate that has the next turn; None without candidates."""
        overdue = [request for request in candidates if self._passed.get(request, 0) >= MOST_PASSED]
        if overdue:
            return overdue[0]
        return min(candidates, key=self._rank, default=None)

    def _rank(self, one: R) -> tuple[int, int, int]:
        return -one.priority, self._programs.get(one.program, 0), self._served.get((one.program, one.namespace), 0)

    def took(self, chosen: R, candidates: Sequence[R]) -> None:
        """Note that a candidate had its turn, or a request that a candidate lent it to."""
        # Re-inserted, so that the dict stays in the order of last turns and the oldest entry can be dropped.
        turn = next(self._serial)
        for served, key in ((self._served, (chosen.program, chosen.namespace)), (self._programs, chosen.program)):
            served.pop(key, None)
            served[key] = turn
            _forget_first(served)
        self._passed.pop(chosen, None)
        for request in candidates[: candidates.index(chosen)] if chosen in candidates else ():
            self._passed[request] = self._passed.get(request, 0) + 1

    def left(self, request: R) -> None:
        """Forget how often a request was passed over, because it waits no longer; an unknown one is no error."""
        self._passed.pop(request, None)
