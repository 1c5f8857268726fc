"""Sets up what a process inherits at its start: descriptors, signals, limits, directories in its variables."""

from __future__ import annotations

import os
import resource
import signal
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from daemon.shared.config import ConfigError

OPEN_FILES = 8192
"""Descriptors that are asked for: each client takes one."""
LEAST_OPEN_FILES = 64
"""With fewer descriptors a handful of clients take them all, and libraries fail to open their files."""
LEAST_ADDRESS_SPACE = 4 << 30
"""Bytes. Libraries alone reserve 2 GiB of addresses, which costs nothing; a model comes on top of that."""

OUTPUT_BYTES = 1 << 20
"""Most bytes that a service finds in the file of its output at a start: some thousand starts that failed."""

_TEMPORARY = ("TMPDIR", "TEMP", "TMP", "TEMPDIR")
_PLACES = (
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "XDG_CACHE_HOME",
    "HF_TOKEN_PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
)
"""Variables of libraries that name a file or a directory."""

_added: set[str] = set()
"""Variables that this process has set for itself."""


def leave_forks_alone() -> None:
    """Keep gRPC's handlers out of forks: they can hang or abort what starts others after a call, as on macOS."""
    name = "GRPC_ENABLE_FORK_SUPPORT"
    if name not in os.environ:
        os.environ[name] = "0"
        _added.add(name)


def inherited() -> dict[str, str]:
    """Return the environment that this process was given, for a program that it becomes."""
    return {name: value for name, value in os.environ.items() if name not in _added}


def hold_standard_streams() -> None:
    """
    Open the descriptors 0, 1 and 2 if they are closed, so that no socket or file gets their numbers.

    Output to standard error would otherwise go into that socket.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
            os.set_inheritable(fd, True)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for as long as the process lives
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def empty_large_output() -> None:
    """
    Empty the file that launchd appends the output of a service to, once it is large.

    launchd starts a service that cannot start again and again, and never shortens the file. It names the service in
    XPC_SERVICE_NAME. What a shell writes to a file is left alone.
    """
    output = os.fstat(2)
    ours = os.environ.get("XPC_SERVICE_NAME", "").startswith("com.mlx-sidecar.")
    if ours and stat.S_ISREG(output.st_mode) and output.st_size > OUTPUT_BYTES:
        os.ftruncate(2, 0)


def ignore_stray_signals() -> None:
    """
    Ignore SIGUSR1 and SIGUSR2, which make other daemons reload or report, and would end this daemon by default.

    SIGCHLD is not ignored, whatever the program did that started this process: the system would reap its children, and
    how they ended would be unknown.
    """
    for signum in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def allow_connections() -> None:
    """
    Raise the limit of open files, which processes that are started inherit.

    A shell on macOS allows 256. With all in use a new client just hangs, and a model of many files cannot be opened.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # a kernel may allow less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check_limits() -> None:
    """
    Check that the limits of this process leave room for a daemon.

    Raises:
        ConfigError: If not. The text has the limit, its value, and how to raise it.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= files < LEAST_OPEN_FILES:
        raise ConfigError(
            f"The limit of open files is {files}, and the daemon needs at least {LEAST_OPEN_FILES}; raise it with: "
            f"ulimit -n {OPEN_FILES}"
        )
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= space < LEAST_ADDRESS_SPACE:
        raise ConfigError(
            f"The limit of address space is {space >> 20} MiB, and the daemon needs at least "
            f"{LEAST_ADDRESS_SPACE >> 20} MiB before any model; lift it with: ulimit -v unlimited"
        )


def settle_temporary_directory() -> str | None:
    """
    Set all variables for the directory of temporary files to one that can be written to. The engine inherits them.

    Libraries read these variables themselves. If the directory is gone, they fail in the middle of a load.

    Returns:
        The directory that is used instead of the given one; None if that can be used.

    Raises:
        ConfigError: If no directory can be written to.
    """
    given = {name: os.environ[name] for name in _TEMPORARY if name in os.environ}
    try:
        usable = tempfile.gettempdir()
    except FileNotFoundError:
        raise ConfigError(
            "There is no directory for temporary files that can be written to; set TMPDIR to one."
        ) from None
    for name in given:
        os.environ[name] = usable
    return usable if any(os.path.realpath(path) != os.path.realpath(usable) for path in given.values()) else None


def place(name: str, value: str) -> str:
    """
    Return the value of a variable of a library; a relative path in it becomes absolute.

    Libraries read a leading "~" or variable themselves.
    """
    if name in _PLACES and value and not os.path.isabs(value) and value[0] not in "~$":
        with suppress(FileNotFoundError):  # the directory that it is relative to was deleted
            return os.path.abspath(value)
    return value


def settle_places() -> None:
    """Make relative paths in variables of libraries absolute, before this process goes to another directory."""
    for name in _PLACES:
        if name in os.environ:
            os.environ[name] = place(name, os.environ[name])


@contextmanager
def limits_kept() -> Iterator[None]:
    """
    Keep the limit of open files while libraries are imported.

    mlx-lm sets it to 2,048 of at most 4,096 when it is imported. That is lower than ours, and an error where the system
    allows less.
    """
    original = resource.setrlimit

    def setrlimit(which: int, limits: tuple[int, int], /) -> None:
        if which != resource.RLIMIT_NOFILE:
            original(which, limits)

    resource.setrlimit = setrlimit
    try:
        yield
    finally:
        resource.setrlimit = original
