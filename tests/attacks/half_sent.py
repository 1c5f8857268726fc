"""Requests that stay halfway: as many bytes of them as the daemon takes are sent, and never the last one."""

from __future__ import annotations

import socket
import struct
import threading
from types import TracebackType

from tests.faults.raw import PREFACE, SETTINGS, connect, frame
from tests.support.daemons import RunningDaemon

_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_INITIAL_WINDOW = 4
_FRAME = 16_384
_STREAM = 1


class HalfSent:
    """
    One call on a connection of its own. A thread sends while the daemon's windows are open, and reads what it says.

    Args:
        daemon: Where it goes.
        path: Full name of the RPC.
        declared: Bytes that the request claims to have; one of them is never sent.

    Attributes:
        sent: Bytes of the request that were sent.
        ended: Set when the daemon has ended the call or the connection.
        answer: Header frames that the daemon sent, as they came.
    """

    def __init__(self, daemon: RunningDaemon, path: str, declared: int) -> None:
        self.sent = 0
        self.ended = threading.Event()
        self.answer = b""
        self._left = memoryview(b"\0" + struct.pack(">I", declared) + b"\x0a" + b"a" * (declared - 2))
        self._connection_window = self._stream_window = 65_535
        self._initial = 65_535
        self._raw = connect(daemon)
        self._raw.settimeout(None)
        self._raw.sendall(PREFACE + SETTINGS + frame(_HEADERS, 4, _STREAM, _header_block(path)))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        """Hang up."""
        self._raw.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._raw.close()

    def __enter__(self) -> HalfSent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        received = b""
        try:
            while part := self._raw.recv(1 << 16):
                received += part
                while len(received) >= 9 and len(received) >= (end := 9 + int.from_bytes(received[:3], "big")):
                    stream = int.from_bytes(received[5:9], "big")
                    self._take(received[3], received[4], stream, received[9:end])
                    received = received[end:]
                self._send()
        except OSError:
            pass
        self.ended.set()

    def _take(self, kind: int, flags: int, stream: int, body: bytes) -> None:
        if kind == _WINDOW and stream:
            self._stream_window += int.from_bytes(body, "big")
        elif kind == _WINDOW:
            self._connection_window += int.from_bytes(body, "big")
        elif kind == _SETTINGS and not flags & 1:
            for at in range(0, len(body), 6):
                name, value = struct.unpack(">HI", body[at : at + 6])
                if name == _INITIAL_WINDOW:
                    self._stream_window += value - self._initial
                    self._initial = value
            self._raw.sendall(frame(_SETTINGS, 1, 0, b""))
        elif kind == _PING and not flags & 1:
            self._raw.sendall(frame(_PING, 1, 0, body))
        elif kind == _HEADERS:
            self.answer += body
        if kind in (_RESET, _GOAWAY):
            self.ended.set()

    def _send(self) -> None:
        while self._left and not self.ended.is_set():
            size = min(_FRAME, self._connection_window, self._stream_window, len(self._left))
            if size <= 0:
                return
            self._connection_window -= size
            self._stream_window -= size
            self._raw.sendall(frame(_DATA, 0, _STREAM, bytes(self._left[:size])))
            self._left = self._left[size:]
            self.sent += size


def _header_block(path: str) -> bytes:
    headers = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x", "te": "trailers"}
    headers["content-type"] = "application/grpc"
    return b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in headers.items()
    )
