"""One call to the engine, as the parent sees it: a small buffer between the engine's pace and the reader's."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from daemon.durations import seconds
from daemon.errors import Reason, SidecarError
from daemon.v1 import ipc_pb2 as ipc

JOIN_TOKENS = 4096
"""Deltas are joined up to about so many tokens: with all their log-probabilities they still fit in one gRPC message."""


class EngineCall:
    """
    Events of one call, in order. A reader that lags finds them joined: the buffer stays at a few events, however
    long the reader stays away.

    Args:
        command: What opened the call.
        on_close: Called once, when the reader is done; tells the engine if the call was not over.

    Attributes:
        over: Whether the engine has sent its last event; it may still be unread.
    """

    def __init__(self, command: ipc.Command, on_close: Callable[[EngineCall], None]) -> None:
        self.command = command
        self.over = False
        self._on_close = on_close
        self._events: deque[ipc.Event] = deque()
        self._error: SidecarError | None = None
        self._arrived = asyncio.Event()

    def push(self, event: ipc.Event) -> None:
        """Take an event from the engine."""
        if self.over:
            return
        if event.HasField("failure"):
            self.fail(_error(event.failure))
            self.over = True
            return
        self.over = _is_last(event)
        if self._error is None and not (self._events and _join(self._events[-1], event)):
            self._events.append(event)
        self._arrived.set()

    def fail(self, error: SidecarError) -> None:
        """End the call with an error, after what came before it. The engine may still be at work on it."""
        if not self.over and self._error is None:
            self._error = error
            self._arrived.set()

    async def events(self) -> AsyncIterator[ipc.Event]:
        """
        Iterate until the last event.

        Raises:
            SidecarError: If the call failed.
        """
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._events:
                yield self._events.popleft()
            if self._error is not None:
                raise self._error
            if self.over:
                return

    def close(self) -> None:
        """Stop reading; a call that has not ended is cancelled."""
        self._on_close(self)


def _is_last(event: ipc.Event) -> bool:
    kind = event.WhichOneof("body")
    if kind == "generate":
        return event.generate.HasField("finished")
    return kind == "invalidate" or (kind == "load" and event.load.HasField("ready"))


def _join(last: ipc.Event, event: ipc.Event) -> bool:
    """Fold an event into the one before it, if that loses nothing, and tell whether it was done."""
    kinds = (last.WhichOneof("body"), event.WhichOneof("body"))
    if kinds == ("load", "load") and last.load.HasField("progress") and event.load.HasField("progress"):
        last.load.CopyFrom(event.load)
        return True
    if kinds != ("generate", "generate"):
        return False
    inner = last.generate.WhichOneof("event")
    if inner != event.generate.WhichOneof("event"):
        return False
    if inner == "delta":
        if len(last.generate.delta.token_ids) >= JOIN_TOKENS:
            return False
        last.generate.delta.text += event.generate.delta.text
        last.generate.delta.token_ids.extend(event.generate.delta.token_ids)
        last.generate.delta.logprobs.extend(event.generate.delta.logprobs)
        last.generate.delta.reasoning += event.generate.delta.reasoning
        last.generate.delta.tool_calls.extend(event.generate.delta.tool_calls)
        return True
    if inner == "prefill":
        last.generate.prefill.CopyFrom(event.generate.prefill)
        return True
    return False


def _error(failure: ipc.Failure) -> SidecarError:
    known = failure.reason in Reason.__members__
    return SidecarError(
        Reason(failure.reason) if known else Reason.INTERNAL,
        failure.message,
        metadata=dict(failure.metadata),
        retry_after=seconds(failure.retry_after) if failure.HasField("retry_after") else None,
        field=failure.field,
    )
