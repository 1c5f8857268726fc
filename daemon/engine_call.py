"""One call to the engine, as the parent sees it: a small buffer between the engine's pace and the reader's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from daemon.backlog import Backlog
from daemon.durations import seconds
from daemon.errors import Reason, SidecarError
from daemon.v1 import ipc_pb2 as ipc
from daemon.watching import Countdown

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
