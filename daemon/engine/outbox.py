"""Sends the engine's events to the parent, each call's last event after the figures that it changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from daemon.shared.durations import duration
from daemon.shared.errors import SidecarError
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb


class Wire(Protocol):
    """Takes events to the parent."""

    @property
    def behind(self) -> bool:
        """Whether events that were written wait because the parent does not read."""

    def send(self, event: ipc.Event) -> None:
        """Queue an event; any thread."""

    def flush(self) -> None:
        """Write what was queued; never blocks, any thread."""


def ends_call(event: ipc.Event) -> bool:
    """Whether an event is the last of its call."""
    kind = event.WhichOneof("body")
    if kind == "generate":
        return event.generate.HasField("finished")
    if kind == "load":
        return event.load.HasField("ready")
    return kind in ("invalidate", "failure")


class Outbox:
    """
    Sends events. Figures go out before an event that ends a call, so a client that saw the end also sees its effect.

    The deltas of a step are written together, by `flush`. Any other event is written at once, after the queued deltas.

    Args:
        wire: Takes events to the parent.
        figures: Returns fresh statistics; `attach` replaces it.
    """

    def __init__(self, wire: Wire, figures: Callable[[], pb.StatsResponse] = pb.StatsResponse) -> None:
        self._wire = wire
        self._figures = figures

    def attach(self, figures: Callable[[], pb.StatsResponse]) -> None:
        """Take fresh statistics from here on from `figures`, which was built after the outbox."""
        self._figures = figures

    def flush(self) -> None:
        """Write the deltas that were sent."""
        self._wire.flush()

    def accepted(self, call_id: int, prompt_tokens: int) -> None:
        """Tell the size of a prompt."""
        self._write(ipc.Event(call_id=call_id, accepted=ipc.Accepted(prompt_tokens=prompt_tokens)))

    def load(self, call_id: int, event: pb.GetOrLoadResponse) -> None:
        """Send an event of a GetOrLoad call."""
        self._write(ipc.Event(call_id=call_id, load=event))

    def generate(self, call_id: int, event: pb.GenerateResponse) -> None:
        """Send an event of a Generate call; `finished` ends the call."""
        if event.HasField("finished"):
            self._wire.send(self._snapshot())
        self._wire.send(ipc.Event(call_id=call_id, generate=event))
        if not event.HasField("delta"):
            self.flush()

    def invalidated(self, call_id: int, answer: pb.InvalidateResponse) -> None:
        """Answer an Invalidate call."""
        self._write(ipc.Event(call_id=call_id, invalidate=answer))

    def fail(self, call_id: int, error: SidecarError) -> None:
        """End a call with an error."""
        # Names of files may be no text, and a message that cannot be encoded must not take the engine along.
        message = error.message.encode("utf-8", "replace").decode()
        failure = ipc.Failure(reason=error.reason, message=message, metadata=error.metadata, field=error.field)
        if error.retry_after is not None:
            failure.retry_after.CopyFrom(duration(error.retry_after))
        self._write(ipc.Event(call_id=call_id, failure=failure))

    def publish(self) -> None:
        """Send fresh figures, unless older figures wait to be read: a night of unread figures would fill the memory."""
        if not self._wire.behind:
            self._write(self._snapshot())

    def _snapshot(self) -> ipc.Event:
        return ipc.Event(snapshot=self._figures())

    def _write(self, event: ipc.Event) -> None:
        if ends_call(event):
            self._wire.send(self._snapshot())
        self._wire.send(event)
        self.flush()
