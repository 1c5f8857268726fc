"""The interface of a system under test, its requests and answers, and helpers for server processes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

START_SECONDS = 300
"""Longest wait for a server; only a broken server reaches it."""


@dataclass(frozen=True, slots=True)
class Request:
    """A completion request: greedy without a seed, sampled at temperature 1 with a seed."""

    model: Path
    prompt: str
    tokens: int
    seed: int | None = None

    @property
    def temperature(self) -> float:
        """Temperature of the request; 0 is greedy."""
        return 0.0 if self.seed is None else 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """
    A completion, measured at its client.

    Attributes:
        sent: Time of sending, in seconds of `time.perf_counter`.
        arrivals: Time of arrival of each piece of text.
        text: The whole text.
        prompt_tokens: Tokens of the prompt, as the server reports them.
        cached_tokens: Prompt tokens that were not computed; None if the server does not report them.
        tokens: Tokens of the answer, as the server reports them.
    """

    sent: float
    arrivals: tuple[float, ...]
    text: str
    prompt_tokens: int
    cached_tokens: int | None
    tokens: int

    @property
    def first_token(self) -> float:
        """Milliseconds from sending to the first text."""
        return 1000 * (self.arrivals[0] - self.sent)

    @property
    def gaps(self) -> list[float]:
        """Milliseconds between pieces of text."""
        return [1000 * (after - before) for before, after in pairwise(self.arrivals)]


class System(Protocol):
    """A running server. `name` is its name in tables."""

    name: str

    def ask(self, request: Request) -> Answer:
        """Stream a completion to its end. May be called from several threads at once."""

    def pids(self) -> list[int]:
        """Return the ids of its processes."""

    def close(self) -> None:
        """End it."""


class StartsSystem(Protocol):
    """Starts a system with its own folder, ready to answer for its first model."""

    @property
    def name(self) -> str:
        """Name of the system in tables."""

    def __call__(self, folder: Path, models: Sequence[Path]) -> System:
        """Start the system, and return it once it is ready."""


def ask_all(system: System, requests: Sequence[Request]) -> list[Answer]:
    """Send several requests at once, and return all answers."""
    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(system.ask, requests))


def throughput(answers: Sequence[Answer]) -> float:
    """Return the tokens per second of concurrent completions. The time includes the prompts."""
    began = min(answer.sent for answer in answers)
    return sum(answer.tokens for answer in answers) / (max(answer.arrivals[-1] for answer in answers) - began)


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], pause: float = 0.02) -> None:
    """
    Poll a server until it is ready.

    Raises:
        RuntimeError: If its process ends, or after START_SECONDS.
    """
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server is not ready; its exit status is {process.poll()}")
        time.sleep(pause)


@contextmanager
def closed_on_failure(system: System) -> Iterator[None]:
    """Close a server if the block fails, so that no server is left behind."""
    try:
        yield
    except BaseException:
        system.close()
        raise


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server by SIGTERM, and by SIGKILL after 30 seconds."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
