"""Frames reach the other end whole and in order, from any thread, and nobody who writes waits for who reads."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from daemon.engine.frame_writer import FrameWriter

LENGTH = struct.Struct(">I")
LARGE = 3 << 20
"""More than a socket holds."""


@pytest.fixture(name="pair")
def _pair() -> Iterator[tuple[FrameWriter, socket.socket]]:
    """Return a writer whose loop runs, and the other end."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(20)
    loop = asyncio.new_event_loop()
    writer = FrameWriter(ours, loop)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield writer, theirs
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    writer.close()
    ours.close()
    theirs.close()


def frame(body: bytes) -> bytes:
    """Return a frame."""
    return LENGTH.pack(len(body)) + body


def read(sock: socket.socket) -> bytes:
    """Read a frame's body."""

    def exactly(count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            data += sock.recv(count - len(data))
        return bytes(data)

    (length,) = LENGTH.unpack(exactly(LENGTH.size))
    return exactly(length)


def test_frame_is_written_at_once_if_possible(pair: tuple[FrameWriter, socket.socket]) -> None:
    """By the thread that writes: there is nothing to wait for."""
    writer, reader = pair
    writer.write(frame(b"one") + frame(b"two"))
    reader.setblocking(False)
    assert reader.recv(1000) == frame(b"one") + frame(b"two")
    assert writer.wait(0)


def test_deferred_frames_follow_in_order(pair: tuple[FrameWriter, socket.socket]) -> None:
    writer, reader = pair
    bodies = [bytes([number]) * LARGE for number in range(3)] + [b"last"]
    for body in bodies:
        writer.write(frame(body))
    assert not writer.wait(0)
    assert [read(reader) for _ in bodies] == bodies
    assert writer.wait(20)
    writer.write(frame(b"again"))
    assert read(reader) == b"again"


def test_frames_of_several_threads_stay_whole(pair: tuple[FrameWriter, socket.socket]) -> None:
    """Though the socket is full most of the time."""
    writer, reader = pair
    size, count = 50_000, 40

    def write(letter: int) -> None:
        for number in range(count):
            writer.write(frame(bytes([letter, number]) * size))

    threads = [threading.Thread(target=write, args=[letter]) for letter in range(4)]
    for thread in threads:
        thread.start()
    came: dict[int, list[int]] = {letter: [] for letter in range(4)}
    for _ in range(4 * count):
        body = read(reader)
        assert body == body[:2] * size
        came[body[0]].append(body[1])
    for thread in threads:
        thread.join()
    assert came == {letter: list(range(count)) for letter in range(4)}


def test_frames_for_a_closed_socket_are_dropped(pair: tuple[FrameWriter, socket.socket]) -> None:
    """Whether it was waiting or comes afterwards."""
    writer, reader = pair
    writer.write(frame(bytes(LARGE)))
    assert not writer.wait(0)
    reader.close()
    assert writer.wait(20)
    writer.write(frame(b"more"))
    assert writer.wait(0)


def test_frame_writer_is_behind_until_all_is_read(pair: tuple[FrameWriter, socket.socket]) -> None:
    """Who writes figures again and again leaves them out meanwhile."""
    writer, theirs = pair
    assert not writer.behind
    writer.write(frame(b"x" * LARGE))
    assert writer.behind
    assert len(read(theirs)) == LARGE
    assert writer.wait(20)
    assert not writer.behind
