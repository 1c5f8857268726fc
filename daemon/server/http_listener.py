"""The socket that HTTP is served on: a Unix socket beside the daemon's own, or a port of the loopback address."""

from __future__ import annotations

import socket as sockets
from pathlib import Path

from daemon.server.singleton import InstanceLock, PublishedSocket, private_umask
from daemon.server.socket_path import prepare_socket_path
from daemon.shared.ports import refuse_taken

UNIX_NAME = "http.sock"
LOOPBACK = "127.0.0.1"
BACKLOG = 128
"""Connections that wait until they are accepted."""


class Listener:
    """
    A socket that listens, and what has to be undone at its end.

    Args:
        socket: The socket.
        address: What clients connect to: a path, or "127.0.0.1:PORT".
        published: The name of a Unix socket.
        lock: The lock of that name.
    """

    def __init__(
        self,
        socket: sockets.socket,
        address: str,
        published: PublishedSocket | None = None,
        lock: InstanceLock | None = None,
    ) -> None:
        self.socket = socket
        self.address = address
        self._published = published
        self._lock = lock

    @property
    def lost(self) -> bool:
        """Whether the name of its socket was removed, or leads elsewhere: no client reaches it any more."""
        return self._published is not None and not self._published.is_ours()

    def close(self) -> None:
        """Stop to listen, and remove the socket's name. Harmless twice."""
        if self._published is not None:
            self._published.remove()
        self.socket.close()
        if self._lock is not None:
            self._lock.release()


def default_path(socket: Path) -> Path:
    """Return the path of the Unix socket for HTTP that belongs to a daemon's socket."""
    return socket.with_name(UNIX_NAME)


def listen(where: str, socket: Path) -> Listener:
    """
    Listen where `http_listen` says.

    Args:
        where: "unix" or "127.0.0.1:PORT".
        socket: The daemon's socket.

    Raises:
        SocketPathError, AlreadyRunning: As `listen_at` does.
        OSError: If the port is in use.
    """
    return listen_at(default_path(socket)) if where == "unix" else listen_on(int(where.rpartition(":")[2]))


def listen_at(path: Path) -> Listener:
    """
    Listen at a path. The rules are those of the daemon's own socket: mode 0600, in a private directory, one server.

    Raises:
        SocketPathError: If the path or its directory cannot be used.
        AlreadyRunning: If another process serves HTTP there.
        OSError: If the socket cannot be bound.
    """
    prepare_socket_path(path)
    lock = InstanceLock.acquire(path, 0.0)
    socket = sockets.socket(sockets.AF_UNIX)
    try:
        published = PublishedSocket(path)
        with private_umask():
            socket.bind(str(published.private))
        socket.listen(BACKLOG)
        published.publish()
    except BaseException:
        socket.close()
        lock.release()
        raise
    return Listener(socket, str(path), published, lock)


def listen_on(port: int) -> Listener:
    """
    Listen on a port of the loopback address; 0 takes a free one.

    Raises:
        OSError: If the port is in use.
    """
    refuse_taken(LOOPBACK, port)
    socket = sockets.socket(sockets.AF_INET)
    try:
        socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
        socket.bind((LOOPBACK, port))
        socket.listen(BACKLOG)
    except BaseException:
        socket.close()
        raise
    return Listener(socket, f"{LOOPBACK}:{socket.getsockname()[1]}")
