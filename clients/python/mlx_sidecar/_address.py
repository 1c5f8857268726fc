"""The path of the daemon's socket, and the check of its owner and modes. The daemon imports it too, so no grpc here."""

from __future__ import annotations

import os
import shlex
import socket
import stat
import sys
from pathlib import Path
from urllib.parse import quote

from mlx_sidecar._exceptions import UntrustedSocket

MAX_SOCKET_BYTES = 103
"""Longest path of a Unix socket on macOS; Linux allows four bytes more."""
_ADVISED_BYTES = 90
"""Longest path in an advice. The daemon needs some bytes for a private name."""


def default_socket_path() -> Path:
    """
    Return the default path of the daemon's socket.

    It is `MLX_SIDECAR_SOCKET` if that is set; on Linux `$XDG_RUNTIME_DIR/mlx-sidecar/sidecar.sock` if that variable is
    set; else `~/.mlx-sidecar/sidecar.sock`.
    """
    if override := os.environ.get("MLX_SIDECAR_SOCKET"):
        return Path(override).expanduser()
    return own_directory() / "sidecar.sock"


def own_directory() -> Path:
    """Return the directory that holds only files of the daemon, so that it may be made private."""
    if sys.platform == "linux" and (runtime := os.environ.get("XDG_RUNTIME_DIR")):
        return Path(runtime, "mlx-sidecar")
    return Path.home() / ".mlx-sidecar"


def place_of_its_own(socket: Path) -> Path:
    """
    Return another path for a socket whose directory is unfit, in a directory that the daemon creates.

    It is a new directory below the chosen directory, if that can be created and other users cannot replace it; else the
    default. No advice ever changes an existing directory: it can be `/tmp`, which the whole machine shares.
    """
    directory, uid = socket.parent, os.geteuid()
    default = own_directory() / "sidecar.sock"
    try:
        mode = directory.lstat().st_mode
    except OSError:
        return default
    shared = bool(mode & (stat.S_IWGRP | stat.S_IWOTH))
    # In a shared directory without the sticky bit, other users may rename the new directory.
    if not stat.S_ISDIR(mode) or (shared and not mode & stat.S_ISVTX):
        return default
    place = directory / (f"mlx-sidecar-{uid}" if shared else "mlx-sidecar") / socket.name
    fits = len(os.fsencode(place)) <= _ADVISED_BYTES and os.access(directory, os.W_OK | os.X_OK)
    return place if fits and not os.path.lexists(place.parent) else default


def privacy_advice(socket: Path) -> str:
    """Return the end of an error text: how to fix a directory of this user that other users can enter."""
    if socket.parent == own_directory():
        return f"run: chmod 700 {shlex.quote(str(socket.parent))}"
    return f"leave it as it is, and take a directory that the daemon creates: --socket {place_text(socket)}"


def ownership_advice(socket: Path) -> str:
    """Return the end of an error text: what to do where a socket's directory is another user's."""
    if socket.parent != own_directory():
        return f"take a directory that the daemon creates: --socket {place_text(socket)}"
    # `sudo` on macOS keeps HOME: root is the caller now, or a daemon that root started has made the directory.
    if os.geteuid() == 0 and (user := os.environ.get("SUDO_USER")):
        return f"as {user}, run this without sudo"
    return "move it away, and the daemon creates its own"


def place_text(socket: Path) -> str:
    """Return `place_of_its_own`, quoted for a shell."""
    return shlex.quote(str(place_of_its_own(socket)))


def resolve(given: str | os.PathLike[str] | None) -> Path:
    """Return a client's socket path, or the default, as an absolute path; `~` is the home directory."""
    path = default_socket_path() if given is None else Path(given).expanduser()
    return path.absolute()


def target(path: Path) -> str:
    """Return the gRPC target of an absolute path. It is a URI, so special characters are quoted."""
    return "unix:" + quote(os.fsencode(path))


def listens(path: Path) -> bool:
    """
    Tell whether a process listens on a socket, without waiting.

    Raises:
        OSError: If this process cannot open a socket; PermissionError if the system does not let it connect.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.setblocking(False)
        try:
            connection.connect(os.fsencode(path))
        except BlockingIOError:  # the listener's queue of connections is full
            return True
        except PermissionError:  # of a sandbox: nothing is known of the daemon
            raise
        except OSError:
            return False
    return True


def socket_exists(path: Path) -> bool:
    """
    Tell whether a socket exists at a path, and refuse a socket that another user can have created.

    A user that owns the directory, or may write to it, can replace the daemon's socket and read every prompt. So the
    directory is checked as well.

    Raises:
        UntrustedSocket: If other users can write to the socket or its directory, or the path is no socket.
    """
    try:
        directory, entry = path.parent.lstat(), path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        raise UntrustedSocket(f"{path.parent} belongs to another user; {ownership_advice(path)}") from None
    except OSError:  # a path that is too long, or leads in a circle: nothing is there
        return False
    if not stat.S_ISDIR(directory.st_mode):
        raise UntrustedSocket(f"{path.parent} is not a directory but a link or a file; name a directory itself")
    if directory.st_uid != os.geteuid():
        raise UntrustedSocket(f"{path.parent} belongs to another user; {ownership_advice(path)}")
    if directory.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UntrustedSocket(f"other users may write to {path.parent}; {privacy_advice(path)}")
    if not stat.S_ISSOCK(entry.st_mode):
        raise UntrustedSocket(f"{path} is not a socket; move it away")
    if entry.st_uid != os.geteuid():
        raise UntrustedSocket(f"{path} belongs to another user; move it away")
    return True
