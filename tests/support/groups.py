"""Starts groups: a daemon and the machines that join it, all on the loopback address of this one."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
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
    command = ["ps", "-Aww", "-o", "pid=,ppid=,command="]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.split() for line in shown.stdout.splitlines()]
    return [int(row[0]) for row in rows if row[1] == str(parent) and "daemon.engine" in row]


START_SECONDS = 300
"""Patience until all ranks take calls: as many engines start at once, and some tries may fail on a busy machine."""

AHEAD = """
import sys
import time

if "daemon.engine" in sys.orig_argv:
    from daemon.shared import observed_time

    begun, told = observed_time.SeenTime.__init__, time.clock_gettime

    def begin(clock, *arguments):
        begun(clock, *arguments)
        clock._seen += {seconds}

    observed_time.SeenTime.__init__ = begin
    time.clock_gettime = lambda clock: told(clock) + {seconds}
"""
"""A module that Python imports at the start of an engine, so that each of its clocks is ahead."""


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
        cls,
        folder: Path,
        ranks: int = 2,
        roots: str = "",
        failpoints: str = "",
        kv_disk_mb: str = "0",
        ahead: str = "",
        **settings: str,
    ) -> RunningGroup:
        """
        Start a group.

        Args:
            folder: A folder of its own, with a short path; or that of a group that has ended, for the same ranks.
            ranks: How many.
            roots: Model roots of the others.
            failpoints: Those of the others.
            kv_disk_mb: That of all ranks; "64,0" if the others have 0.
            ahead: Seconds by which the clocks of the others are ahead: of machines that have run for longer.
            settings: Keys of the daemon.
        """
        disk, _, others_disk = kv_disk_mb.partition(",")
        key = write_key(folder / "key")
        others = []
        for rank in range(1, ranks):
            home = folder / str(rank)
            home.mkdir(exist_ok=True)
            (home / "daemon.log").unlink(missing_ok=True)
            # Port 0: the system chooses one that is free, and the log tells which.
            own = {"model_roots": roots, "test_failpoints": failpoints, "kv_disk_mb": others_disk or disk}
            others.append(join(home, "127.0.0.1:0", key, ahead, **own))
        addresses = [address_of(other) for other in others]
        home = folder / "0"
        home.mkdir(exist_ok=True)
        settings = {"group_key_file": str(key), "kv_disk_mb": disk, **settings}
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

    def pieces(self, rank: int) -> dict[str, Path]:
        """Return the files of a rank's disk tier for models of the group, by name."""
        return {path.name: path for path in (self.folder_of(rank) / "kv" / "group").glob("*.kv")}

    def folder_of(self, rank: int) -> Path:
        """Return the folder of a rank."""
        return (self.front, *self.others)[rank].folder

    def restarted(self, client: Client) -> None:
        """Kill the engine of a rank, so that all ranks lose what they have in memory, and wait until all are back."""
        restarts = client.stats().group.restarts
        os.kill(self.engine_of(1), signal.SIGKILL)
        wait_until(lambda: client.stats().group.restarts > restarts, "the group notices")
        self.ready(client)

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


def join(home: Path, listen: str, key: Path, ahead: str = "", **settings: str) -> RunningDaemon:
    """Start `mlx-sidecar join`, with clocks that are ahead by so many seconds; `settings` are configuration keys."""
    command = [sys.executable, "-m", "daemon", "join"]
    if ahead:
        (home / "sitecustomize.py").write_text(AHEAD.format(seconds=ahead))
        command = ["env", f"PYTHONPATH={home}", *command]
    return RunningDaemon.start(home, command, group_listen=listen, group_key_file=str(key), **settings)


def address_of(joined: RunningDaemon) -> str:
    """Wait until a rank listens, and return where."""

    def lines() -> list[str]:
        log = joined.folder / "daemon.log"
        text = log.read_text() if log.exists() else ""
        return [line for line in text.splitlines(keepends=True) if "group_listening" in line and line.endswith("\n")]

    wait_until(lambda: bool(lines()) or joined.process.poll() is not None, "a rank listens")
    return str(json.loads(lines()[0])["address"])
