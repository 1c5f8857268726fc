"""Sends calls as raw bytes that no client library would send."""

from __future__ import annotations

import socket
import struct
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.support.daemons import RunningDaemon

SERVICE = "/mlx_sidecar.v1.SidecarService/"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\x04\0\0\0\0\0"
PATIENCE = 60.0


class Refusal:
    """
    How a call ended.

    Attributes:
        code: Its status; OK if it was answered.
        reason: That of its ErrorInfo; empty without one.
        field: The field that its BadRequest names, if any.
        retry: Whether it has a RetryInfo.
    """

    def __init__(self, error: grpc.RpcError | None) -> None:
        self.code = error.code() if error else grpc.StatusCode.OK
        self.message = error.details() if error else ""
        self.reason = self.field = ""
        self.retry = False
        rich = rpc_status.from_call(error) if error else None
        for detail in rich.details if rich else []:
            info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
            if detail.Unpack(info):
                self.reason = info.reason
            elif detail.Unpack(request):
                self.field = request.field_violations[0].field
            else:
                self.retry |= detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR)

    @property
    def code_and_field(self) -> tuple[str, str]:
        """The code and the field of the error."""
        return self.code.name, self.field


def call(daemon: RunningDaemon, method: str, data: bytes, **options: Any) -> Refusal:
    """Send bytes as a request of a streaming method, read the answer to its end, and tell how it ended."""
    path = method if method.startswith("/") else SERVICE + method
    with grpc.insecure_channel(f"unix:{daemon.socket}", options=[("grpc.max_send_message_length", -1)]) as channel:
        multi: Any = channel.unary_stream(path)
        try:
            list(multi(data, **{"timeout": PATIENCE, **options}))
        except grpc.RpcError as error:
            return Refusal(error)
        return Refusal(None)


def connect(daemon: RunningDaemon) -> socket.socket:
    """Return a bare connection."""
    raw = socket.socket(socket.AF_UNIX)
    raw.settimeout(PATIENCE)
    raw.connect(str(daemon.socket))
    return raw


def until_closed(raw: socket.socket) -> bytes:
    """Return everything that comes until the daemon closes the connection."""
    received = b""
    with raw:
        try:
            while part := raw.recv(1 << 16):
                received += part
        except ConnectionError:
            pass
    return received


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    """Return an HTTP/2 frame."""
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body


def frames(received: bytes) -> list[tuple[int, int]]:
    """Return kind and stream of each whole HTTP/2 frame in some bytes."""
    found = []
    while len(received) >= 9 and len(received) >= (end := 9 + int.from_bytes(received[:3], "big")):
        found.append((received[3], int.from_bytes(received[5:9], "big")))
        received = received[end:]
    return found


def opened(stream: int, path: str) -> bytes:
    """Return the frame that opens a call."""

    def header(name: str, value: str) -> bytes:
        return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()

    headers = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x", "te": "trailers"}
    block = b"".join(header(name, value) for name, value in headers.items())
    block += header("content-type", "application/grpc")
    return frame(1, 4, stream, block)


def opened_and_reset(stream: int, path: str) -> bytes:
    """Return the frames that open a call and take it back at once."""
    return opened(stream, path) + frame(3, 0, stream, struct.pack(">I", 8))
