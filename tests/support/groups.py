"""Starts groups: a daemon and the machines that join it, all on the loopback address of this one."""

from __future__ import annotations

import json
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path

from mlx_sidecar import Client
from tests.support.daemons import RunningDaemon, wait_until


def write_key(file: Path) -> Path:
    """Write a new key of a group, and return its file."""
    file.write_text(secrets.token_hex(32))
    file.chmod(0o600)
    return file


def child_engines(parent: int) -> list[int]:
    """Return the process ids of the engines that a process started."""
    pids = []
    for folder in Path("/proc").iterdir():
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        if fields and fields[1] == str(parent) and b"daemon.engine" in command:
            pids.append(int(folder.name))
    return pids


START_SECONDS = 300
"""Patience until all ranks take calls: as many engines start at once, and some tries may fail on a busy machine."""


@dataclass(slots=True)
class RunningGroup:
    """
    A group that a test started.

    Attributes:
        front: The daemon, which is the first rank.
        others: The processes of `mlx-sidecar join`.
    """

    front: RunningDaemon
    others: list[RunningDaemon]

    @classmethod
    def start(
        cls, folder: Path, ranks: int = 2, roots: str = "", failpoints: str = "", **settings: str
    ) -> RunningGroup:
        """
        Start a group.

        Args:
            folder: A folder of its own, with a short path.
            ranks: How many.
            roots: Model roots of the others.
            failpoints: Those of the others.
            settings: Keys of the daemon.
        """
        key = write_key(folder / "key")
        others = []
        for rank in range(1, ranks):
            home = folder / str(rank)
            home.mkdir()
            # Port 0: the system chooses one that is free, and the log tells which.
            others.append(join(home, "127.0.0.1:0", key, model_roots=roots, test_failpoints=failpoints))
        addresses = [address_of(other) for other in others]
        home = folder / "0"
        home.mkdir()
        settings = {"group_key_file": str(key), "kv_disk_mb": "0", **settings}
        front = RunningDaemon.start(home, None, group_ranks=",".join(["127.0.0.1", *addresses]), **settings)
        return cls(front, others)

    def ready(self, client: Client) -> None:
        """Wait until all ranks take calls."""
        wait_until(lambda: client.stats().group.state == "ready", "the group is ready", START_SECONDS)

    def engine_of(self, rank: int) -> int:
        """Wait until a rank other than the first has an engine, and return its process id."""
        parent = self.others[rank - 1].process.pid
        wait_until(lambda: bool(child_engines(parent)), "a rank has an engine")
        return child_engines(parent)[-1]

    def stop(self) -> None:
        """End all processes."""
        for daemon in (self.front, *self.others):
            daemon.stop()

    def kill(self) -> None:
        """Kill what still runs, after a test that failed."""
        for daemon in (self.front, *self.others):
            if daemon.process.poll() is None:
                daemon.process.kill()
                daemon.wait()


def join(home: Path, listen: str, key: Path, **settings: str) -> RunningDaemon:
    """Start `mlx-sidecar join`; `settings` are configuration keys."""
    command = [sys.executable, "-m", "daemon", "join"]
    return RunningDaemon.start(home, command, group_listen=listen, group_key_file=str(key), **settings)


def address_of(joined: RunningDaemon) -> str:
    """Wait until a rank listens, and return where."""

    def lines() -> list[str]:
        log = joined.folder / "daemon.log"
        text = log.read_text() if log.exists() else ""
        return [line for line in text.splitlines(keepends=True) if "group_listening" in line and line.endswith("\n")]

    wait_until(lambda: bool(lines()) or joined.process.poll() is not None, "a rank listens")
    return str(json.loads(lines()[0])["address"])
