"""A connection between two ranks: an end that reads nothing is noticed like one that sends nothing."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

import pytest

from daemon.engine.group import connection
from daemon.engine.group.connection import Connection
from daemon.shared.frames import FrameError
from daemon.v1 import ipc_pb2 as ipc
from tests.support.daemons import wait_until
from tests.unit.engine.two_ranks import Pair


def test_rank_that_reads_nothing_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that waits for it, such as a long prompt, must not hold up the watch. Not each system ends the wait."""
    monkeypatch.setattr(connection, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(connection, "SILENT_SECONDS", 0.1)
    monkeypatch.setattr(connection, "_prepare", lambda _: None)
    one, two = socket.socketpair()
    ended: list[str] = []
    given = ipc.GroupConnection(fd=one.detach(), up=bytes(32), down=bytes(32), name="a rank")
    first = Connection(given, leads=True, ended=ended.append)
    first.settled()

    def receive() -> None:
        with suppress(FrameError):
            first.receive()

    threads = [
        threading.Thread(target=receive),
        threading.Thread(target=lambda: first.send_all([bytes(1 << 20)] * 8)),
    ]
    for thread in threads:
        thread.start()
    wait_until(first._lock.locked, "a frame is being sent")
    first.start()
    try:
        wait_until(lambda: bool(ended), "the rank is given up")
    finally:
        two.close()
        for thread in threads:
            thread.join()
        first.close()
    assert ended == ["a rank has sent nothing for 0 s"]


def test_rank_that_is_cut_off_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while nothing is received, because the pass of all ranks is waited for."""
    monkeypatch.setattr(connection, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(connection, "_prepare", lambda _: None)
    one, two = socket.socketpair()
    two.close()
    ended: list[str] = []
    given = ipc.GroupConnection(fd=one.detach(), up=bytes(32), down=bytes(32), name="a rank")
    first = Connection(given, leads=False, ended=ended.append)
    first.start()
    wait_until(lambda: bool(ended), "the rank is given up")
    first.close()
    assert ended == ["a rank closed the connection"]


def test_beat_tells_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The receiver of the other side notes it."""
    monkeypatch.setattr(connection, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(connection, "_prepare", lambda _: None)
    given = [ipc.GroupConnection(fd=end.detach(), up=bytes(32), down=bytes(32)) for end in socket.socketpair()]
    first, other = (Connection(one, leads=leads, ended=list) for one, leads in zip(given, (True, False), strict=True))  # type: ignore[arg-type]
    other.own_place = lambda: 7
    other.start()

    def receive() -> None:
        with suppress(FrameError):
            first.receive()

    thread = threading.Thread(target=receive)
    thread.start()
    wait_until(lambda: first.place == 7, "a beat came")
    other.close()
    thread.join()
    first.close()


def test_closed_connection_gives_the_rank_up(pair: Pair) -> None:
    """The reason has the other side's name."""
    pair[1].close()
    with pytest.raises(FrameError):
        pair[0].receive()
    assert pair[2] == ["a rank closed the connection"]


def test_reason_of_the_other_side_is_passed_on(pair: Pair) -> None:
    """It is what the caller of the first rank reads."""
    pair[1].say("its memory is full")
    with pytest.raises(FrameError):
        pair[0].receive()
    assert pair[2] == ["a rank ended: its memory is full"]
