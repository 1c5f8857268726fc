"""
One call to the engine as the parent sees it: a queue of its events, with flow control for a reader that lags.

An engine generates faster than some clients read. What happens to the events of one call then depends on the bytes
that wait in its backlog:

                  192 KiB wait                    30 s without a read
      FLOWING ------------------> HELD BY THE ENGINE ------------------> ENDED, SLOW_CONSUMER
         ^                               |
         +-------------------------------+
                 half of it was read

While a call flows, each event that waits is joined with the next one where nothing is lost by that. So a backlog is a
few events, and only their deltas grow.

A call ends in one of two ways, in either order: the engine sends its last event (`over`), or the parent gives the call
an error (`fail`). The reader gets the events that came before, and then the first error. The engine is told to cancel
a call that is closed before it is over.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from google.protobuf.duration_pb2 import Duration

from daemon.shared.durations import duration, seconds
from daemon.shared.errors import Reason, SidecarError
from daemon.shared.failures import error_of
from daemon.shared.last_events import ends_call
from daemon.shared.observed_time import Countdown
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb

FULL_BYTES = 192 * 1024
"""Bytes of a backlog at which the engine is told to hold the call. With what it sends meanwhile: below 256 KiB."""

STALL_SECONDS = 30.0
"""Seconds without a read after which a call that is held is ended."""


class EngineCall:
    """
    The events of one call, in order.

    Args:
        command: The command that opened the call.
        on_close: Called when the reader is done, or is given up. It tells the engine, if the call is not over.
        on_hold: Called when the engine is to hold the call (True), or to go on (False).
        opened: When it was opened, in seconds.

    Attributes:
        over: Whether the engine has sent its last event. That event may still be unread.
        waited: Seconds until an engine took it. They are added to the timings of the answer, which count from arrival.
        on_stall: Called once if the call is ended because its reader stays away.
    """

    def __init__(
        self,
        command: ipc.Command,
        on_close: Callable[[EngineCall], None],
        on_hold: Callable[[EngineCall, bool], None] = lambda _call, _held: None,
        opened: float = 0.0,
    ) -> None:
        self.command = command
        self.opened = opened
        self.over = False
        self.waited = 0.0
        self.on_stall: Callable[[], None] = lambda: None
        self._on_close = on_close
        self._on_hold = on_hold
        self._backlog = Backlog()
        self._error: SidecarError | None = None
        self._arrived = asyncio.Event()
        self._patience: Countdown | None = None
        """Runs while the engine holds the call; ends it."""

    def push(self, event: ipc.Event) -> None:
        """Take an event from the engine. Events after the last one are dropped."""
        if self.over:
            return
        if event.HasField("failure"):
            self._end_with(error_of(event.failure))
        elif self._error is None:
            for span in _from_arrival(event) if self.waited else ():  # the engine has not seen the wait for it
                span.CopyFrom(duration(seconds(span) + self.waited))
            self._backlog.push(event)
        self.over = ends_call(event)  # only now: if its last event cannot be taken, it has to end with an error
        self._arrived.set()
        full = self._backlog.nbytes >= FULL_BYTES
        if full and self._error is None and self._patience is None and not self.over:
            self._on_hold(self, True)
            self._wait_for_reader()

    def fail(self, error: SidecarError) -> None:
        """End the call with an error, unless it is over. The engine may still compute for it until it is closed."""
        if not self.over:
            self._end_with(error.again())  # others may get the same one: its frames are cleared when a call has ended

    def _end_with(self, error: SidecarError) -> None:
        """Give the reader an error after the events that wait. The first error counts."""
        if self._error is None:
            self._error = error
            self._arrived.set()

    async def events(self) -> AsyncIterator[ipc.Event]:
        """
        Iterate over the events until the last one.

        Raises:
            SidecarError: After the events that came before, if the call failed.
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
        """Stop reading. A call that is not over is cancelled in the engine."""
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
        """End the call. Its slot and its backlog are free at once; the reader finds the error when it comes back."""
        self._patience = None
        self._backlog.clear()
        # Also if the call is over: without an error, what was read would look like the whole answer.
        self._end_with(
            SidecarError(
                Reason.SLOW_CONSUMER,
                f"nothing was read of this stream for {STALL_SECONDS:g} s although {FULL_BYTES // 1024} KiB waited; "
                "what was not read is dropped",
            )
        )
        self._on_close(self)
        self.on_stall()


JOIN_TOKENS = 4096
"""Tokens at which a joined delta grows no more."""

JOIN_BYTES = 1 << 20
"""Bytes at which it grows no more. It fits into one gRPC message, whatever the next delta adds."""


class Backlog:
    """A queue of events that joins an event with the last one, where nothing is lost by that."""

    def __init__(self) -> None:
        self.nbytes = 0
        """Bytes of the events that wait, as they came."""
        self._events: deque[tuple[ipc.Event, int]] = deque()

    def __len__(self) -> int:
        return len(self._events)

    def push(self, event: ipc.Event) -> None:
        """Add an event, or join it with the last one."""
        size = event.ByteSize()
        self.nbytes += size
        last = self._joinable(event)
        if last is not None and self._events[last][1] < JOIN_BYTES and _join(self._events[last][0], event):
            self._events[last] = (self._events[last][0], self._events[last][1] + size)
        else:
            self._events.append((event, size))

    def _joinable(self, event: ipc.Event) -> int | None:
        """
        Return the position of the event that another one may be joined with; None if there is none.

        It is the last one. A delta may pass what the other samples of its request have sent since its own last delta.
        """
        sample = _sample(event)
        for position in range(len(self._events) - 1, -1, -1):
            other = _sample(self._events[position][0])
            if sample is None or other is None or other == sample:
                return position
        return None

    def pop(self) -> ipc.Event:
        """Remove and return the first event."""
        event, size = self._events.popleft()
        self.nbytes -= size
        return event

    def clear(self) -> None:
        """Drop all events."""
        self._events.clear()
        self.nbytes = 0


def _from_arrival(event: ipc.Event) -> list[Duration]:
    """Return the times in an event that count from the arrival of its call."""
    timings, load_time = event.generate.finished.timings, event.load.ready.load_time
    if event.generate.HasField("finished"):
        return [timings.queue, *([timings.first_token] if timings.HasField("first_token") else [])]
    if event.embed.HasField("finished"):
        return [event.embed.finished.time]
    return [load_time] if load_time.ToNanoseconds() else []  # zero for a model that was in memory


def _sample(event: ipc.Event) -> int | None:
    """Return the sample that an event belongs to; None if it is no delta and no end of a sample."""
    answer = event.generate
    if answer.HasField("delta"):
        return answer.delta.index
    return answer.finished.index if answer.HasField("finished") else None


def _join(last: ipc.Event, event: ipc.Event) -> bool:
    """Join an event with the one before it if that loses nothing. Return whether it was joined."""
    kinds = (last.WhichOneof("body"), event.WhichOneof("body"))
    # Of progress only the latest counts; of deltas all.
    if kinds == ("load", "load") and last.load.HasField("progress") and event.load.HasField("progress"):
        last.load.CopyFrom(event.load)
        return True
    if kinds != ("generate", "generate"):
        return False
    inner = last.generate.WhichOneof("event")
    if inner != event.generate.WhichOneof("event"):
        return False
    if inner == "delta":
        if len(last.generate.delta.token_ids) >= JOIN_TOKENS or not _in_order(
            last.generate.delta, event.generate.delta
        ):
            return False
        last.generate.delta.text += event.generate.delta.text
        last.generate.delta.token_ids.extend(event.generate.delta.token_ids)
        last.generate.delta.logprobs.extend(event.generate.delta.logprobs)
        last.generate.delta.reasoning += event.generate.delta.reasoning
        last.generate.delta.tool_calls.extend(event.generate.delta.tool_calls)
        last.generate.delta.tool_call_deltas.extend(event.generate.delta.tool_call_deltas)
        return True
    if inner == "prefill":
        last.generate.prefill.CopyFrom(event.generate.prefill)
        return True
    return False


def _in_order(last: pb.Delta, delta: pb.Delta) -> bool:
    """
    Tell whether two deltas in one are read in their order: clients read reasoning, then text, then calls.

    Scores of tokens are of what is beside them, so that a delta with scores is of one kind.
    """
    if last.logprobs or delta.logprobs:
        return _kinds(last) == _kinds(delta)
    return max(_kinds(last), default=0) <= min(_kinds(delta), default=2)


def _kinds(delta: pb.Delta) -> list[int]:
    """Return what a delta has, as places in the order in which it is read."""
    parts = (delta.reasoning, delta.text, delta.tool_calls or delta.tool_call_deltas)
    return [place for place, part in enumerate(parts) if part]
