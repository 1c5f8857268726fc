"""
Finds out which process made a call, and keeps the figures of each for Stats. Pure.

`connected`, which is injected, tells the processes that are connected to the socket.

The kernel tells which processes are connected to the socket (`peers.py`), and gRPC does not tell which of them made a
call. The call's metadata can: clients of this project send their process id as `mlx-sidecar-pid`.

    metadata names   that process is connected   connected processes that never named themselves   the caller is
    a process        yes                                                                           that one
    a process        no                                                                            unknown
    nothing                                      exactly one                                       that one
    nothing                                      none, or several                                  unknown

So a process can pass for another one of the same user that is connected at that moment, and for nothing else. That is
enough for figures and turns. It is no boundary: all that can reach the socket may do everything anyway.

A look at the connections takes time. It fills at most a fifth of the event loop's; between looks the last one counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from daemon.shared.durations import duration
from mlx_sidecar.v1 import sidecar_pb2 as pb

METADATA_KEY = "mlx-sidecar-pid"
"""Key of the metadata by which a call names its process: digits."""
MOST_SHOWN = 32
MOST_REMEMBERED = 256
"""Processes in Stats, which are those that have their calls counted."""
PATIENCE = 4.0
"""A look at the connections is followed by a pause of so many times its own duration."""
FRESH_SECONDS = 5.0
"""Time for which a process that was connected counts as connected."""


@dataclass(frozen=True, slots=True)
class Caller:
    """
    One process.

    Attributes:
        pid: Its process id; 0 if it is not known.
        program: Name of its program; empty if it is not known.
        declared: Whether its call named it.
    """

    pid: int = 0
    program: str = ""
    declared: bool = False


UNKNOWN = Caller()
"""All processes that cannot be told apart."""


@dataclass(slots=True)
class _Record:
    """The latest call of a process, and the number of all."""

    caller: Caller
    calls: int = 0
    last: float = 0.0


class Callers:
    """
    The processes that call.

    Args:
        connected: Returns the process ids of all connections, with the names of their programs.
        clock: Seconds that never go back.
    """

    def __init__(self, connected: Callable[[], Mapping[int, str]], clock: Callable[[], float] = time.monotonic) -> None:
        self._look = connected
        self._clock = clock
        self._connected: Mapping[int, str] = {}
        self._looked, self._next_look = float("-inf"), float("-inf")
        """When the connections were looked at last, and when they may be again."""
        self._declaring: set[int] = set()
        """Connected processes that name themselves."""
        self._records: dict[int, _Record] = {}
        """By process id, the latest call last."""

    def arrived(self, metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
        """Return the process that a call came from, and count the call."""
        caller = self._caller(next((value for key, value in metadata if key == METADATA_KEY), None))
        record = self._records.pop(caller.pid, None) or _Record(caller)
        record.caller, record.calls, record.last = caller, record.calls + 1, self._clock()
        self._records[caller.pid] = record
        if len(self._records) > MOST_REMEMBERED:
            del self._records[next(iter(self._records))]
        return caller

    def figures(self, calls: Iterable[tuple[Caller, bool]]) -> list[pb.CallerStats]:
        """
        Return what Stats shows: processes with open calls first, then by their latest call.

        Args:
            calls: Each open call's process, and whether the call waits.
        """
        waiting, running = dict.fromkeys(self._records, 0), dict.fromkeys(self._records, 0)
        for caller, waits in calls:
            counts = waiting if waits else running
            counts[caller.pid] = counts.get(caller.pid, 0) + 1
        now = self._clock()
        latest_first = sorted(self._records.values(), key=lambda one: one.last, reverse=True)
        busy_first = sorted(latest_first, key=lambda one: not (waiting[one.caller.pid] or running[one.caller.pid]))
        return [
            pb.CallerStats(
                pid=one.caller.pid,
                program=one.caller.program,
                declared=one.caller.declared,
                waiting=waiting[one.caller.pid],
                running=running[one.caller.pid],
                calls=one.calls,
                last_call=duration(now - one.last),
            )
            for one in busy_first[:MOST_SHOWN]
        ]

    def _caller(self, named: str | bytes | None) -> Caller:
        if named is None:
            self._refresh(0.0)
            others = [pid for pid in self._connected if pid not in self._declaring]
            return Caller(others[0], self._connected[others[0]]) if len(others) == 1 else UNKNOWN
        pid = int(named) if isinstance(named, str) and named.isascii() and named.isdecimal() and len(named) <= 10 else 0
        self._refresh(FRESH_SECONDS if pid in self._connected else 0.0)
        if pid not in self._connected:
            return UNKNOWN
        self._declaring.add(pid)
        return Caller(pid, self._connected[pid], declared=True)

    def _refresh(self, oldest: float) -> None:
        """Look at the connections unless the last look is recent enough, or the next one is too early."""
        began = self._clock()
        if began - self._looked < oldest or began < self._next_look:
            return
        self._connected = self._look()
        self._looked = self._clock()
        self._next_look = self._looked + PATIENCE * (self._looked - began)
        self._declaring &= self._connected.keys()
