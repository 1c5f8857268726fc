"""Where the daemon's socket is, and whether it can be trusted. The daemon imports it too; no grpc here."""

from __future__ import annotations

import os
import shlex
import socket
import stat
import sys
from pathlib import Path
from urllib.parse import quote

from mlx_sidecar._exceptions import UntrustedSocket

_ADVISED_BYTES = 90
"""Longest path that is advised; macOS takes 103 bytes, some of which the daemon needs for a private name."""


def default_socket_path() -> Path:
    """
    Return where the daemon listens unless it is told otherwise.

    That is `MLX_SIDECAR_SOCKET` if it is set; on Linux `$XDG_RUNTIME_DIR/mlx-sidecar/sidecar.sock` if that
    variable is set; else `~/.mlx-sidecar/sidecar.sock`.
    """
    if override := os.environ.get("MLX_SIDECAR_SOCKET"):
        return Path(override).expanduser()
    return own_directory() / "sidecar.sock"


def own_directory() -> Path:
    """Return the directory that is the daemon's by its name: nothing else is kept there, and it may be made private."""
    if sys.platform == "linux" and (runtime := os.environ.get("XDG_RUNTIME_DIR")):
        return Path(runtime, "mlx-sidecar")
    return Path.home() / ".mlx-sidecar"


def place_of_its_own(socket: Path) -> Path:
    """
    Return where a socket may go instead, in a directory that the daemon creates, for advice about an unfit directory.

    That is a directory below the one that was chosen, if it can be made there and nothing can take its place; else the
    default. No advice ever changes a directory that exists: it may be `/tmp`, and be shared with the whole machine.
    """
    directory, uid = socket.parent, os.geteuid()
    default = own_directory() / "sidecar.sock"
    try:
        found = directory.lstat()
    except OSError:
        return default
    shared = bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    if not stat.S_ISDIR(found.st_mode) or (shared and not found.st_mode & stat.S_ISVTX):
        return default
    place = directory / (f"mlx-sidecar-{uid}" if shared else "mlx-sidecar") / socket.name
    fits = len(os.fsencode(place)) <= _ADVISED_BYTES and os.access(directory, os.W_OK | os.X_OK)
    return place if fits and not os.path.lexists(place.parent) else default


def privacy_advice(socket: Path) -> str:
    """Return what to do about a directory of ours that others can enter, as the end of a sentence."""
    if socket.parent == own_directory():
        return f"run: chmod 700 {shlex.quote(str(socket.parent))}"
    return f"leave it as it is, and take a directory that the daemon creates: --socket {place_text(socket)}"


def place_text(socket: Path) -> str:
    """Return `place_of_its_own` as a shell takes it."""
    return shlex.quote(str(place_of_its_own(socket)))


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
        raise UntrustedSocket(f"other users may write to {path.parent}; {privacy_advice(path)}")
    if not stat.S_ISSOCK(found.st_mode):
        raise UntrustedSocket(f"{path} is not a socket")
    if found.st_uid != os.geteuid():
        raise UntrustedSocket(f"{path} belongs to another user")
    return True
