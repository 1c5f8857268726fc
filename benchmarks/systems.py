"""Systems under test: real server processes on the same model, asked with the same text."""

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
"""Longest wait for a server; only a broken one takes it."""


@dataclass(frozen=True, slots=True)
class Request:
    """A completion to ask for. Greedy unless it has a seed; then sampled at temperature 1."""

    model: Path
    prompt: str
    tokens: int
    seed: int | None = None

    @property
    def temperature(self) -> float:
        """0 is greedy."""
        return 0.0 if self.seed is None else 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """
    A completion as its client saw it.

    Attributes:
        sent: When the request was sent, in seconds of `time.perf_counter`.
        arrivals: When each piece of text came.
        text: All of it.
        prompt_tokens: Tokens of the prompt, as the server counted them.
        cached_tokens: How many of them it did not compute; None if it does not say.
        tokens: Tokens of the answer, as the server counted them.
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
    """A running server. `name` is what tables call it."""

    name: str

    def ask(self, request: Request) -> Answer:
        """Ask for a completion and read it as it streams. May be called from several threads at once."""

    def pids(self) -> list[int]:
        """Return its processes."""

    def close(self) -> None:
        """End it."""


class StartsSystem(Protocol):
    """Starts a system in a folder of its own, ready to answer for the first of its models."""

    @property
    def name(self) -> str:
        """What tables call it."""

    def __call__(self, folder: Path, models: Sequence[Path]) -> System:
        """Start it."""


def ask_all(system: System, requests: Sequence[Request]) -> list[Answer]:
    """Ask for several completions at once."""
    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(system.ask, requests))


def throughput(answers: Sequence[Answer]) -> float:
    """Return the tokens per second of completions that were asked for together, prompts included in the time."""
    began = min(answer.sent for answer in answers)
    return sum(answer.tokens for answer in answers) / (max(answer.arrivals[-1] for answer in answers) - began)


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], pause: float = 0.02) -> None:
    """
    Ask a server again and again until it is ready.

    Raises:
        RuntimeError: If its process ended, or it took too long.
    """
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server is not ready; its exit status is {process.poll()}")
        time.sleep(pause)


@contextmanager
def closed_on_failure(system: System) -> Iterator[None]:
    """Leave no server behind that never became ready."""
    try:
        yield
    except BaseException:
        system.close()
        raise


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server, by force if it does not listen."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
