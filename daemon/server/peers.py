"""
The processes at the other end of the daemon's socket, as the kernel knows them, and the names of their programs.

gRPC accepts the connections, and tells neither a handler nor an interceptor which of them a call came by: the peer of
each call is "unix:". The accepted sockets are descriptors of this process, though, and the kernel knows the process at
the other end of each. So the set of connected processes is certain. `callers.py` finds which of them made a call.
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

MAX_NAME = 64
"""Characters of a program's name."""
_UNUSUAL = re.compile(r"[^\w.+()@-]")
"""Characters that a name loses, spaces too: a process can give itself any name, and names go into logs."""


class System(Protocol):
    """What only the operating system knows."""

    descriptors: str
    """Directory that lists the descriptors of this process."""

    def peer(self, connection: socket.socket) -> int:
        """Return the id of the process that connected. Raises OSError if it is not known."""

    def program(self, pid: int) -> str:
        """Return the name of a process's program. Raises OSError if there is no such process."""


class Linux:
    """Linux: SO_PEERCRED, and /proc/PID/comm, which for a script is the script's name."""

    descriptors = "/proc/self/fd"

    def peer(self, connection: socket.socket) -> int:
        """See `System`. A process of another PID namespace is 0."""
        option: int = socket.SO_PEERCRED  # type: ignore[attr-defined, unused-ignore]
        pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i")))
        return int(pid)

    def program(self, pid: int) -> str:
        """See `System`."""
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()


class Darwin:
    """
    macOS: LOCAL_PEERPID, and proc_pidpath of libproc, which ends with the program's name.

    Args:
        libproc: The library; None for the system's.
    """

    descriptors = "/dev/fd"
    _SOL_LOCAL, _LOCAL_PEERPID = 0, 2
    _MAX_PATH = 4096

    def __init__(self, libproc: Any = None) -> None:
        self._libproc = libproc

    def peer(self, connection: socket.socket) -> int:
        """See `System`."""
        (pid,) = struct.unpack("i", connection.getsockopt(self._SOL_LOCAL, self._LOCAL_PEERPID, struct.calcsize("i")))
        return int(pid)

    def program(self, pid: int) -> str:
        """See `System`."""
        if self._libproc is None:
            self._libproc = ctypes.CDLL("/usr/lib/libproc.dylib", use_errno=True)
        path = ctypes.create_string_buffer(self._MAX_PATH)
        if self._libproc.proc_pidpath(pid, path, self._MAX_PATH) <= 0:
            raise ProcessLookupError(pid)
        return os.path.basename(os.fsdecode(path.value))


def this_system() -> System:
    """Return the operating system's knowledge."""
    return Darwin() if sys.platform == "darwin" else Linux()


class Peers:
    """
    The processes that are connected to one socket.

    Args:
        name: The name that the socket was bound to; accepted sockets have it, too, also after a rename.
        system: The operating system.
    """

    def __init__(self, name: Path, system: System) -> None:
        self._name = os.fsencode(name)
        self._system = system

    def connected(self) -> dict[int, str]:
        """Return the connected processes with the names of their programs. Takes some 10 µs for each connection."""
        try:
            numbers = [int(number) for number in os.listdir(self._system.descriptors) if number.isdecimal()]
        except OSError:  # no descriptor is left
            return {}
        pids = {pid for number in numbers if (pid := self._peer(number)) > 0}
        return {pid: name for pid in pids if (name := self._program(pid))}

    def _peer(self, number: int) -> int:
        """Return the process at the other end of a descriptor; 0 if it is no connection to the socket."""
        try:
            # `getsockname` shows what it really is; without a given family the constructor asks the kernel thrice.
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, number)
        except OSError:
            return 0
        try:
            if _bytes(connection.getsockname()) != self._name:
                return 0
            connection.getpeername()  # the listening socket has none; macOS never answers SO_ACCEPTCONN
            return self._system.peer(connection)
        except OSError:
            return 0  # it is the listening socket, or gRPC has closed it meanwhile
        finally:
            connection.detach()  # it is gRPC's, and stays open

    def _program(self, pid: int) -> str:
        with suppress(OSError):
            return _UNUSUAL.sub("_", self._system.program(pid))[:MAX_NAME].strip()
        return ""


def _bytes(name: object) -> bytes:
    """Return the name of a Unix socket as bytes; empty for a socket without one, or of another family."""
    return os.fsencode(name).rstrip(b"\0") if isinstance(name, (str, bytes)) else b""
