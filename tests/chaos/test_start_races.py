"""Many daemons that start at once: one serves, the others leave, and its socket is private and its own throughout."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_sidecar import Client
from tests.chaos.inotify import DELETE, MOVED_TO, Watch
from tests.support.daemons import END_SECONDS, alive, environment, listens, wait_until
from tests.support.repetitions import scaled

STARTERS = 8
UMASKS = ["000", "022", "077"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="watches the directory through inotify")


class Starters:
    """The program that starts daemons at the same moment."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.starters"],
            # The socket stays under its private name, as it was bound, for long enough that the watch sees it.
            env=environment(folder, test_failpoints="socket.bound=sleep:0.03"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def start(self, umask: str) -> None:
        """Start them."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{STARTERS} {umask}\n")
        self._process.stdin.flush()

    def ended(self) -> tuple[int, int]:
        """Return process id and status of the next one that ends; fail if none does, because two serve."""
        pid, status = self._ended.get(timeout=END_SECONDS).split()
        return int(pid), int(status)

    def close(self) -> None:
        """End it, and with it whoever still serves."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        children = ["ps", "-o", "pid=", "--ppid", str(self._process.pid)]
        for pid in subprocess.run(children, capture_output=True, text=True).stdout.split():
            os.kill(int(pid), signal.SIGTERM)
        self._process.wait(END_SECONDS)
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._ended.put(line)


@pytest.fixture(name="starters")
def _starters(folder: Path) -> Iterator[Starters]:
    starters = Starters(folder)
    yield starters
    starters.close()
    print((folder / "daemon.log").read_text()[-5000:])  # noqa: T201 - shown with a failure


def race(starters: Starters, path: Path, umask: str) -> bool:
    """Let them start at once, use the one that serves, end it, and tell whether its bound socket was seen."""
    with Watch(path.parent) as watch:
        starters.start(umask)
        losers = [starters.ended() for _ in range(STARTERS - 1)]
        assert [status for _, status in losers] == [1] * (STARTERS - 1)
        wait_until(lambda: listens(path), "the one that serves listens")
        with Client(path, timeout=END_SECONDS) as client:
            winner = client.stats().daemon.pid
            inode = path.stat().st_ino
            assert winner not in dict(losers)
            assert client.complete("ok", "one two").text == "one two"
            assert path.stat().st_ino == inode
            os.kill(winner, signal.SIGTERM)
        assert starters.ended() == (winner, 0)
    names = [(kind, name) for kind, name in watch.events if name == path.name]
    assert names.count((MOVED_TO, path.name)) == 1, "the public name was taken over"
    assert names[-1] == (DELETE, path.name)
    assert {mode for seen in watch.modes.values() for mode in seen} == {0o600}
    assert [one.name for one in path.parent.iterdir()] == ["sidecar.sock.lock"]
    return f".s.{winner}" in watch.modes


def races(starters: Starters, folder: Path, times: int) -> None:
    """Hold races, with another umask each."""
    path = folder / "run" / "sidecar.sock"
    path.parent.mkdir(mode=0o700)
    seen = sum(race(starters, path, UMASKS[number % len(UMASKS)]) for number in range(times))
    assert seen > times / 2, "the watch was too slow to see anything"


def test_eight_concurrent_daemon_starts_serve_one(starters: Starters, folder: Path) -> None:
    """In ten races, under any umask, no file of the daemons ever has a mode wider than 0600."""
    races(starters, folder, 10)


@pytest.mark.slow
def test_eight_concurrent_starts_serve_one_200_times(starters: Starters, folder: Path) -> None:
    """Two hundred races of eight starts; the test above runs ten."""
    races(starters, folder, scaled(200))


def test_watch_detects_a_socket_made_private_too_late(folder: Path) -> None:
    """A socket that is bound under umask 0 and made private later is detected, so the race test can fail."""
    before = os.umask(0)
    try:
        with Watch(folder) as watch, socket.socket(socket.AF_UNIX) as one:
            path = folder / "s"
            one.bind(str(path))
            time.sleep(0.05)  # what gRPC needs between its bind and our chmod
            path.chmod(0o600)
    finally:
        os.umask(before)
    assert watch.modes["s"] == {0o777, 0o600}


def test_start_creates_its_directory_private(folder: Path) -> None:
    """The directory has mode 0700 from its creation, although the shell's umask allows everything."""
    environ = environment(folder)
    with Watch(folder) as watch:
        command = 'umask 000; exec "$0" -m tests.support.serve_fake'
        process = subprocess.Popen(["sh", "-c", command, sys.executable], env=environ)
        wait_until(lambda: listens(Path(environ["MLX_SIDECAR_SOCKET"])), "it listens")
        with Client(Path(environ["MLX_SIDECAR_SOCKET"]), timeout=END_SECONDS) as client:
            client.stats()
        process.terminate()
        assert process.wait(END_SECONDS) == 0
    assert watch.modes["run"] == {0o700}
    assert not alive(process.pid)
