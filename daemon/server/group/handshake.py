"""
The handshake between two parents of a group, before any other byte passes: both prove that they have the shared key.

    first rank                                     another rank
        | greeting: nonce, versions, rank, ranks ----> |
        | <---- greeting: nonce, versions              |
        | proof over both ---------------------------> | wrong: the connection is closed without a word
        | <---- proof over all three, or a refusal     |

A proof is an HMAC-SHA256 with the key, over every byte before it and the refusal beside it. The side that was called
proves nothing before the caller has. Each direction of the session then has a key of its own (`shared/seals.py`).
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import os
import secrets
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from google.protobuf.message import DecodeError

from daemon import __version__
from daemon.shared.config import Config, ConfigError
from daemon.shared.group_values import address_of
from daemon.shared.seals import session_keys
from daemon.shared.small_file import read_small
from daemon.v1 import ipc_pb2 as ipc

SECONDS = 3.0
"""Time for a handshake, and before it for the connection."""
KEY_BYTES = 32

_MOST_BYTES = 4096
"""Most bytes of a frame of the handshake: the other side is not known yet."""
_LENGTH_BYTES = 4
_LOCAL_NETWORK = "; macOS may keep a service from it: see System Settings > Privacy & Security > Local Network"
"""Since macOS 15 a user's service may not call machines of the local network, until that is allowed there."""
_MOST_KEY_FILE = 1024


class GroupError(ConnectionError):
    """A rank cannot be reached, or cannot be part of this group; its text says which and why."""


@dataclass(frozen=True, slots=True)
class Session:
    """
    An authenticated connection.

    Attributes:
        connection: The socket.
        up: Key of the seals of frames to the first rank.
        down: Key of the seals of frames from the first rank.
        greeting: What the other side said about itself.
    """

    connection: socket.socket
    up: bytes
    down: bytes
    greeting: ipc.GroupGreeting


def read_key(path: Path | None) -> bytes:
    """
    Return the shared key of a file: 64 hexadecimal digits.

    Raises:
        GroupError: If there is none, it has another form, or others may read the file.
    """
    if path is None:
        raise GroupError("group_key_file is not set; make a key with: mlx-sidecar group key FILE")
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
        text = read_small(path, _MOST_KEY_FILE).decode("ascii").strip()
        key = bytes.fromhex(text)
    except OSError as error:
        raise GroupError(f"group_key_file {path} cannot be read: {error.strerror}") from None
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise GroupError(f"group_key_file {path} has no key of {2 * KEY_BYTES} hexadecimal digits")
    if mode & 0o077:
        raise GroupError(f"group_key_file {path} may be read by others; run: chmod 600 {path}")
    return key


def joining_key(config: Config) -> bytes:
    """
    Return the shared key of a machine that joins.

    Raises:
        ConfigError: If the address that it listens on or the key is missing, or the key cannot be used.
    """
    if not config.group_listen:
        raise ConfigError('group_listen is not set; set it to "IP:PORT" with an address of this machine')
    try:
        return read_key(config.group_key_file)
    except GroupError as error:
        raise ConfigError(f"{error}.") from None


def versions() -> list[str]:
    """Return the versions that all ranks must share."""
    return [f"mlx-sidecar {__version__}", f"mlx {version('mlx')}", f"mlx-lm {version('mlx-lm')}"]


async def reach(address: str, key: bytes, rank: int, ranks: int) -> Session:
    """
    Connect to a rank, prove the key to it, and have it proven.

    Raises:
        GroupError: If it cannot be reached in time, or as `call` does.
    """
    connection = socket.socket()
    connection.setblocking(False)
    with ExitStack() as held:
        held.callback(connection.close)
        with unreached():
            async with asyncio.timeout(SECONDS):
                await asyncio.get_running_loop().sock_connect(connection, address_of(address))
                session = await call(connection, key, rank, ranks)
        held.pop_all()
    return session


@contextmanager
def unreached() -> Iterator[None]:
    """Turn faults of a connection into a GroupError."""
    try:
        yield
    except TimeoutError:
        raise GroupError("does not answer") from None
    except GroupError:
        raise
    except OSError as error:
        kept = sys.platform == "darwin" and error.errno == errno.EHOSTUNREACH
        raise GroupError(f"cannot be reached: {error.strerror}{_LOCAL_NETWORK if kept else ''}") from None


async def call(connection: socket.socket, key: bytes, rank: int, ranks: int) -> Session:
    """
    Prove the key to a rank that was called, and have it proven.

    Raises:
        GroupError: If the other side has another key or other versions, or refuses.
        OSError: If the connection fails.
    """
    wire = _Wire(connection)
    nonce = secrets.token_bytes(KEY_BYTES)
    await wire.send(ipc.GroupGreeting(nonce=nonce, versions=versions(), rank=rank, ranks=ranks))
    greeting = await wire.receive()
    await wire.send(ipc.GroupGreeting(proof=_proof(key, wire.transcript)))
    before = wire.transcript
    answer = await wire.receive(closed="closed the connection: its key is another one")
    if not hmac.compare_digest(_proof(key, before, answer.refusal), answer.proof):
        raise GroupError("has another key; copy group_key_file from the first machine")
    if answer.refusal:
        raise GroupError(answer.refusal)
    return Session(connection, *session_keys(key, wire.transcript), greeting)


async def answer(connection: socket.socket, key: bytes) -> Session:
    """
    Have the key proven by a caller, and prove it.

    Raises:
        GroupError: If the caller has another key, or has other versions: that is told to it.
        OSError: If the connection fails.
    """
    wire = _Wire(connection)
    greeting = await wire.receive()
    await wire.send(ipc.GroupGreeting(nonce=secrets.token_bytes(KEY_BYTES), versions=versions()))
    expected = _proof(key, wire.transcript)
    if not hmac.compare_digest(expected, (await wire.receive()).proof):
        raise GroupError("a caller has another key")
    refusal = _differs(versions(), list(greeting.versions))
    await wire.send(ipc.GroupGreeting(proof=_proof(key, wire.transcript, refusal), refusal=refusal))
    if refusal:
        raise GroupError(refusal)
    return Session(connection, *session_keys(key, wire.transcript), greeting)


def _proof(key: bytes, transcript: bytes, refusal: str = "") -> bytes:
    """Return the proof for all frames so far, and for the refusal that comes with it: it is shown to the operator."""
    return hmac.digest(key, b"proof" + transcript + refusal.encode(), "sha256")


def _differs(own: list[str], other: list[str]) -> str:
    if own == other:
        return ""
    return f"has {', '.join(own)}, but the first machine has {', '.join(other)}; install the same versions on both"


class _Wire:
    """The frames of a handshake, and all bytes so far."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self.transcript = b""

    async def send(self, greeting: ipc.GroupGreeting) -> None:
        body = greeting.SerializeToString()
        frame = len(body).to_bytes(_LENGTH_BYTES, "big") + body
        self.transcript += frame
        await self._loop.sock_sendall(self._connection, frame)

    async def receive(self, closed: str = "closed the connection") -> ipc.GroupGreeting:
        head = await self._exactly(_LENGTH_BYTES, closed)
        length = int.from_bytes(head, "big")
        if length > _MOST_BYTES:
            raise GroupError("does not speak as a rank of a group; is that its port?")
        body = await self._exactly(length, closed)
        self.transcript += head + body
        try:
            return ipc.GroupGreeting.FromString(body)
        except DecodeError:
            raise GroupError("does not speak as a rank of a group; is that its port?") from None

    async def _exactly(self, count: int, closed: str) -> bytes:
        data = b""
        while len(data) < count:  # no byte beyond: the engine process reads on from there
            piece = await self._loop.sock_recv(self._connection, count - len(data))
            if not piece:
                raise GroupError(closed)
            data += piece
        return data
