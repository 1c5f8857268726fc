"""One daemon for each socket: at most one process holds the lock, and a live socket is never touched."""

from __future__ import annotations

import os
import shutil
import signal
import socket as sockets
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.server.singleton import AlreadyRunning, InstanceLock, PublishedSocket, holder, private_umask
from daemon.server.socket_path import SocketPathError

HOLD = """
import sys, time
from pathlib import Path
from daemon.server.singleton import InstanceLock
lock = InstanceLock.acquire(Path(sys.argv[1]), wait=0)
print("held", flush=True)
sys.stdin.read()
"""

HOLD_WITH_ENGINE = """
import subprocess, sys
from pathlib import Path
from daemon.server.singleton import InstanceLock
lock = InstanceLock.acquire(Path(sys.argv[1]), wait=0)
engine = subprocess.Popen(
    ["sh", "-c", "read line"],
    stdin=int(sys.argv[2]), stdout=subprocess.DEVNULL, pass_fds=[lock.fileno()],
)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(name="base")
def _base() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="mlxs", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(name="path")
def _path(base: Path) -> Path:
    return base / "s.sock"


def _start(code: str, *arguments: object, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=pass_fds,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def _dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def _bind(path: Path) -> sockets.socket:
    server = sockets.socket(sockets.AF_UNIX)
    with private_umask():
        server.bind(str(path))
    server.listen()
    return server


def _can_connect(path: Path) -> bool:
    with sockets.socket(sockets.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def test_the_lock_file_is_private_and_holds_our_pid(path: Path) -> None:
    before = os.umask(0)
    try:
        lock = InstanceLock.acquire(path, wait=0)
    finally:
        os.umask(before)

    file = path.with_name("s.sock.lock")
    assert file.read_text().split()[0] == str(os.getpid())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not os.get_inheritable(lock.fileno())
    lock.release()


def test_a_second_daemon_is_told_the_pid_of_the_first(path: Path) -> None:
    first = _start(HOLD, path)

    with pytest.raises(AlreadyRunning) as caught:
        InstanceLock.acquire(path, wait=60)

    assert str(caught.value) == f"already running (pid {first.pid})"
    assert caught.value.pid == first.pid
    _kill(first)


def test_a_refused_daemon_does_not_overwrite_the_pid(path: Path) -> None:
    with InstanceLock.acquire(path, wait=0):
        for _ in range(2):
            with pytest.raises(AlreadyRunning, match=f"pid {os.getpid()}"):
                InstanceLock.acquire(path, wait=0)


def test_daemon_starts_after_the_last_was_killed(path: Path) -> None:
    _kill(_start(HOLD, path))

    with InstanceLock.acquire(path, wait=0):
        assert holder(path) == os.getpid()


def test_stale_lock_file_of_any_content_is_taken_over(path: Path) -> None:
    path.with_name("s.sock.lock").write_text("no pid at all, and longer than one\n")

    with InstanceLock.acquire(path, wait=0):
        assert holder(path) == os.getpid()


def test_lock_is_released_and_release_is_idempotent(path: Path) -> None:
    lock = InstanceLock.acquire(path, wait=0)
    lock.release()
    lock.release()

    InstanceLock.acquire(path, wait=0).release()


def test_orphaned_engine_keeps_the_lock_until_it_exits(path: Path) -> None:
    read_end, write_end = os.pipe()
    daemon = _start(HOLD_WITH_ENGINE, path, read_end, pass_fds=(read_end,))
    os.close(read_end)
    _kill(daemon)

    with pytest.raises(AlreadyRunning, match=f"pid {daemon.pid}"):
        InstanceLock.acquire(path, wait=0)

    os.close(write_end)
    InstanceLock.acquire(path, wait=30).release()


def test_inherited_descriptor_holds_the_lock(path: Path) -> None:
    lock = InstanceLock.acquire(path, wait=0)
    copy = lock.inheritable_copy()
    lock.release()

    assert os.get_inheritable(copy)
    with pytest.raises(AlreadyRunning):
        InstanceLock.acquire(path, wait=0)
    os.close(copy)
    InstanceLock.acquire(path, wait=0).release()


def test_two_sockets_in_one_directory_have_two_locks(base: Path) -> None:
    with InstanceLock.acquire(base / "a", wait=0), InstanceLock.acquire(base / "b", wait=0):
        pass


def test_symlinked_lock_file_is_refused(path: Path, base: Path) -> None:
    (base / "precious").write_text("data")
    path.with_name("s.sock.lock").symlink_to(base / "precious")

    with pytest.raises(SocketPathError, match="move it away"):
        InstanceLock.acquire(path, wait=0)

    assert (base / "precious").read_text() == "data"


def test_non_regular_lock_file_is_refused(path: Path) -> None:
    os.mkfifo(path.with_name("s.sock.lock"))

    with pytest.raises(SocketPathError, match="not a regular file of yours"):
        InstanceLock.acquire(path, wait=0)


def test_acquiring_the_lock_leaks_no_descriptors(path: Path) -> None:
    lock = InstanceLock.acquire(path, wait=0)
    before = os.dup(0)
    os.close(before)
    for _ in range(5):
        with pytest.raises(AlreadyRunning):
            InstanceLock.acquire(path, wait=0)
    after = os.dup(0)
    os.close(after)

    assert after == before
    lock.release()


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_socket_is_private_from_its_bind(path: Path, mask: int) -> None:
    published = PublishedSocket(path)
    before = os.umask(mask)
    try:
        with _bind(published.private):
            assert stat.S_IMODE(published.private.stat().st_mode) == 0o600
            assert not path.exists()
            published.publish()
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert not published.private.exists()
            assert _can_connect(path)
    finally:
        assert os.umask(before) == mask
        published.remove()
    assert list(path.parent.iterdir()) == []


def test_publishing_replaces_a_stale_socket(path: Path) -> None:
    _bind(path).close()
    published = PublishedSocket(path)

    with _bind(published.private):
        published.publish()

        assert published.is_ours()
        assert _can_connect(path)


@pytest.mark.parametrize("kind", [sockets.SOCK_STREAM, sockets.SOCK_DGRAM])
def test_socket_of_another_program_is_refused(path: Path, kind: sockets.SocketKind) -> None:
    """In a runtime directory there is a desktop's bus, or an agent of keys: private, ours, and in use."""
    with sockets.socket(sockets.AF_UNIX, kind) as other:
        other.bind(str(path))
        if kind == sockets.SOCK_STREAM:
            other.listen(0)
        before = path.lstat()
        with sockets.socket(sockets.AF_UNIX, kind) as waiting:
            if sys.platform == "linux":  # elsewhere a full queue looks like a socket that was left over
                waiting.connect(str(path))
            with pytest.raises(SocketPathError, match=r"Another program listens on .*; choose another socket path\."):
                PublishedSocket(path)
        assert path.lstat().st_ino == before.st_ino


def test_publishing_never_replaces_a_file(path: Path) -> None:
    path.write_text("precious")
    published = PublishedSocket(path)

    with _bind(published.private), pytest.raises(SocketPathError, match="There is a file"):
        published.publish()

    assert path.read_text() == "precious"
    published.remove()
    assert path.read_text() == "precious"
    assert not published.private.exists()


def test_socket_of_a_later_daemon_is_not_removed(path: Path) -> None:
    published = PublishedSocket(path)
    with _bind(published.private):
        published.publish()
        path.unlink()
        with _bind(path):
            assert not published.is_ours()
            published.remove()
            assert _can_connect(path)


def test_socket_is_ours_only_while_published(path: Path) -> None:
    published = PublishedSocket(path)
    assert not published.is_ours()
    published.remove()
    with _bind(published.private):
        published.publish()
        published.remove()

        assert not published.is_ours()
        assert not path.exists()
        published.remove()


def test_lock_holder_is_read_without_locking(path: Path) -> None:
    """A look never makes a daemon that is just starting fail; a dead one, or none, holds nothing."""
    assert holder(path) is None
    with InstanceLock.acquire(path, wait=0):
        assert holder(path) == os.getpid()
    path.with_name(f"{path.name}.lock").write_text(f"{_dead_pid()}\n")
    assert holder(path) is None
    path.with_name(f"{path.name}.lock").write_text("garbage\n")
    assert holder(path) is None


def test_private_sockets_of_dead_daemons_are_removed(base: Path, path: Path) -> None:
    dead, living = base / f".s.{_dead_pid()}", base / f".s.{os.getppid()}"
    for one in (dead, living, base / ".s.name", base / f".s.{os.getpid()}"):
        _bind(one).close()
    (base / ".s.999999999").write_text("a file, not a socket")

    PublishedSocket(path).remove()

    assert sorted(one.name for one in base.iterdir()) == sorted([living.name, ".s.name", ".s.999999999"])


def test_too_long_private_socket_name_is_refused(base: Path) -> None:
    directory = base / ("d" * (100 - len(str(base)) - 1))
    directory.mkdir()

    with pytest.raises(SocketPathError, match="at most 103 work"):
        PublishedSocket(directory / "s")


def test_stale_socket_of_a_killed_daemon_is_replaced(path: Path) -> None:
    code = """
import socket, sys
from pathlib import Path
from daemon.server.singleton import InstanceLock, PublishedSocket, private_umask
lock = InstanceLock.acquire(Path(sys.argv[1]), wait=0)
published = PublishedSocket(Path(sys.argv[1]))
server = socket.socket(socket.AF_UNIX)
with private_umask():
    server.bind(str(published.private))
server.listen()
published.publish()
print("held", flush=True)
sys.stdin.read()
"""
    daemon = _start(code, path)
    assert _can_connect(path)
    daemon.send_signal(signal.SIGKILL)
    daemon.communicate()
    assert path.exists()
    assert not _can_connect(path)

    with InstanceLock.acquire(path, wait=0):
        published = PublishedSocket(path)
        with _bind(published.private):
            published.publish()
            assert _can_connect(path)
            published.remove()
    assert not path.exists()
