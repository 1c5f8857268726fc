"""Tasks: work off the MLX thread, cut where it changes what it waits for. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Generic, TypeVar

from daemon.shared.errors import Reason, SidecarError

RETRY_SECONDS = 30.0
"""When a call for a model that hangs may be tried again."""

T = TypeVar("T")


class Pool(Enum):
    """Threads of their own: what waits for one of them waits for no other."""

    FILES = auto()
    """Looking models up: small reads."""
    PROMPTS = auto()
    """Tokenizers, tokenising, forms of answers."""
    TEMPLATES = auto()
    """Each thread has a worker process that renders chat templates."""
    LONG = auto()
    """Downloads, and reading weights to name them."""


_GONE = "the disk or the network share that has its files may be gone; calls for it are refused until it is back"
_ENDLESS = "calls for it are refused until that ends; a shorter prompt may do"


@dataclass(frozen=True, slots=True)
class Kind:
    """
    A kind of work.

    Attributes:
        name: Its name in figures and logs; part of the API.
        pool: Where it runs.
        words: What it does, for the caller; the model's name follows.
        limit: Seconds without a sign of life after which it is written off.
        cause: What probably keeps it, and what to do, for the caller.
    """

    name: str
    pool: Pool
    words: str
    limit: float
    cause: str = _GONE


LOOKUP = Kind("lookup", Pool.FILES, "looking up", 30.0)
READ = Kind("read", Pool.LONG, "reading the weights of", 60.0)
FETCH = Kind("fetch", Pool.LONG, "fetching", 600.0, "the Hub, or another program that fetches it, may hang")
TOKENIZER = Kind("tokenizer", Pool.PROMPTS, "reading the tokenizer of", 60.0)
TEMPLATE = Kind("template", Pool.TEMPLATES, "rendering the chat template of", 120.0, _ENDLESS)
PROMPT = Kind("prompt", Pool.PROMPTS, "preparing a prompt for", 120.0, _ENDLESS)


@dataclass(frozen=True, slots=True)
class Task(Generic[T]):
    """
    Work of one kind, and what comes after it.

    Attributes:
        kind: What it is.
        model: The model that it is about, as callers call it.
        lane: Tasks with the same one run one after the other, so that they hold up each other and nothing else.
        work: Does it; blocks. Returns the result, or the task that goes on, which may run on other threads.
    """

    kind: Kind
    model: str
    lane: Hashable
    work: Callable[[], T | Task[T]] = field(repr=False)

    def stuck(self) -> SidecarError:
        """Return what callers are told when it was written off."""
        kind = self.kind
        return SidecarError(
            Reason.MODEL_NOT_RESPONDING,
            f"{kind.words} {self.model} has not moved on for {kind.limit:.0f} s: {kind.cause}",
            metadata={"work": kind.name},
            retry_after=RETRY_SECONDS,
        )


AnyTask = Task[Any]


def already(model: str, result: T) -> Task[T]:
    """Return the task that has this result and nothing to do."""
    return Task(LOOKUP, model, model, lambda: result)
