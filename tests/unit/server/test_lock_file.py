"""The lock file tells the next daemon that the one before was killed, and nothing of one that ended."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from daemon.doctor import places
from daemon.doctor.finding import Verdict
from daemon.server import app, lock_file
from daemon.server.app import LOOKS_FOR_LIFE, Daemon
from daemon.server.lock_file import UncleanEnd
from daemon.server.singleton import AlreadyRunning, InstanceLock
from daemon.shared.config import Config
from daemon.shared.log_fields import permitted

KILLED = """
import os, signal, sys
from pathlib import Path
from daemon.server.singleton import InstanceLock
lock = InstanceLock.acquire(Path(sys.argv[1]), wait=0)
lock.note_engine(4711)
os.kill(os.getpid(), signal.SIGKILL)
"""

LEFT_ENGINE = """
import os, signal, subprocess, sys
from pathlib import Path
from daemon.server.singleton import InstanceLock
hang = "import signal; signal.pause()"
with InstanceLock.acquire(Path(sys.argv[1]), wait=0) as lock:
    copy = lock.inheritable_copy()
    engine = subprocess.Popen(
        [sys.executable, "-c", hang, "engine", "--fd", "0"], stdout=subprocess.DEVNULL, pass_fds=[copy]
    )
    lock.note_engine(engine.pid)
    print(engine.pid, flush=True)
    {end}
"""


@pytest.fixture(name="path")
def _path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mlxs", dir="/tmp") as folder:
        yield Path(folder, "s.sock")


def unclean_end(path: Path) -> UncleanEnd | None:
    """Take the lock, give it back, and return what was told of the daemon before."""
    with InstanceLock.acquire(path, wait=0) as lock:
        return lock.unclean_end


def file_of(path: Path) -> Path:
    """Return the lock file of a socket."""
    return path.with_name("s.sock.lock")


def test_killed_daemon_is_told_to_the_next_one_once(path: Path) -> None:
    """With its process id, when it began and its last sign of life: as much may be logged."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, path])
    process.wait()
    os.utime(file_of(path), (1_790_000_000, 1_790_000_000))

    told = unclean_end(path)

    assert told is not None
    assert (told.pid, told.last_seen) == (process.pid, "2026-09-21T14:13:20Z")
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", told.began)
    assert permitted(told._asdict()) == told._asdict()
    assert unclean_end(path) is None


def test_daemon_that_ended_is_not_told(path: Path) -> None:
    with InstanceLock.acquire(path, wait=0) as lock:
        lock.note_engine(4711)
    assert unclean_end(path) is None


@pytest.mark.parametrize("end", ["pass", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_engine_that_hangs_is_killed_however_its_daemon_ended(path: Path, end: str) -> None:
    """It holds the lock: without its process id, no daemon could start before it exits."""
    daemon = subprocess.run([sys.executable, "-c", LEFT_ENGINE.format(end=end), path], stdout=subprocess.PIPE)
    engine = int(daemon.stdout)
    with InstanceLock.acquire(path, wait=1) as lock:
        assert lock.orphan == engine
        assert (lock.unclean_end is not None) == (daemon.returncode < 0)


def test_daemon_that_failed_is_not_told(path: Path) -> None:
    """Its last words are a traceback."""
    with pytest.raises(ZeroDivisionError), InstanceLock.acquire(path, wait=0):
        raise ZeroDivisionError
    assert unclean_end(path) is None


@pytest.mark.parametrize("content", ["", "4711\n", "4711\n4712\n", "no pid at all\n", "\0\n", "-\n-\n-\n", "9 9 x"])
def test_content_of_another_form_tells_nothing(path: Path, content: str) -> None:
    """Daemons of older versions wrote process ids alone, also at their end."""
    file_of(path).write_text(content)
    assert unclean_end(path) is None


def test_any_number_is_a_time(path: Path) -> None:
    file_of(path).write_text(f"1\n2\n{'9' * 60}\n")
    assert unclean_end(path) is not None


def test_sign_of_life_is_the_latest(path: Path) -> None:
    with InstanceLock.acquire(path, wait=0) as lock:
        os.utime(file_of(path), (1, 1))
        before = time.time()
        lock.note_life()
        assert file_of(path).stat().st_mtime >= before - 1
        told = lock_file.unclean_end(lock.fileno())
    assert told is not None
    assert told.last_seen >= told.began


async def test_daemon_notes_its_life_in_some_of_its_looks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each note writes to the disk."""
    monkeypatch.setattr(app, "SOCKET_CHECK_SECONDS", 0)
    looks, notes = 0, list[int]()

    class Socket:
        public = path

        def is_ours(self) -> bool:
            nonlocal looks
            looks += 1
            return looks <= 2 * LOOKS_FOR_LIFE + 1

    await Daemon(Config(socket=path), on_life=lambda: notes.append(looks))._guard(Socket())  # type: ignore[arg-type]
    assert notes == [1, LOOKS_FOR_LIFE + 1, 2 * LOOKS_FOR_LIFE + 1]


def test_doctor_tells_of_a_killed_daemon_while_none_runs(path: Path) -> None:
    path.parent.chmod(0o700)
    process = subprocess.Popen([sys.executable, "-c", KILLED, path])
    process.wait()

    told = places.socket(path)

    assert told.verdict is Verdict.WARNING
    assert f"(pid {process.pid}, since " in told.found
    with InstanceLock.acquire(path, wait=0):
        assert places.socket(path).verdict is Verdict.OK
    assert places.socket(path).verdict is Verdict.OK


def test_full_disk_costs_neither_the_lock_nor_an_engine(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a new engine's start raises would end the supervisor, and nothing would be left that answers calls."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with capture_logs() as logs, InstanceLock.acquire(path, wait=0) as lock:
        app.note_engine(lock, 4711)
        with pytest.raises(AlreadyRunning):
            InstanceLock.acquire(path, wait=0)
    assert logs == [{"event": "lock_file_unwritable", "log_level": "warning", "error": "OSError: ENOSPC"}]
    InstanceLock.acquire(path, wait=0).release()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system has ps")
def test_engine_that_hangs_is_killed_without_ps(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers of few programs have none. Its absence is no traceback at the start of a daemon."""
    daemon = subprocess.run([sys.executable, "-c", LEFT_ENGINE.format(end="pass"), path], stdout=subprocess.PIPE)

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/bin/ps")

    monkeypatch.setattr(subprocess, "run", missing)
    with InstanceLock.acquire(path, wait=1) as lock:
        assert lock.orphan == int(daemon.stdout)
