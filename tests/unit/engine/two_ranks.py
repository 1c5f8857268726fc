"""Two ranks of a group in one process: the first on the test's thread, and another on a thread of its own."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from daemon.engine.group.answers import FirstAnswers, RankAnswers
from daemon.engine.group.connection import Connection
from daemon.engine.group.digest import DigestingWire, NoWire
from daemon.engine.group.lockstep import Lockstep
from daemon.engine.group.tape import Diverged, Player, Recorder
from daemon.engine.group.turns import Agreement, FirstRank, HeldWire, follow, listen
from daemon.shared.frames import FrameError
from daemon.v1 import ipc_pb2 as ipc

Pair = tuple[Connection, Connection, list[str]]


@contextmanager
def connected() -> Iterator[Pair]:
    """Yield the ends of a connection between two ranks, and the reasons for which either was given up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        two, _ = listener.accept()
    up, down = os.urandom(32), os.urandom(32)
    ended: list[str] = []
    given = [ipc.GroupConnection(fd=end.detach(), up=up, down=down, name="a rank") for end in (one, two)]
    ends = (
        Connection(given[0], leads=True, ended=ended.append),
        Connection(given[1], leads=False, ended=ended.append),
    )
    try:
        yield (*ends, ended)
    finally:
        for end in ends:
            end.close()


class Line(NoWire):
    """A wire that keeps what is sent in a list."""

    def __init__(self, sent: list[ipc.Event]) -> None:
        self._sent = sent

    def send(self, event: ipc.Event) -> None:
        """Keep an event."""
        self._sent.append(event)


class Deciding:
    """
    An engine that decides by a clock.

    Args:
        read: Its clock.
        times: How often it reads it in a turn.
    """

    def __init__(self, read: object, wire: DigestingWire, times: int = 1) -> None:
        self.read = read
        self.times = times
        self.decided: list[object] = []
        self.pause = 1.0
        self.busy = True
        self._wire = wire

    def handle(self, command: ipc.Command) -> None:
        """Decide by a command."""
        self.decided.append(command.call_id)

    def step(self) -> None:
        """Decide by the clock, and send what was decided."""
        for _ in range(self.times):
            value = self.read()  # type: ignore[operator]
            self.decided.append(value)
        failure = ipc.Failure(reason=str(self.decided[-1]))
        self._wire.send(ipc.Event(call_id=1, failure=failure))
        self._wire.flush()


class Two:
    """Two ranks: the first on the test's thread, the other on a thread of its own."""

    def __init__(self, pair: Pair, times: int = 1) -> None:
        first, other, self.ended = pair
        self.ticks = iter(range(100))
        self.settled: list[ipc.GroupOutcome] = []
        self.tape = Recorder([first])
        self.answers = FirstAnswers([first], self.settled.append, self.ended.append)
        self.agreement = agreement = Agreement([first], self.ended.append)
        self.sent: list[ipc.Event] = []
        wire = DigestingWire(HeldWire(Line(self.sent), agreement), self.ended.append)
        self.engine = Deciding(self.tape.reader(lambda: float(next(self.ticks))), wire)
        self.rank = FirstRank(self.engine, self.tape, self.answers, agreement, wire)
        self.other_answers = RankAnswers(lambda outcome: other.send(ipc.GroupFrame(ready=outcome)))
        self.failed: list[Exception] = []
        self.ready = threading.Event()
        self.lockstep = Lockstep(lambda: self.tape.place, [first], time.monotonic, self.ended.append)
        threading.Thread(target=listen, args=(1, first, self.answers, agreement, self.lockstep), daemon=True).start()
        self.thread = threading.Thread(target=self._follow, args=(other, times), daemon=True)
        self.thread.start()
        self.ready.wait()

    def _follow(self, other: Connection, times: int) -> None:
        tape = self.other_tape = Player(other)
        wire = DigestingWire(NoWire(), self.ended.append)
        self.other = Deciding(tape.reader(lambda: -1.0), wire, times)
        self.ready.set()
        try:
            follow(self.other, tape, other, self.other_answers, wire)
        except (Diverged, FrameError) as error:
            self.failed.append(error)
