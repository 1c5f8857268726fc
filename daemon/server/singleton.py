"""
Ensures one daemon for each socket: a lock file, and a socket that is bound privately and then renamed.

gRPC alone would take over a live socket without a word, and delete it at exit. Therefore:

1. Take the lock `<socket>.lock`. The engine inherits it: it lasts as long as any process holds the models' memory.
2. Bind the private name `.s.<pid>`, and make it 0600.
3. Rename it to the public name. So the public name never leads to a half-made socket.
4. At exit remove the public name, but only if it still leads to the same socket.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket as sockets
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from daemon.server import lock_file
from daemon.server.lock_file import Holder, UncleanEnd
from daemon.server.socket_path import SocketPathError, check_name, check_vacant
from daemon.shared.observed_time import polls

_POLL_SECONDS = 0.05
_PRIVATE_PREFIX = ".s."

T = TypeVar("T")


class AlreadyRunning(Exception):  # noqa: N818 - a state, and no fault of the program
    """Another daemon holds the lock. `pid` is its process id; None if it has not written it yet."""

    def __init__(self, pid: int | None) -> None:
        super().__init__(f"already running (pid {'unknown' if pid is None else pid})")
        self.pid = pid


class InstanceLock:
    """
    The lock of one socket. It is held as long as any process has a copy of its descriptor.

    The lock file is never deleted: a lock on a deleted file would let a second daemon in. `lock_file.py` has what is in
    it.

    The attributes can be logged only with the lock: until then, the log file belongs to another daemon.

    Attributes:
        orphan: Process id of the engine of a dead daemon that was killed for the lock; None if there was none.
        unclean_end: The end of the daemon before, if it was none of its own will; None if it was.
    """

    def __init__(self, fd: int, holder: Holder, orphan: int | None, unclean_end: UncleanEnd | None) -> None:
        self._fd = fd
        self._holder = holder
        self.orphan = orphan
        self.unclean_end = unclean_end

    @classmethod
    def acquire(cls, socket: Path, wait: float) -> InstanceLock:
        """
        Take the lock `<socket>.lock` and write our process id into it. The directory must exist.

        If the daemon that wrote the file is dead but the lock is held, its engine holds it and is about to exit. That
        is waited for, and again after the engine was killed.

        Args:
            socket: Public name of the socket.
            wait: Seconds to wait for the engine of a dead daemon; a living daemon is not waited for.

        Raises:
            AlreadyRunning: If another daemon holds the lock.
            SocketPathError: If the lock file is a symlink, is not ours or cannot be locked.
        """
        fd = _open_lock(_lock_path(socket))
        orphan = None
        try:
            if not _lock(fd, socket, wait):
                orphan = _kill_orphan(fd)
                if not _lock(fd, socket, wait):
                    raise AlreadyRunning(lock_file.read(fd).pid)
            unclean_end, holder = lock_file.unclean_end(fd), Holder(os.getpid(), began=int(time.time()))
            with suppress(OSError):  # a full disk; each new engine tries it again
                lock_file.note(fd, holder)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, holder, orphan, unclean_end)

    def fileno(self) -> int:
        """Return the descriptor. It closes on exec, unless `subprocess` hands it on by `pass_fds`."""
        return self._fd

    def inheritable_copy(self) -> int:
        """Return a new descriptor that stays open on exec and holds the lock too. The caller closes it."""
        copy = os.dup(self._fd)
        os.set_inheritable(copy, True)
        return copy

    def note_engine(self, pid: int) -> None:
        """
        Write the engine's process id into the file, so that the next daemon can kill an engine that hangs.

        Raises:
            OSError: If the file cannot be written. The lock is held all the same.
        """
        lock_file.note(self._fd, self._holder._replace(engine=pid))

    def note_life(self) -> None:
        """Note a sign of life, so that the next daemon knows when this one was killed, if it is."""
        lock_file.touch(self._fd)

    def release(self) -> None:
        """Note our end and close our descriptor; other processes' copies still hold the lock. Harmless twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                with suppress(OSError):  # a full disk: this end looks unclean to the next daemon
                    lock_file.end(fd)
            finally:
                os.close(fd)

    def __enter__(self) -> InstanceLock:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


def holder(socket: Path) -> int | None:
    """Return the process id of the daemon that has the lock of a socket, or is about to have it; None without one."""
    found = _look(socket, lock_file.read)
    return None if found is None or found.pid is None or not _alive(found.pid) else found.pid


def unclean_end(socket: Path) -> UncleanEnd | None:
    """Return the end of the daemon that was the last at a socket, if none runs there and it was no clean one."""
    found = _look(socket, lock_file.unclean_end)
    return None if found is None or _alive(found.pid) else found


def _look(socket: Path, read: Callable[[int], T]) -> T | None:
    """
    Return what is in a lock file; None if there is none.

    It is only read. Trying the lock would get in the way of a daemon that is just starting.
    """
    try:
        fd = os.open(_lock_path(socket), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return read(fd)
    except OSError:
        return None
    finally:
        os.close(fd)


def _lock_path(socket: Path) -> Path:
    return socket.with_name(socket.name + ".lock")


def _open_lock(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    except OSError as error:
        raise SocketPathError(f"The lock file {path} cannot be opened ({error.strerror}); move it away.") from None
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        os.close(fd)
        raise SocketPathError(f"The lock file {path} is not a regular file of yours; move it away.")
    os.fchmod(fd, 0o600)
    return fd


def _lock(fd: int, socket: Path, wait: float) -> bool:
    """Try for `wait` seconds to take the lock of a dead daemon, and return whether it was taken."""
    for _ in polls(wait, _POLL_SECONDS):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            daemon = lock_file.read(fd).pid
        except OSError as error:
            raise SocketPathError(
                f"The file system of {socket} has no locks ({error.strerror}); choose a path on a local disk."
            ) from None
        else:
            return True
        if daemon is not None and _alive(daemon):
            raise AlreadyRunning(daemon)
    return False


def _kill_orphan(fd: int) -> int | None:
    """
    Kill the engine of a dead daemon, and return its process id; None if there was none to kill.

    It should have exited at the end of its socket; it is stopped, or hangs.

    Process ids are used again: the process is killed only if its command line is an engine's.
    """
    engine = lock_file.read(fd).engine
    if engine is None:
        return None
    shown = _command_line(engine)
    if b"engine" not in shown or b" --fd " not in shown:
        return None
    with suppress(ProcessLookupError):
        os.kill(engine, signal.SIGKILL)
    return engine


def _command_line(pid: int) -> bytes:
    """Return the command line of a process; empty if there is none, or nothing on this system tells it."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    with suppress(OSError):
        return subprocess.run(["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)], stdout=subprocess.PIPE).stdout  # noqa: S603
    return b""


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@contextmanager
def private_umask() -> Iterator[None]:
    """Make new files and sockets 0600. The umask belongs to all threads: only for use at start-up."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def private_name(public: Path) -> Path:
    """Return the name that this process binds its socket to. Accepted connections have that name, too."""
    return public.with_name(f"{_PRIVATE_PREFIX}{os.getpid()}")


class PublishedSocket:
    """
    The two names of the daemon's socket: `private`, to bind under `private_umask`, and `public`, which clients use.

    The caller holds the `InstanceLock` of the public name throughout.

    Raises:
        SocketPathError: If the private name is too long, or another program listens under the public one.
    """

    def __init__(self, public: Path) -> None:
        _refuse_living(public)
        self.public = public
        self.private = private_name(public)
        self._identity: tuple[int, int] | None = None
        check_name(self.private)
        _remove_leftovers(public.parent)

    def publish(self) -> None:
        """
        Make the bound socket 0600 and give it the public name, in place of a stale socket.

        Raises:
            SocketPathError: If anything but a socket has that name.
            OSError: If the private name was not bound.
        """
        self.private.chmod(0o600)
        check_vacant(self.public)
        identity = _identify(self.private)
        self.private.rename(self.public)
        self._identity = identity

    def is_ours(self) -> bool:
        """Return whether the public name still leads to the socket that was published."""
        return self._identity is not None and _identify(self.public) == self._identity

    def remove(self) -> None:
        """Remove the public name if it is still ours, and private names of dead daemons. Never fails."""
        if self.is_ours():
            with suppress(OSError):
                self.public.unlink()
        self._identity = None
        _remove_leftovers(self.public.parent)


def _refuse_living(path: Path) -> None:
    """Refuse a socket that is in use. The lock is ours: it is no daemon's, but a desktop bus or a key agent."""
    with sockets.socket(sockets.AF_UNIX) as caller:
        caller.setblocking(False)
        try:
            caller.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return  # nothing, or the socket of a killed daemon
        except OSError:
            pass  # a socket of another type, or with a full queue
    raise SocketPathError(f"Another program listens on {path}; choose another socket path.")


def _identify(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISSOCK(found.st_mode) else None


def _remove_leftovers(directory: Path) -> None:
    """Remove the private sockets `.s.<pid>` of processes that are gone, and of our own process id."""
    with suppress(OSError):
        for one in directory.glob(_PRIVATE_PREFIX + "*"):
            pid = one.name.removeprefix(_PRIVATE_PREFIX)
            if not (pid.isascii() and pid.isdigit()) or not _identify(one):
                continue
            if int(pid) == os.getpid() or not _alive(int(pid)):
                one.unlink()
