"""The daemon of a chaos run: starts, kills and stops it, and checks that it leaves nothing behind."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from daemon.shared.config import ENV_PREFIX
from daemon.shared.failpoints import ENV
from mlx_sidecar.v1 import sidecar_pb2 as pb
from mlx_sidecar.v1.sidecar_pb2_grpc import SidecarServiceStub
from tests.chaos.history import History, Sample
from tests.support.daemons import RunningDaemon, alive, wait_until

FAILPOINTS = ENV.removeprefix(ENV_PREFIX).lower()
COMMAND = [sys.executable, "-m", "tests.chaos.serve"]
QUIET: Mapping[str, str] = {
    "model_cache_mb": "64",
    "max_models": "4",
    "kv_cache_mb": "64",
    "kv_disk_mb": "64",
    "max_cache_blocks": "100000",
    "max_batch": "8",
    "max_queue": "64",
}
CHOICES: Mapping[str, list[str]] = {
    "model_cache_mb": ["2", "4", "64"],
    "max_models": ["1", "2", "4"],
    "kv_cache_mb": ["0", "1", "64"],
    "kv_disk_mb": ["0", "1", "64", "64"],
    "max_cache_blocks": ["20", "100", "100000"],
    "max_batch": ["1", "3", "8"],
    "max_queue": ["3", "64"],
}
ENGINE_POINTS = ["engine.hello=kill%10", "load.slice=kill%5", "prefill.chunk=kill%1", "token.first=kill%2"]
ENGINE_POINTS += ["kv.publish=kill%1", "kv.publish=raise%5", "kv.publish=sleep:0.02%20", "invalidate.dropped=kill%20"]
ENGINE_POINTS += ["load.slice=sleep:0.05", "token.first=sleep:0.05%20"]
DISK_POINTS = [
    f"disk.{place}=kill%10" for place in ("write", "part", "written", "synced", "renamed", "index", "read", "remove")
]
DISK_POINTS += [f"disk.{place}=raise%30" for place in ("write", "synced", "read", "remove")]
DISK_POINTS += ["disk.written=sleep:0.5%30", "disk.read=sleep:0.5%30", "disk.read=sleep:3%10", "disk.remove=sleep:0.2"]
PARENT_POINTS = ["lock.taken=kill", "socket.bound=kill", "socket.published=kill", "drain.begun=kill"]


@dataclass(slots=True)
class World:
    """
    One daemon after another on one socket.

    Attributes:
        folder: Directory of all state.
        settings: Configuration of the current daemon.
        pids: Processes that have to be gone in the end.
    """

    folder: Path
    history: History
    rng: random.Random
    pids: set[int] = field(default_factory=set)
    _life: tuple[RunningDaemon, Mapping[str, str]] | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.folder / "run" / "sidecar.sock"

    def start(self, settings: Mapping[str, str] = QUIET, failpoints: str = "") -> None:
        """Start a daemon; the one before has ended."""
        variables = {**settings, "drain_timeout": "2", FAILPOINTS: failpoints}
        daemon = RunningDaemon.start(self.folder, COMMAND, **variables)
        self._life = daemon, settings
        self.pids.add(daemon.process.pid)

    def restart(self, how: signal.Signals) -> None:
        """End the daemon in some way, and start another, with other budgets and other failpoints."""
        settings = {key: self.rng.choice(values) for key, values in CHOICES.items()}
        points = [self.rng.choice(ENGINE_POINTS)] * self.rng.randint(0, 1)
        points += [self.rng.choice(DISK_POINTS)] * self.rng.randint(0, 1)
        if self.rng.random() < 0.2:
            points.append(self.rng.choice(PARENT_POINTS))
        self.history.faults.append(f"start {settings} {points}")
        with self._lock:
            if how == signal.SIGTERM:
                self._end_well()
            else:
                self.kill()
            self.start(settings, ";".join(points))

    def kill(self) -> None:
        """Kill it, if it runs."""
        self.history.kills.append(time.monotonic())
        self.daemon.process.kill()
        self.daemon.wait()

    def _end_well(self) -> int:
        """Tell it to stop; it does, with status 0 unless a failpoint killed it first. Return the status."""
        told = time.monotonic()
        self.daemon.signal(signal.SIGTERM)
        status = self.daemon.wait()
        if status == -signal.SIGKILL:
            self.history.kills.append(told)
        if status not in (0, -signal.SIGKILL, -signal.SIGTERM):  # SIGTERM: it had not come to handle signals
            self.history.notes.append(f"the daemon ended with status {status} after SIGTERM")
        return status

    @property
    def daemon(self) -> RunningDaemon:
        """The current daemon."""
        assert self._life is not None
        return self._life[0]

    def mend(self) -> None:
        """Start a daemon if a failpoint killed the last one."""
        with self._lock:
            if (status := self.daemon.process.poll()) is None:
                return
            if status != -signal.SIGKILL:
                self.history.notes.append(f"the daemon ended by itself with status {status}")
            self.history.faults.append("failpoint killed parent")
            self.start()

    def sample(self, stub: SidecarServiceStub) -> pb.StatsResponse | None:
        """Note the daemon's figures, if it gives any."""
        assert self._life is not None
        daemon, settings = self._life
        try:
            stats: pb.StatsResponse = stub.Stats(pb.StatsRequest(), timeout=5)
        except grpc.RpcError:
            return None
        if stats.daemon.pid == daemon.process.pid:
            self.pids.add(stats.engine.pid)
            if stats.memory.limit_bytes:
                self.history.samples.append(Sample(settings, stats))
        return stats

    def signal_engine(self, stub: SidecarServiceStub, number: signal.Signals) -> bool:
        """Send the engine a signal, and tell whether there was one."""
        stats = self.sample(stub)
        if stats is None or not stats.engine.pid:
            return False
        try:
            os.kill(stats.engine.pid, number)
        except ProcessLookupError:
            return False
        return True

    def until_ready(self, stub: SidecarServiceStub, seconds: float) -> None:
        """Wait until the engine is ready, or for so long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            stats = self.sample(stub)
            if stats is not None and stats.engine.state == pb.ENGINE_STATE_READY:
                return
            time.sleep(0.1)

    def finish(self, stub: SidecarServiceStub) -> None:
        """Come to rest, and note whatever is left."""

        def at_rest() -> bool:
            stats = self.sample(stub)
            return stats is not None and stats.engine.state == pb.ENGINE_STATE_READY and not _held(stats)

        wait_until(at_rest, "nothing is running, waiting or leased")
        if self._end_well() == -signal.SIGKILL:  # by a failpoint in its drain: whatever it left, the next one removes
            self.start()
            self.until_ready(stub, 60)
            if self._end_well() != 0:
                self.history.notes.append("a daemon without failpoints was killed")
        wait_until(lambda: not any(map(alive, self.pids - {0})), "all processes have ended")
        left = sorted(path.name for path in self.socket.parent.iterdir())
        if left != ["sidecar.sock.lock"]:
            self.history.notes.append(f"files are left behind: {left}")


def _held(stats: pb.StatsResponse) -> int:
    engine = stats.engine
    in_use = sum(model.in_use for model in stats.models)
    running = engine.queued + engine.prefilling + engine.decoding
    return int(running + stats.prefix_cache.leases + stats.memory.live_kv_bytes + in_use)
