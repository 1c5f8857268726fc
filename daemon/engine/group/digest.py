"""A checksum over what an engine decided, as its events tell: ranks compare it after each turn."""

from __future__ import annotations

from collections.abc import Callable
from zlib import crc32

from daemon.engine.outbox import Wire
from daemon.shared.errors import Reason
from daemon.v1 import ipc_pb2 as ipc

RANK = "rank"
"""Key of an error's metadata: which rank it occurred on, if all ranks have heard of it and act on it."""
_OF_ONE_MACHINE = (Reason.MACHINE_EXHAUSTED, Reason.MACHINE_FAULT)


class NoWire(Wire):
    """The wire of a rank that answers no calls."""

    @property
    def behind(self) -> bool:
        """Always: figures that are sent now and then would be made for no reader."""
        return True

    def send(self, event: ipc.Event) -> None:
        """Drop an event."""

    def flush(self) -> None:
        """Do nothing."""


class DigestingWire(Wire):
    """
    A wire that adds up what passes.

    Args:
        wire: Takes the events.
        give_up: Ends this rank, for a reason.

    Attributes:
        digest: The checksum so far.
    """

    def __init__(self, wire: Wire, give_up: Callable[[str], None]) -> None:
        self._wire = wire
        self._give_up = give_up
        self.digest = 0

    @property
    def behind(self) -> bool:
        """Whether events wait because the parent does not read them."""
        return self._wire.behind

    def send(self, event: ipc.Event) -> None:
        """Add an event up, and pass it on. An error that the others do not have ends this rank: they wait for it."""
        failure = event.failure
        if failure.reason == Reason.INTERNAL:
            self._give_up("an unexpected error occurred in this rank; its log has it")
        if failure.reason in _OF_ONE_MACHINE and RANK not in failure.metadata:
            self._give_up(f"this rank's machine failed: {failure.message}")
        self.digest = crc32(_decided(event), self.digest)
        self._wire.send(event)

    def flush(self) -> None:
        """Let events leave."""
        self._wire.flush()


def _decided(event: ipc.Event) -> bytes:
    """Return what an event says that must be alike on each rank: no times, and no words of errors."""
    kind = event.WhichOneof("body")
    if kind == "failure":
        return f"{event.call_id}:{event.failure.reason}".encode()
    if kind != "generate":
        return b""
    answer = event.generate
    part = answer.WhichOneof("event")
    parts: tuple[object, ...] = ()
    if part == "delta":
        parts = (answer.delta.index, *answer.delta.token_ids)
    elif part == "started":
        parts = (answer.started.prompt_tokens, answer.started.cached_tokens)
    elif part == "prefill":
        parts = (answer.prefill.done,)
    elif part == "finished":
        parts = (answer.finished.index, answer.finished.reason)
    return f"{event.call_id}:{part}:{parts}".encode()
