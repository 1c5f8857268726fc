"""Plain HTTP over a socket, for requests that no SDK sends."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.http.conftest import Door

WAIT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: its status, headers with lower-case names, and body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@contextmanager
def connected(door: Door) -> Iterator[socket.socket]:
    """Return a connection to a door."""
    with socket.socket(socket.AF_UNIX if door.unix else socket.AF_INET) as connection:
        connection.settimeout(WAIT_SECONDS)
        host, _, port = door.address.rpartition(":")
        connection.connect(door.unix or (host, int(port)))
        yield connection


def request(
    door: Door,
    method: str,
    path: str,
    body: bytes | Mapping[str, Any] = b"",
    headers: Mapping[str, str | None] | None = None,
) -> bytes:
    """Return the bytes of a request that the door lets in; `headers` replace usual ones, None removes one."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    usual = {
        "host": "localhost",
        "authorization": f"Bearer {door.token}",
        "content-length": str(len(content)) if content else None,
        "connection": "close",
    }
    lines = [f"{name}: {value}\r\n" for name, value in {**usual, **(headers or {})}.items() if value is not None]
    return f"{method} {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode() + content


def received(connection: socket.socket) -> bytes:
    """Return what comes until the end of a connection."""
    content = b""
    while True:
        try:
            part = connection.recv(65536)
        except ConnectionResetError:
            return content
        if not part:
            return content
        content += part


def answer(content: bytes) -> Answer:
    """Parse a response."""
    head, _, body = content.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = _joined(body)
    return Answer(int(first.split()[1]), headers, body)


def _joined(chunked: bytes) -> bytes:
    content = b""
    while chunked:
        size, _, rest = chunked.partition(b"\r\n")
        length = int(size or b"0", 16)
        content += rest[:length]
        chunked = rest[length + 2 :]
    return content


def next_answer(connection: socket.socket) -> Answer:
    """Read one response with a length; the connection stays open."""
    content = b""
    while b"\r\n\r\n" not in content or len(answer(content).body) < int(answer(content).headers["content-length"]):
        part = connection.recv(65536)
        assert part, "the connection ended"
        content += part
    return answer(content)


def call(door: Door, method: str, path: str, body: bytes | Mapping[str, Any] = b"", **headers: str | None) -> Answer:
    """Send a request on a connection of its own and return the response; "_" in a header's name is "-"."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with connected(door) as connection:
        connection.sendall(request(door, method, path, body, named))
        return answer(received(connection))
