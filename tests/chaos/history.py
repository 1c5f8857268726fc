"""The history of a chaos run: requests and their outcomes, as the clients saw them; thread-safe."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.chaos.asks import Ask

OK = "OK"
CUT = "cut off by its client"
"""End of a stream after its client cancelled it or died."""


@dataclass(slots=True, eq=False)
class Stream:
    """
    One Generate call.

    Attributes:
        ask: What was asked.
        sent: When; all times are seconds of the driver's monotonic clock.
        events: What came, in order.
        started: When its `started` came; None if it did not.
        ends: Its ends: OK, CUT, or "CODE REASON". Exactly one is right.
        cached: Tokens that it says it reused.
        from_disk: Those of them that came from the disk.
        settled: Whether it was checked, and its events forgotten.
        ended: When its end came.
    """

    ask: Ask
    sent: float
    events: list[pb.GenerateResponse] = field(default_factory=list)
    started: float | None = None
    ends: list[str] = field(default_factory=list)
    cached: int = 0
    from_disk: int = 0
    settled: bool = False
    ended: float = 0.0

    def add(self, event: pb.GenerateResponse) -> None:
        """Note an event."""
        if event.HasField("started") and self.started is None:
            self.started = time.monotonic()
            self.cached = event.started.cached_tokens
            self.from_disk = event.started.disk_tokens
        self.events.append(event)

    def end(self, how: str) -> None:
        """Note its end."""
        self.ends.append(how)
        self.ended = time.monotonic()

    @property
    def text(self) -> str:
        """All text that came."""
        return "".join(event.delta.text for event in self.events)


@dataclass(frozen=True, slots=True)
class Invalidation:
    """
    An Invalidate of prefixes that was answered with OK.

    Attributes:
        called: When it was sent.
        returned: When its answer was there.
        model: Its model; empty means all.
        salt: Its salt, for a prefix; None means all of the model.
        prefix: Its prefix.
    """

    called: float
    returned: float
    model: str = ""
    salt: str | None = None
    prefix: tuple[int, ...] = ()

    def covers(self, ask: Ask) -> bool:
        """Tell whether nothing of an ask's prompt, beyond what other prefixes share, may be reused after it."""
        if self.model not in ("", ask.model) or (self.salt is not None and self.salt != ask.salt):
            return False
        return ask.prompt[: len(self.prefix)] == self.prefix


@dataclass(frozen=True, slots=True)
class Sample:
    """Figures of Stats, and the settings of the daemon that gave them."""

    settings: Mapping[str, str]
    stats: pb.StatsResponse


class History:
    """Everything that happened."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.invalidations: list[Invalidation] = []
        self.samples: list[Sample] = []
        self.sampled = 0
        self.settled = 0
        """Streams before this one are settled."""
        self.faults: list[str] = []
        self.kills: list[float] = []
        """When a parent was killed, or told to stop if a failpoint killed it then."""
        self.notes: list[str] = []
        """Violations that were seen as they happened."""
        self._lock = threading.Lock()

    def begin(self, ask: Ask) -> Stream:
        """Note that a stream is asked for."""
        stream = Stream(ask, time.monotonic())
        with self._lock:
            self.streams.append(stream)
        return stream
