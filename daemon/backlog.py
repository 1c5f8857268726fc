"""A backlog: events that wait for their reader, joined where that loses nothing. Pure."""

from __future__ import annotations

from collections import deque

from daemon.v1 import ipc_pb2 as ipc

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
