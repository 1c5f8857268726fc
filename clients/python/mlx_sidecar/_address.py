"""Where the daemon's socket is, and whether it can be trusted. The daemon imports it too; no grpc here."""

from __future__ import annotations

import os
import socket
import stat
import sys
from pathlib import Path
from urllib.parse import quote

from mlx_sidecar._exceptions import UntrustedSocket


def default_socket_path() -> Path:
    """
    Return where the daemon listens unless it is told otherwise.

    That is `MLX_SIDECAR_SOCKET` if it is set; on Linux `$XDG_RUNTIME_DIR/mlx-sidecar/sidecar.sock` if that
    variable is set; else `~/.mlx-sidecar/sidecar.sock`.
    """
    if override := os.environ.get("MLX_SIDECAR_SOCKET"):
        return Path(override).expanduser()
    if sys.platform == "linux" and (runtime := os.environ.get("XDG_RUNTIME_DIR")):
        return Path(runtime, "mlx-sidecar", "sidecar.sock")
    return Path.home() / ".mlx-sidecar" / "sidecar.sock"


def resolve(given: str | os.PathLike[str] | None) -> Path:
    """Return the absolute path that a client was given, or the default; `~` is the home directory."""
    path = default_socket_path() if given is None else Path(given).expanduser()
    return path.absolute()


def target(path: Path) -> str:
    """Return the gRPC target of an absolute path. gRPC reads it as a URI, so odd characters are quoted."""
    return "unix:" + quote(os.fsencode(path))


def listens(path: Path) -> bool:
    """Tell whether a process listens on a socket. It never waits; a queue of connections that is full is a listener."""
    with socket.socket(socket.AF_UNIX) as one:
        one.setblocking(False)
        try:
            one.connect(os.fsencode(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True


def socket_exists(path: Path) -> bool:
    """
    Tell whether there is a socket at a path, and refuse one that another user could have made.

    Whoever owns the directory, or may write to it, can put a socket of theirs in the daemon's place and read
    every prompt; so the directory is checked as well.

    Raises:
        UntrustedSocket: If the socket or its directory is not ours alone, or something else is in its place.
    """
    try:
        directory, found = path.parent.lstat(), path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        raise UntrustedSocket(f"{path.parent} belongs to another user") from None
    if not stat.S_ISDIR(directory.st_mode):
        raise UntrustedSocket(f"{path.parent} is not a directory but a link or a file")
    if directory.st_uid != os.geteuid():
        raise UntrustedSocket(f"{path.parent} belongs to another user")
    if directory.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UntrustedSocket(f"other users may write to {path.parent}; remove that with: chmod 700 {path.parent}")
    if not stat.S_ISSOCK(found.st_mode):
        raise UntrustedSocket(f"{path} is not a socket")
    if found.st_uid != os.geteuid():
        raise UntrustedSocket(f"{path} belongs to another user")
    return True
