"""
Quarantine: refuses requests and models that were running at several deaths of the engine. Pure; the clock is injected.

A request is refused after two deaths, a model after three, both for ten minutes after the first of them. A request is
known by a digest of its content, so that the same request under another id counts as the same.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from daemon.shared.errors import Reason, SidecarError
from daemon.v1 import ipc_pb2 as ipc

WINDOW_SECONDS = 600.0
"""A death counts for so long."""
REQUEST_DEATHS = 2
MODEL_DEATHS = 3
"""Deaths within that time after which a request, or a model, is refused."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A call, as the quarantine knows it: the name of its model, and a digest of its request."""

    model: str
    digest: str

    @classmethod
    def of(cls, command: ipc.Command, model: str) -> Suspect:
        """Return the suspect for a call. Its ids do not count: they do not make it another request."""
        anonymous = ipc.Command()
        anonymous.CopyFrom(command)
        anonymous.ClearField("call_id")
        for kind in ("generate", "embed"):
            if anonymous.HasField(kind):
                getattr(anonymous, kind).ClearField("request_id")
        return cls(model, hashlib.sha256(anonymous.SerializeToString(deterministic=True)).hexdigest())


class Quarantine:
    """
    Counts deaths by request and by model.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._requests: dict[str, deque[float]] = {}
        self._models: dict[str, deque[float]] = {}

    def died(self, running: Iterable[Suspect]) -> None:
        """Count a death of the engine for the calls that were running; once for each model and each request."""
        suspects = set(running)
        now = self._clock()
        for digest in {suspect.digest for suspect in suspects}:
            self._requests.setdefault(digest, deque()).append(now)
        for model in {suspect.model for suspect in suspects}:
            self._models.setdefault(model, deque()).append(now)

    @property
    def knows(self) -> bool:
        """Whether any death counts; if not, no call needs a check."""
        return bool(self._models or self._requests)  # the deaths of a model may be lifted, and its requests stay

    def check(self, suspect: Suspect) -> None:
        """
        Check that a call may run.

        Raises:
            SidecarError: MODEL_QUARANTINED or REQUEST_QUARANTINED.
        """
        self._expire()
        if len(self._models.get(suspect.model, ())) >= MODEL_DEATHS:
            raise SidecarError(
                Reason.MODEL_QUARANTINED,
                f"the engine died {MODEL_DEATHS} times in ten minutes while it ran {suspect.model}; lift this with: "
                f"mlx-sidecar invalidate {suspect.model}",
            )
        if len(self._requests.get(suspect.digest, ())) >= REQUEST_DEATHS:
            raise SidecarError(
                Reason.REQUEST_QUARANTINED,
                f"this request was running at {REQUEST_DEATHS} deaths of the engine; change it, or wait ten minutes",
            )

    def lift(self, model: str | None = None) -> None:
        """Forget the deaths of one model, or of all models and requests."""
        if model is None:
            self._requests.clear()
            self._models.clear()
        else:
            self._models.pop(model, None)

    def _expire(self) -> None:
        oldest = self._clock() - WINDOW_SECONDS
        for table in (self._requests, self._models):
            for name, deaths in list(table.items()):
                while deaths and deaths[0] <= oldest:
                    deaths.popleft()
                if not deaths:
                    del table[name]
