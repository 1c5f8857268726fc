"""One call's events on their way to its reader: queued, joined while the reader lags, held back, or ended."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from daemon.shared.durations import seconds
from daemon.shared.errors import Reason, SidecarError
from daemon.shared.observed_time import Countdown
from daemon.v1 import ipc_pb2 as ipc

FULL_BYTES = 192 * 1024
"""A backlog of so many bytes makes the engine hold the call; what it sends until it hears of it stays below 256 KiB."""

STALL_SECONDS = 30.0
"""A call whose backlog is full and of which nothing is read for so long is ended."""


class EngineCall:
    """
    Events of one call, in order. A reader that lags finds them joined; one that lags far behind makes the engine hold
    the call until it has caught up by half; and one that stays away is told so when it comes back.

    Args:
        command: What opened the call.
        on_close: Called when the reader is done, or is given up; tells the engine if the call was not over.
        on_hold: Called when the engine is to hold the call (True), or to go on (False).

    Attributes:
        over: Whether the engine has sent its last event; it may still be unread.
        on_stall: Called once if the call is ended because nothing was read of it.
    """

    def __init__(
        self,
        command: ipc.Command,
        on_close: Callable[[EngineCall], None],
        on_hold: Callable[[EngineCall, bool], None] = lambda _call, _held: None,
    ) -> None:
        self.command = command
        self.over = False
        self.on_stall: Callable[[], None] = lambda: None
        self._on_close = on_close
        self._on_hold = on_hold
        self._backlog = Backlog()
        self._error: SidecarError | None = None
        self._arrived = asyncio.Event()
        self._patience: Countdown | None = None
        """Runs while the engine holds the call."""

    def push(self, event: ipc.Event) -> None:
        """Take an event from the engine."""
        if self.over:
            return
        if event.HasField("failure"):
            self.fail(_error(event.failure))
            self.over = True
            return
        self.over = _is_last(event)
        if self._error is None:
            self._backlog.push(event)
            if self._backlog.nbytes >= FULL_BYTES and self._patience is None and not self.over:
                self._on_hold(self, True)
                self._wait_for_reader()
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
            while self._backlog:
                event = self._backlog.pop()
                self._was_read()
                yield event
            if self._error is not None:
                raise self._error
            if self.over:
                return

    def close(self) -> None:
        """Stop reading; a call that has not ended is cancelled."""
        self._stop_waiting()
        self._on_close(self)

    def _was_read(self) -> None:
        if self._patience is None:
            return
        self._stop_waiting()
        if self._backlog.nbytes > FULL_BYTES // 2:
            self._wait_for_reader()
        elif not self.over:
            self._on_hold(self, False)

    def _wait_for_reader(self) -> None:
        self._patience = Countdown(STALL_SECONDS, self._stalled)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _stalled(self) -> None:
        """End the call: its slot and what waited for the reader are free now, whenever the reader comes back."""
        self._patience = None
        self._backlog.clear()
        self.fail(
            SidecarError(
                Reason.SLOW_CONSUMER,
                f"nothing was read of this stream for {STALL_SECONDS:g} s although {FULL_BYTES // 1024} KiB waited; "
                "what was not read is dropped",
            )
        )
        self._on_close(self)
        self.on_stall()


def _is_last(event: ipc.Event) -> bool:
    kind = event.WhichOneof("body")
    if kind == "generate":
        return event.generate.HasField("finished")
    return kind == "invalidate" or (kind == "load" and event.load.HasField("ready"))


def _error(failure: ipc.Failure) -> SidecarError:
    known = failure.reason in Reason.__members__
    return SidecarError(
        Reason(failure.reason) if known else Reason.INTERNAL,
        failure.message,
        metadata=dict(failure.metadata),
        retry_after=seconds(failure.retry_after) if failure.HasField("retry_after") else None,
        field=failure.field,
    )


JOIN_TOKENS = 4096
"""Deltas are joined up to about so many tokens: with all their log-probabilities they still fit in one gRPC message."""


class Backlog:
    """Events in order. However long the reader stays away, it is a few events; only their deltas grow."""

    def __init__(self) -> None:
        self.nbytes = 0
        """Bytes of all events, as they came."""
        self._events: deque[tuple[ipc.Event, int]] = deque()

    def __len__(self) -> int:
        return len(self._events)

    def push(self, event: ipc.Event) -> None:
        """Add an event, or fold it into the last one."""
        size = event.ByteSize()
        self.nbytes += size
        if self._events and _join(self._events[-1][0], event):
            last, before = self._events.pop()
            event, size = last, before + size
        self._events.append((event, size))

    def pop(self) -> ipc.Event:
        """Remove and return the first event."""
        event, size = self._events.popleft()
        self.nbytes -= size
        return event

    def clear(self) -> None:
        """Drop all events."""
        self._events.clear()
        self.nbytes = 0


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
