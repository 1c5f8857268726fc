"""Scheduling decisions: who may start, whose prompt goes on, and how much of it. Pure; times are passed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from statistics import median
from typing import Any, Generic, Protocol, TypeVar

CHUNK_SECONDS = 0.25
"""A chunk of prefill should take no longer, because running streams wait for it."""

AIM_SECONDS = 0.17
"""What chunks are sized for. They vary by a quarter from one to the next, and get slower as a prompt gets longer."""

IDLE_CHUNKS = 2.0
"""Chunks' worth that a long prompt's turn has while no stream waits for its next token: larger passes are more
efficient, and whoever comes waits for the rest of one."""

IDLE_ROOM = 16.0
"""Chunks' worth that several short prompts' turn has then, 3 s at most: all of them wait for their first token, and so
does whoever would come after them anyway."""

STEPS_BESIDE = 2.0
"""Decode steps that a turn of prefill may take beside streams where that is more than a chunk: a slow model's streams
hardly notice a chunk, and its prompts would take hundreds of them."""

MOST_SHRINKING = 8
MIN_CHUNK = 16
MIN_IDLE_CHUNK = 64
"""The least then: a large model on a slow machine reads all its weights for each pass, however few tokens it has."""

MAX_CHUNK = 2048
_FIRST_CHUNK = 256

MOST_PASSED = 16
"""Later arrivals, of higher priority or of another namespace, may go before a request so many times."""

_MOST_REMEMBERED = 1024
_RECENT_STEPS = 16


@dataclass(frozen=True, slots=True)
class Allowance:
    """
    What a turn of prefill may compute.

    Attributes:
        chunks: Chunks' worth of one long prompt.
        room: Chunks' worth of several short ones.
        least: Tokens of a long prompt, however slow they are.
    """

    chunks: float
    room: float
    least: int

    @classmethod
    def beside(cls, decode: float | None) -> Allowance:
        """
        Return that of the next turn.

        Args:
            decode: Seconds that a turn's decode usually takes; None if nobody waits for their next token.
        """
        if decode is None:
            return cls(IDLE_CHUNKS, IDLE_ROOM, MIN_IDLE_CHUNK)
        chunks = max(1.0, STEPS_BESIDE * decode / AIM_SECONDS)
        return cls(chunks, chunks, MIN_CHUNK)


@dataclass(slots=True)
class ChunkSizer:
    """
    Finds, for each model, the number of prompt tokens that take about `AIM_SECONDS`.

    It grows by at most a factor of two at a time, so that one chunk cannot throw it off, and shrinks faster than that,
    because a chunk that is too long is felt by all who wait.
    """

    _sizes: dict[Hashable, float] = field(default_factory=dict)
    _last: dict[Hashable, tuple[int, float]] = field(default_factory=dict)
    """Tokens and seconds of each model's last pass that taught something."""
    _steps: dict[tuple[Hashable, bool], deque[float]] = field(default_factory=dict)
    """
    Seconds of each model's last decode steps: what a pass takes for one token, reading all weights included. Those
    after a pass of prefill are kept apart: the device may have done them together with it.
    """

    def size(self, model: Hashable, chunks: float = 1.0, least: int = MIN_CHUNK) -> int:
        """Return how many tokens so many chunks have; just a first one of a model that was not measured yet."""
        known = self._sizes.get(model)
        if known is None:
            return _FIRST_CHUNK
        return min(MAX_CHUNK, max(least, int(known * chunks)))

    def most_together(self, model: Hashable, chunks: float) -> int:
        """
        Return how many tokens of short prompts may share a pass that takes so many chunks' time.

        What any pass takes, the last one took as well, but its tokens are not to blame for that: for half of its time
        at most, in case that those steps had more to do.
        """
        if model not in self._last:
            return _FIRST_CHUNK
        tokens, seconds = self._last[model]
        fixed = min(self.usual_step(model), seconds / 2)
        return max(MIN_CHUNK, int((chunks * AIM_SECONDS - fixed) * tokens / max(seconds - fixed, 1e-9)))

    def stepped(self, model: Hashable, seconds: float, *, after_prefill: bool = False) -> None:
        """Note a decode step of a model."""
        self._steps.setdefault((model, after_prefill), deque(maxlen=_RECENT_STEPS)).append(seconds)
        _forget_first(self._steps)

    def usual_step(self, model: Hashable) -> float:
        """Return how many seconds a decode step of a model usually takes; 0 before the first."""
        return max(median(self._steps.get((model, after), (0.0,))) for after in (False, True))

    def measured(self, model: Hashable, tokens: int, seconds: float) -> None:
        """Learn from a chunk. One that the end of its prompt cut short says little, unless it took too long as well."""
        size = self._sizes.get(model, float(_FIRST_CHUNK))
        if tokens < int(size) and seconds <= AIM_SECONDS:
            return
        self._last[model] = tokens, seconds
        in_time = tokens * AIM_SECONDS / max(seconds, 1e-9)
        size = min(2 * size, max(size / MOST_SHRINKING, in_time))
        self._sizes[model] = min(MAX_CHUNK, max(MIN_CHUNK, size))
        _forget_first(self._sizes)
        _forget_first(self._last)


def _forget_first(table: dict[Any, Any]) -> None:
    """Keep what was learned of the models that came last; that of another is learned again when it comes again."""
    if len(table) > _MOST_REMEMBERED:
        del table[next(iter(table))]


class Request(Protocol):
    """A request that waits for its turn."""

    @property
    def model_key(self) -> Hashable:
        """Its model."""

    @property
    def namespace(self) -> Hashable:
        """With whom it can share prefixes: model and salt. These take turns."""

    @property
    def priority(self) -> int:
        """Higher goes first."""


R = TypeVar("R", bound=Request)


class Turns(Generic[R]):
    """
    Whose turn it is. Candidates are given in order of arrival.

    Rules, the first that decides counts: whoever was passed over `MOST_PASSED` times by later arrivals, oldest first,
    so that nothing starves; the highest priority; the namespace whose last turn is longest ago; the order of arrival.
    """

    def __init__(self) -> None:
        self._serial = count(1)
        self._served: dict[Hashable, int] = {}
        """When each namespace had its last turn, the one longest ago first."""
        self._passed: dict[R, int] = {}

    def first(self, candidates: Sequence[R]) -> R | None:
        """Return whose turn it is; None if there is nobody."""
        overdue = [one for one in candidates if self._passed.get(one, 0) >= MOST_PASSED]
        if overdue:
            return overdue[0]
        return min(candidates, key=lambda one: (-one.priority, self._served.get(one.namespace, 0)), default=None)

    def took(self, chosen: R, candidates: Sequence[R]) -> None:
        """Note that one of the candidates had its turn."""
        self._served.pop(chosen.namespace, None)
        self._served[chosen.namespace] = next(self._serial)
        if len(self._served) > _MOST_REMEMBERED:
            del self._served[next(iter(self._served))]
        earlier = candidates[: candidates.index(chosen)]
        self._passed = {one: self._passed.get(one, 0) for one in candidates if one is not chosen}
        for one in earlier:
            self._passed[one] += 1


def startable(
    waiting: Iterable[R], running: Callable[[Hashable], int], max_batch: int, fits: Callable[[R], bool], turns: Turns[R]
) -> R | None:
    """
    Return the request to start next, and note that it had its turn: one whose model has a free slot.

    A request whose turn it is and that does not fit in memory now holds up those behind it: letting smaller ones pass
    would starve it.

    Args:
        waiting: Requests whose model is loaded, oldest first.
        running: Returns how many requests of a model run.
        max_batch: Most that may.
        fits: Whether a request fits in memory now; may make room.
        turns: Whose turn it is.
    """
    candidates = [request for request in waiting if running(request.model_key) < max_batch]
    first = turns.first(candidates)
    if first is None or not fits(first):
        return None
    turns.took(first, candidates)
    return first
