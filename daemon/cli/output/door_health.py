"""The health of the daemon's HTTP door, for `stats`: how many requests prefix hygiene changed."""

from __future__ import annotations

import json
import socket
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_sidecar import HttpStats

SECONDS = 2.0
"""Longest wait for the door; without its answer the rest is shown."""


class _Connection(HTTPConnection):
    """A connection to an address as `HttpStats` has it: a path, or "127.0.0.1:PORT"."""

    def __init__(self, address: str) -> None:
        host, _, port = ("localhost", "", "80") if address.startswith("/") else address.partition(":")
        super().__init__(host, int(port), timeout=SECONDS)
        self._path = address if address.startswith("/") else ""

    def connect(self) -> None:
        """Connect, to the Unix socket if it is one."""
        if not self._path:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(SECONDS)
        self.sock.connect(self._path)


def steadied(door: HttpStats, state_dir: Path) -> dict[str, int]:
    """Return how many requests each rule of prefix hygiene changed; empty if none, or if the door does not tell."""
    from daemon.http.token import FILE_NAME, TokenError, read_token

    on_port = not door.address.startswith("/")
    if door.state != "serving" or (on_port and not (state_dir / FILE_NAME).exists()):
        return {}
    try:
        headers = {"Authorization": f"Bearer {read_token(state_dir)}"} if on_port else {}
        connection = _Connection(door.address)
        try:
            connection.request("GET", "/health", headers=headers)
            told = json.loads(connection.getresponse().read(1 << 16))
        finally:
            connection.close()
        return {str(rule): int(count) for rule, count in told.get("steadied", {}).items()}
    except (OSError, ValueError, AttributeError, TypeError, HTTPException, TokenError):
        return {}
