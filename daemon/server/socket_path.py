"""Checks of the socket's path and directory. Other users are kept out by the directory: it must be ours, and 0700."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from mlx_sidecar._address import MAX_SOCKET_BYTES, ownership_advice, privacy_advice

_URI_CHARACTERS = "%#?"


class SocketPathError(Exception):
    """The socket cannot be made there. The text is one sentence: why, and what to do."""


def prepare_socket_path(socket: Path) -> None:
    """
    Create the socket's directory if it is missing, and check that only its owner can reach the socket.

    Nothing that exists is changed or deleted.

    Raises:
        SocketPathError: If the path or the directory cannot be used.
    """
    check_name(socket)
    prepare_directory(socket)
    check_vacant(socket)


def check_name(socket: Path) -> None:
    """
    Check the text of a socket's path, without a look at the disk.

    Raises:
        SocketPathError: If it is relative, too long, or gRPC would read it as another path.
    """
    text = str(socket)
    if not socket.is_absolute() or not socket.name:
        raise SocketPathError(f"The socket path {text!r} must be an absolute path of a file; choose another.")
    if any(character in text for character in _URI_CHARACTERS):
        # gRPC parses the address as a URI: "%" starts an escape, "#" and "?" end the path.
        raise SocketPathError(f"The socket path {text!r} must not contain any of % # ?; choose another.")
    if not text.isprintable():
        raise SocketPathError(f"The socket path {text!r} must contain printable characters only; choose another.")
    length = len(os.fsencode(socket))
    if length > MAX_SOCKET_BYTES:
        raise SocketPathError(
            f"The socket path {text!r} has {length} bytes, but at most {MAX_SOCKET_BYTES} work; choose a shorter one."
        )


def prepare_directory(socket: Path) -> None:
    """
    Create a socket's directory with mode 0700 if it is missing. Otherwise check that it is private.

    Raises:
        SocketPathError: If it cannot be created, is not our directory, is a symlink or lets others in. The advice in
            its text changes no directory, except one that is the daemon's own by its name.
    """
    directory = socket.parent
    try:
        _create_missing(directory)
        found = directory.lstat()
    except OSError as error:
        raise SocketPathError(
            f"The socket's directory {directory} cannot be used ({error.strerror}); choose another path."
        ) from None
    if stat.S_ISLNK(found.st_mode):
        raise SocketPathError(f"The socket's directory {directory} is a symlink; name the directory it points to.")
    if not stat.S_ISDIR(found.st_mode):
        raise SocketPathError(f"The socket's directory {directory} is a file; choose another socket path.")
    if found.st_uid != os.geteuid():
        raise SocketPathError(
            f"The socket's directory {directory} belongs to user id {found.st_uid}, not to {os.geteuid()}; "
            f"{ownership_advice(socket)}"
        )
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o777 != 0o700:
        raise SocketPathError(
            f"The socket's directory {directory} has mode {mode:04o}, but must be 0700 to keep others out; "
            f"{privacy_advice(socket)}"
        )


def _create_missing(directory: Path) -> None:
    # Not mkdir(parents=True): the umask would decide the mode of the parents, 0777 at worst.
    missing = [folder for folder in (directory, *directory.parents) if not os.path.lexists(folder)]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(fd, 0o700)  # the umask may have taken our own bits
        finally:
            os.close(fd)


def check_vacant(socket: Path) -> None:
    """
    Check that the path is free, or that a socket has it, live or stale.

    Raises:
        SocketPathError: If anything else has it.
    """
    try:
        mode = socket.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise SocketPathError(f"The socket path {socket} cannot be used ({error.strerror}); choose another.") from None
    if not stat.S_ISSOCK(mode):
        kind = "a symlink" if stat.S_ISLNK(mode) else "a directory" if stat.S_ISDIR(mode) else "a file"
        raise SocketPathError(f"There is {kind} at the socket path {socket}; choose another socket path.")
