"""
Failpoints: named places at which a test makes this process die, stop, wait or fail.

Parent and engine read them from a variable at their start. Without it, a failpoint is an empty function:

    MLX_SIDECAR_TEST_FAILPOINTS="token.first=kill@3;kv.publish=raise%2;load.slice=sleep:0.2"

`kill` and `stop` send this process SIGKILL and SIGSTOP, `raise` raises `FailpointError`, `sleep:S` waits S seconds.
`@N` means only the Nth time, `%P` each time with a chance of P percent. Without either it is every time.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

ENV = "MLX_SIDECAR_TEST_FAILPOINTS"

PLACES: Mapping[str, str] = {
    "lock.taken": "parent: it holds the lock and has not bound its socket",
    "socket.bound": "parent: it listens under the private name, before the rename",
    "socket.published": "parent: right after the rename",
    "drain.begun": "parent: it was told to stop and has refused nothing yet",
    "engine.hello": "engine: before its first frame",
    "tokenizer.read": "engine: before a tokenizer's files are read, on a thread beside the MLX thread",
    "load.slice": "engine: before a slice of weights",
    "load.probed": "engine: the KV layout of a model that was read is known, and not compared with that of other ranks",
    "prefill.chunk": "engine: before a chunk of a prompt",
    "token.first": "engine: before the first token of an answer",
    "kv.publish": "engine: blocks are evaluated and in no trie yet",
    "disk.write": "engine: a private file of the disk tier is open and empty",
    "disk.part": "engine: before a part of such a file",
    "disk.written": "engine: such a file is written and not synced",
    "disk.synced": "engine: such a file is synced and has its private name",
    "disk.renamed": "engine: such a file has its name",
    "disk.index": "engine: the private file of the disk tier's index is open and empty",
    "disk.read": "engine: a file of the disk tier is read and not checked",
    "disk.remove": "engine: before a file of the disk tier is removed",
    "invalidate.dropped": "engine: blocks are dropped, and what runs may still store",
}
"""Each place, and the moment that it stands for."""


class FailpointError(Exception):
    """The error that `raise` raises."""


@dataclass(slots=True)
class Failpoint:
    """
    The fault at one place.

    Attributes:
        action: Makes the fault.
        only: Number of the hit at which the fault is made; 0 for each.
        chance: Chance of the fault at a hit, 0 to 1.
        hits: Hits so far.
    """

    action: Callable[[], None]
    only: int = 0
    chance: float = 1.0
    hits: int = 0

    def hit(self, draw: Callable[[], float]) -> None:
        """Count a hit, and make the fault if it is due."""
        self.hits += 1
        if self.only in (0, self.hits) and (self.chance >= 1 or draw() < self.chance):
            self.action()


def parse(text: str) -> dict[str, Failpoint]:
    """
    Return the failpoints that a text sets, by place.

    Raises:
        ValueError: If a place or a fault is unknown.
    """
    points = {}
    for setting in filter(None, text.split(";")):
        place, _, what = setting.partition("=")
        if place not in PLACES:
            raise ValueError(f"{ENV} sets {place!r}, which is no failpoint; known are {', '.join(PLACES)}")
        what, _, only = what.partition("@")
        what, _, percent = what.partition("%")
        points[place] = Failpoint(_action(what, place), int(only or 0), float(percent or 100) / 100)
    return points


def _action(what: str, place: str) -> Callable[[], None]:
    name, _, value = what.partition(":")
    if name in ("kill", "stop"):
        number = signal.SIGKILL if name == "kill" else signal.SIGSTOP
        return lambda: os.kill(os.getpid(), number)
    if name == "sleep":
        seconds = float(value)
        return lambda: time.sleep(seconds)
    if name == "raise":
        return lambda: _raise(place)
    raise ValueError(f"{ENV} wants {what!r} at {place}; it can be kill, stop, raise or sleep:SECONDS")


def _raise(place: str) -> None:
    raise FailpointError(f"the failpoint {place} was told to fail")


def _chosen(environ: Mapping[str, str]) -> Callable[[str], None]:
    if not environ.get(ENV):
        return lambda _place: None
    points = parse(environ[ENV])
    draw = random.Random(os.getpid()).random  # noqa: S311 - chance, not a secret

    def hit(place: str) -> None:
        if (point := points.get(place)) is not None:
            point.hit(draw)

    return hit


failpoint = _chosen(os.environ)
"""Called with the name of a place when the process passes it."""
