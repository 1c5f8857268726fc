"""Measures how long two ranks take to agree to a turn, without a model: the rest of a turn is that of any engine."""

from __future__ import annotations

import multiprocessing
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from statistics import median

from daemon.engine.group.answers import FirstAnswers, RankAnswers
from daemon.engine.group.connection import Connection
from daemon.engine.group.digest import DigestingWire, NoWire
from daemon.engine.group.lockstep import Lockstep
from daemon.engine.group.tape import Player, Recorder
from daemon.engine.group.turns import Agreement, FirstRank, HeldWire, follow, listen
from daemon.shared.frames import FrameError
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb

READINGS = 20
"""Readings of a decode turn, about."""
_WARM_UP = 200


class _Turns:
    """
    An engine whose turns read a clock and send a token, and do nothing else.

    Args:
        read: Its clock.
        wire: Takes its tokens.
    """

    pause = 1.0
    busy = True

    def __init__(self, read: Callable[[], float], wire: DigestingWire) -> None:
        self._read = read
        self._wire = wire

    def handle(self, command: ipc.Command) -> None:
        """Do nothing: there are no calls."""

    def step(self) -> None:
        """Do a turn."""
        for _ in range(READINGS):
            self._read()
        delta = pb.GenerateResponse(delta=pb.Delta(token_ids=[7]))
        self._wire.send(ipc.Event(call_id=1, generate=delta))
        self._wire.flush()


def agreement_seconds(turns: int) -> float:
    """Return the median time from the begin of a turn until two processes on loopback have agreed to it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        own = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    process = multiprocessing.get_context("spawn").Process(target=_rank, args=(other,), daemon=True)
    process.start()
    other.close()
    connection = _connection(own, leads=True)
    tape, agreement = Recorder([connection]), Agreement([connection], _failed)
    wire = DigestingWire(HeldWire(NoWire(), agreement), _failed)
    answers = FirstAnswers([connection], _failed, _failed)
    lockstep = Lockstep(lambda: tape.place, [connection], time.monotonic, _failed)
    tape.start()
    threading.Thread(target=listen, args=(1, connection, answers, agreement, lockstep), daemon=True).start()
    rank = FirstRank(_Turns(tape.reader(time.monotonic), wire), tape, answers, agreement, wire)
    taken = [_timed(rank, agreement) for _ in range(_WARM_UP + turns)]
    connection.close()
    process.join()
    return median(taken[_WARM_UP:])


def _timed(rank: FirstRank, agreement: Agreement) -> float:
    began = time.perf_counter()
    rank.step()
    agreement.wait(0)
    return time.perf_counter() - began


def _rank(connected: socket.socket) -> None:
    """Follow the first rank until it closes the connection; runs in a process of its own."""
    first = _connection(connected, leads=False)
    tape = Player(first)
    wire = DigestingWire(NoWire(), _failed)
    with suppress(FrameError):  # the end
        follow(_Turns(tape.reader(time.monotonic), wire), tape, first, RankAnswers(_failed), wire)


def _connection(connected: socket.socket, *, leads: bool) -> Connection:
    given = ipc.GroupConnection(fd=connected.detach(), up=bytes(32), down=bytes(32), name="a rank")
    return Connection(given, leads=leads, ended=lambda _: None)


def _failed(what: object) -> None:
    raise AssertionError(what)
