"""Checks a daemon after a fault: counters, threads and descriptors are as before, and it answers in time."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import grpc

from mlx_sidecar.v1 import sidecar_pb2 as pb
from mlx_sidecar.v1.sidecar_pb2_grpc import SidecarServiceStub
from tests.support.daemons import RunningDaemon, wait_until
from tests.support.process_usage import MOST_GRPC_THREADS, grpc_threads

PROMPT_SECONDS = 0.1
"""Deadline of the Stats call after each fault, kept by gRPC and not by a clock of the tests."""
ENGINE_THREADS = 19
"""Most threads of an engine: MLX's, the link, two look up, two tokenise, three render, four read."""
POOLS = {"grpc_threads": MOST_GRPC_THREADS, "engine_threads": ENGINE_THREADS}
"""Resources that are pools, with their largest size."""
TRIES = 100
"""On a machine that others use as well, an answer may be late, but not each of so many in a row."""


@dataclass(frozen=True, slots=True)
class Held:
    """Resources that a daemon holds for its callers. After a fault none may be more than before."""

    leases: int
    models_in_use: int
    queued: int
    running: int
    live_kv_bytes: int
    threads: int
    grpc_threads: int
    descriptors: int
    engine_threads: int
    engine_descriptors: int

    @classmethod
    def by(cls, daemon: RunningDaemon) -> Held:
        """Ask a daemon and its kernel."""
        stats = ask(daemon)
        pid, engine = stats.daemon.pid, stats.engine.pid
        pool = grpc_threads(pid)
        return cls(
            leases=stats.prefix_cache.leases,
            models_in_use=sum(model.in_use for model in stats.models),
            queued=stats.engine.queued,
            running=stats.engine.prefilling + stats.engine.decoding,
            live_kv_bytes=stats.memory.live_kv_bytes,
            threads=max(0, _entries(pid, "task") - pool),
            grpc_threads=pool,
            descriptors=_entries(pid, "fd"),
            engine_threads=_entries(engine, "task"),
            engine_descriptors=_entries(engine, "fd"),
        )

    def more_than(self, other: Held) -> list[str]:
        """Return the names of the resources that grew. Pools may fill up to their size: gRPC's, and the engine's."""
        grown = [name for name in self.__slots__ if getattr(self, name) > getattr(other, name)]
        return [name for name in grown if getattr(self, name) > POOLS.get(name, 0)]


def _entries(pid: int, what: str) -> int:
    """Count an engine's or daemon's threads or descriptors; 0 for one that is gone, or where there is no /proc."""
    path = Path("/proc", str(pid), what)
    return len(os.listdir(path)) if pid and path.exists() else 0


def ask(daemon: RunningDaemon) -> pb.StatsResponse:
    """Return Stats, on a connection of its own that is closed again."""
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        answer: pb.StatsResponse = SidecarServiceStub(channel).Stats(pb.StatsRequest(), timeout=60, wait_for_ready=True)
        return answer


def answers_in_time(daemon: RunningDaemon) -> None:
    """Check that Stats is answered within its deadline."""
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        stub = SidecarServiceStub(channel)
        for _ in range(TRIES):
            try:
                stub.Stats(pb.StatsRequest(), timeout=PROMPT_SECONDS)
                return
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED, error  # noqa: PT017 - every other is a fault
    raise AssertionError(f"not one of {TRIES} Stats calls was answered within {PROMPT_SECONDS} s")


def back_to(before: Held, daemon: RunningDaemon) -> None:
    """Wait until a daemon holds no more than before."""
    try:
        wait_until(lambda: not Held.by(daemon).more_than(before), "nothing more is held than before")
    except AssertionError as error:
        now = Held.by(daemon)
        raise AssertionError(f"more is held than before: {now.more_than(before)}; {before}, {now}") from error
