"""A connection between two ranks: an end that reads nothing is noticed like one that sends nothing."""

from __future__ import annotations

import errno
import socket
import threading
from contextlib import suppress

import pytest

from daemon.engine.group import connection
from daemon.engine.group.connection import Connection
from daemon.shared.frames import MAX_FRAME_BYTES, FrameError
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


@pytest.mark.parametrize("length", [0, 1, 999, 1000, 1001, 1999, 2000, 2001])
def test_long_message_is_sent_in_parts(pair: Pair, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """Those before and after it pass as they are, whatever the last part has."""
    monkeypatch.setattr(connection, "_PART_BYTES", 1000)
    sent = [outcome(length), outcome(3), outcome(length), outcome(0)]
    pair[0].send_all([frame.SerializeToString() for frame in sent])
    assert [pair[1].receive() for _ in sent] == sent


def test_message_longer_than_any_frame_arrives(pair: Pair) -> None:
    """With a million pieces on its disk, a rank tells so much at a start."""
    sent = outcome(MAX_FRAME_BYTES + 1)
    thread = threading.Thread(target=pair[0].send, args=(sent,))
    thread.start()
    try:
        assert pair[1].receive() == sent
    finally:
        thread.join()


def test_message_without_an_end_is_refused(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take all memory."""
    monkeypatch.setattr(connection, "_MOST_BYTES", 1000)
    for _ in range(3):
        pair[0].send(ipc.GroupFrame(part=bytes(400)))
    with pytest.raises(FrameError, match="more than 1000 bytes"):
        pair[1].receive()


def outcome(length: int) -> ipc.GroupFrame:
    """Return a message with a value of so many bytes."""
    return ipc.GroupFrame(ready=ipc.GroupOutcome(ticket=length, value=bytes(length)))


def test_closed_connection_gives_the_rank_up(pair: Pair) -> None:
    """The reason has the other side's name."""
    pair[1].close()
    with pytest.raises(FrameError):
        pair[0].receive()
    assert pair[2] == ["a rank closed the connection"]


def test_connection_that_closed_before_its_start_gives_the_rank_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS sets no option of a socket whose other end is gone. Any other refusal of an option is a fault."""
    refused = [errno.EINVAL]

    def refuse(*_: object) -> None:
        raise OSError(refused[-1], "refused")

    monkeypatch.setattr(socket.socket, "setsockopt", refuse)
    one, two = socket.socketpair()
    two.close()
    ended: list[str] = []
    given = ipc.GroupConnection(fd=one.detach(), up=bytes(32), down=bytes(32), name="a rank")
    first = Connection(given, leads=True, ended=ended.append)
    with pytest.raises(FrameError):
        first.receive()
    assert ended == ["a rank closed the connection"]
    refused.append(errno.ENOPROTOOPT)
    with pytest.raises(OSError, match="refused"):
        connection._prepare(first._socket)
    first.close()


def test_reason_of_the_other_side_is_passed_on(pair: Pair) -> None:
    """It is what the caller of the first rank reads."""
    pair[1].say("its memory is full")
    with pytest.raises(FrameError):
        pair[0].receive()
    assert pair[2] == ["a rank ended: its memory is full"]
