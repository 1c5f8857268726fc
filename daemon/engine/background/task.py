"""Tasks: units of work off the MLX thread, with their pool, lane and time limit, and results to wait for. Pure."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Generic, TypeVar, cast

from daemon.cache.callbacks import ignore
from daemon.shared.errors import Reason, SidecarError

RETRY_SECONDS = 30.0
"""After this many seconds a call for a model that hangs may be tried again."""

T = TypeVar("T")


class Pool(Enum):
    """A pool of threads. A task waits for threads of its own pool alone."""

    FILES = auto()
    """Looking models up: small reads."""
    LISTS = auto()
    """Listing what models there are: reads without number, which no other call may wait for."""
    PROMPTS = auto()
    """Tokenizers, tokenising, grammars of answers."""
    TEMPLATES = auto()
    """Each thread has a worker process that renders chat templates."""
    LONG = auto()
    """Downloads, and reading weights to name them."""
    DISK = auto()
    """The disk tier of the prefix cache: a lane for work that is done in order, and two for reads."""


_GONE = "the disk or the network share that has its files may be gone; calls for it are refused until it is back"
_ENDLESS = "calls for it are refused until that ends; a shorter prompt may do"


@dataclass(frozen=True, slots=True)
class Kind:
    """
    A kind of work.

    Attributes:
        name: Its name in figures and logs; part of the API.
        pool: Where it runs.
        words: The work in words, for error texts; the model's name follows.
        limit: Seconds without a sign of life after which it is written off.
        cause: The probable cause and the remedy, for error texts.
    """

    name: str
    pool: Pool
    words: str
    limit: float
    cause: str = _GONE


LOOKUP = Kind("lookup", Pool.FILES, "looking up", 30.0)
LIST = Kind("list", Pool.LISTS, "listing the models of", 30.0)
READ = Kind("read", Pool.LONG, "reading the weights of", 60.0)
FETCH = Kind("fetch", Pool.LONG, "fetching", 600.0, "the Hub, or another program that fetches it, may hang")
TOKENIZER = Kind("tokenizer", Pool.PROMPTS, "reading the tokenizer of", 60.0)
TEMPLATE = Kind("template", Pool.TEMPLATES, "rendering the chat template of", 120.0, _ENDLESS)
KV_DISK = Kind("kv_disk", Pool.DISK, "reading or writing", 30.0)
PROMPT = Kind("prompt", Pool.PROMPTS, "preparing a prompt for", 120.0, _ENDLESS)


@dataclass(frozen=True, slots=True)
class Task(Generic[T]):
    """
    Work of one kind. Work that changes kind is cut into tasks that follow each other.

    Attributes:
        kind: Its kind.
        model: The name of its model, as in the request.
        lane: Tasks of the same lane run one after the other, so that they hold up each other alone.
        work: Does the work; blocks. Returns the result, or the task that follows, which may run in another pool.
        what: What ranks of a group must do alike, beside the kind; empty if the kind is all.
    """

    kind: Kind
    model: str
    lane: Hashable
    work: Callable[[], T | Task[T]] = field(repr=False)
    what: str = ""

    @property
    def name(self) -> str:
        """The work, in words that are the same on each rank of a group."""
        return f"{self.kind.name} {self.what}".strip()

    def stuck(self) -> SidecarError:
        """Return the error of calls that wait for this task when it is written off."""
        kind = self.kind
        return SidecarError(
            Reason.MODEL_NOT_RESPONDING,
            f"{kind.words} {self.model} has not moved on for {kind.limit:.0f} s: {kind.cause}",
            metadata={"work": kind.name},
            retry_after=RETRY_SECONDS,
        )


AnyTask = Task[Any]


def already(model: str, result: T) -> Task[T]:
    """Return a task that does nothing and has this result."""
    return Task(LOOKUP, model, model, lambda: result)


Condition = Callable[[], bool]
"""Asked on the MLX thread once a turn, so it must be cheap. It reads state that other threads may set."""

Waiting = Generator[Condition, None, T]
"""Part of a call: yields conditions and returns a result."""


def until(condition: Condition) -> Waiting[None]:
    """Wait until a condition holds; if it holds now, go on at once."""
    while not condition():
        yield condition


class Pending(Generic[T]):
    """
    The result of a task, for the call that waits for it. Belongs to the MLX thread.

    Args:
        then: Called once the task has ended, with its result or its error.

    Attributes:
        done: Whether the work has ended, with a result or an error.
        abandoned: Whether the call no longer waits. Other threads read it: work that has not begun is left out.
    """

    def __init__(self, then: Callable[[T | SidecarError], None] = ignore) -> None:
        self._then = then
        self.done = False
        self.abandoned = False
        self._result: T | None = None
        self._error: SidecarError | None = None

    def succeed(self, result: T) -> None:
        """End with a result."""
        self.done, self._result = True, result
        self._then(result)

    def fail(self, error: SidecarError) -> None:
        """End with an error."""
        self.done, self._error = True, error
        self._then(error)

    def wait(self) -> Waiting[T]:
        """
        Wait for the end of the work and return its result.

        Raises:
            SidecarError: The error of the work.
        """
        try:
            yield from until(lambda: self.done)
        finally:
            self.abandoned = True
        error, self._error = self._error, None
        if error is None:
            return cast("T", self._result)
        try:
            raise error.with_traceback(None)  # all callers of a search get the same error
        finally:
            del error  # its traceback has this frame: the cycle would keep the request until the next collection
