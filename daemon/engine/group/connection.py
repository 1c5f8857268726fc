"""The connection between two ranks of a group: sealed frames over a socket, and a watch for an end that is silent."""

from __future__ import annotations

import errno
import select
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from google.protobuf.message import DecodeError

from daemon.shared import clocks
from daemon.shared.frames import MAX_FRAME_BYTES, FrameError
from daemon.shared.observed_time import SeenTime
from daemon.shared.seals import Opener, Seal
from daemon.v1 import ipc_pb2 as ipc

BEAT_SECONDS = 1.0
SILENT_SECONDS = 7.0
"""After so many seconds without a frame, the other side is taken to be gone. It sends one each second."""
START_SECONDS = 100.0
"""The same while a rank starts: libraries are imported, and MLX's ring connects, while no other thread runs."""
_MOST_BETWEEN = 2.0
"""Seconds that count between two looks at the clock: a process that was stopped itself blames no other."""
_SAY_SECONDS = 0.5
_PART_BYTES = MAX_FRAME_BYTES // 2
"""A longer message is sent in parts: at a start, a rank names each piece on its disk."""
_MOST_BYTES = 1 << 30
"""Most bytes of a message in parts: ten million pieces."""
_READ_BYTES = 1 << 16
_USER_TIMEOUT_MS = int(1000 * SILENT_SECONDS)
_MAC_DROP_SECONDS = 0x80
"""TCP_RXT_CONNDROPTIME of macOS, in seconds."""

Ended = Callable[[str], None]
"""Takes the reason for which the other side is gone; called on any thread."""


class Connection:
    """
    One connection. Any thread may send; a single thread receives.

    Args:
        given: The descriptor and the keys.
        leads: Whether this is the side of the first rank.
        ended: Called when the other side is gone; must end the process.

    Attributes:
        name: The other side, for texts.
        place: How far the other side had got on the tape at its last beat.
        own_place: Returns how far this side has got; any thread.
    """

    def __init__(self, given: ipc.GroupConnection, *, leads: bool, ended: Ended) -> None:
        self.name = given.name
        self.place = 0
        self.own_place: Callable[[], int] = int
        self._socket = socket.socket(fileno=given.fd)
        self._socket.setblocking(True)
        _prepare(self._socket)
        self._out = Seal(given.down if leads else given.up)
        self._in = Opener(given.up if leads else given.down)
        self._lock = threading.Lock()
        self._ended = ended
        self._arrived: deque[bytes] = deque()
        self._parts = bytearray()
        """The beginning of a message of which more parts come."""
        self._seen = SeenTime(clocks.awake, _MOST_BETWEEN)
        self._waits_since: float | None = None
        """Since when the receiver waits for bytes; None while it does something else."""
        self._over = threading.Event()
        self._patience = START_SECONDS

    def settled(self) -> None:
        """Expect a sign of life each second from now on: both sides have started."""
        self._patience = SILENT_SECONDS

    def start(self) -> None:
        """Begin to show that this side is alive, and to watch the other one."""
        threading.Thread(target=self._watch, name="group-beat", daemon=True).start()

    def send(self, frame: ipc.GroupFrame) -> None:
        """Send a frame."""
        self.send_all([frame.SerializeToString()])

    def send_all(self, bodies: Sequence[bytes]) -> None:
        """Send several messages at once, each of any length up to 1 GiB."""
        try:
            with self._lock:
                frames = [self._out.frame(part) for body in bodies for part in _in_parts(body)]
                self._socket.sendall(b"".join(frames))
        except OSError:
            self._gone("closed the connection")

    def receive(self) -> ipc.GroupFrame:
        """
        Wait for the next frame that is no beat, and return it.

        Raises:
            FrameError: If the other side is gone, or sent a frame that is none.
        """
        while True:
            frame = self._next()
            if frame.HasField("end"):
                self._gone(f"ended: {frame.end}")
                raise FrameError("the other side has ended")
            if not frame.HasField("beat"):
                return frame
            self.place = frame.beat

    def say(self, why: str) -> None:
        """Tell the other side, if it can still be told, why this one ends."""
        self._over.set()
        body = ipc.GroupFrame(end=why).SerializeToString()
        with suppress(OSError):
            self._socket.settimeout(_SAY_SECONDS)
            if self._lock.acquire(timeout=_SAY_SECONDS):
                self._socket.sendall(self._out.frame(body))

    def finish(self) -> None:
        """Ignore from now on that the other side ends."""
        self._over.set()

    def close(self) -> None:
        """Close the connection; the other side notices."""
        self._over.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def broke(self, error: FrameError) -> None:
        """Take the other side for gone, because it sent what is no frame."""
        self._gone(f"cannot be understood: {error}")

    def _next(self) -> ipc.GroupFrame:
        while True:
            while not self._arrived:
                self._read()
            frame = _decoded(self._arrived.popleft())
            kind = frame.WhichOneof("body")
            if kind not in ("part", "last_part"):
                return frame
            self._parts += frame.part or frame.last_part
            if len(self._parts) > _MOST_BYTES:
                raise FrameError(f"a message of more than {_MOST_BYTES} bytes came")
            if kind == "last_part":
                body, self._parts = bytes(self._parts), bytearray()
                return _decoded(body)

    def _read(self) -> None:
        self._waits_since = self._seen()
        try:
            data = self._socket.recv(_READ_BYTES)
        except OSError:
            data = b""
        self._waits_since = None
        if not data:
            self._gone("closed the connection")
            raise FrameError("the connection is closed")
        self._arrived += self._in.add(data)

    def _watch(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            self._beat()
            waits_since, now = self._waits_since, self._seen()
            if waits_since is not None and now - waits_since > self._patience:
                self._gone(f"has sent nothing for {self._patience:.0f} s")

    def _beat(self) -> None:
        """Show that this side is alive. A frame that waits until the other side reads must not hold up the watch."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            look = select.poll()
            look.register(self._socket, select.POLLOUT)
            if not look.poll(0):
                return
            self._socket.sendall(self._out.frame(ipc.GroupFrame(beat=self.own_place()).SerializeToString()))
        except (OSError, ValueError):
            pass
        else:
            return
        finally:
            self._lock.release()
        self._gone("closed the connection")

    def _gone(self, why: str) -> None:
        if not self._over.is_set():
            self._over.set()
            self._ended(f"{self.name} {why}")


def _decoded(body: bytes) -> ipc.GroupFrame:
    try:
        return ipc.GroupFrame.FromString(body)
    except DecodeError as error:
        raise FrameError("a frame holds no GroupFrame") from error


def _in_parts(body: bytes) -> Iterator[bytes]:
    """Yield the bodies of the frames that a message is sent in."""
    if len(body) <= _PART_BYTES:
        yield body
        return
    last = (len(body) - 1) // _PART_BYTES * _PART_BYTES
    for start in range(0, last, _PART_BYTES):
        yield ipc.GroupFrame(part=body[start : start + _PART_BYTES]).SerializeToString()
    yield ipc.GroupFrame(last_part=body[last:]).SerializeToString()


def _prepare(connection: socket.socket) -> None:
    """Send small frames at once, and give up on a machine that is cut off."""
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if sys.platform == "darwin":
            connection.setsockopt(socket.IPPROTO_TCP, _MAC_DROP_SECONDS, int(SILENT_SECONDS))
        else:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
    except OSError as error:
        if error.errno != errno.EINVAL:  # macOS: the other side is gone, which the next read tells with its name
            raise
