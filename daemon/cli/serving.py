"""Looks whether a daemon serves on a socket, for commands that start, install or examine one."""

from __future__ import annotations

import os
import socket as sockets
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daemon.launchd.readiness import Serving

_ANSWER_SECONDS = 1.0


def listens(path: Path) -> bool:
    """
    Tell whether a process listens on a socket. A busy or stopped daemon still listens.

    True as well in a sandbox that keeps this process from the socket: a daemon may listen, and the call that follows
    tells what is wrong.
    """
    try:
        with sockets.socket(sockets.AF_UNIX) as connection:
            connection.settimeout(_ANSWER_SECONDS)
            connection.connect(str(path))
    except (BlockingIOError, TimeoutError, PermissionError):  # its queue of connections is full, or a sandbox
        return True
    except OSError:
        return False
    return True


def look(socket: Path) -> Serving | None:
    """Return the daemon that serves on a socket; None if none answers within a second."""
    from daemon.launchd.readiness import Serving  # only now: a start needs nothing of launchd
    from mlx_sidecar import Client, SidecarError

    if not os.path.exists(socket):  # False, too, of a path that is too long, or in a directory of another user
        return None
    try:
        with Client(socket, timeout=_ANSWER_SECONDS) as client:
            stats = client.stats()
    except SidecarError:
        return None
    began = time.time() - (stats.daemon.uptime or 0.0)
    return Serving(stats.daemon.pid, stats.daemon.version, stats.engine.state == "ready", began)
