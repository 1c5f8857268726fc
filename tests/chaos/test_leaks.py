"""What is used comes back: cancelled calls, starts and stops leave no memory, thread, descriptor or file behind."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from mlx_sidecar import Client
from mlx_sidecar.v1 import sidecar_pb2 as pb
from mlx_sidecar.v1.sidecar_pb2_grpc import SidecarServiceStub
from tests.gauge import open_files, resident_bytes, threads
from tests.running import RunningDaemon, environment, wait_until
from tests.scale import often

FAKE = [sys.executable, "-m", "tests.serve_fake"]

Start = Callable[..., RunningDaemon]


def cancel(stub: SidecarServiceStub, request: pb.GenerateRequest, times: int) -> None:
    """Cancel calls after their first or second event, or before any."""
    rng = random.Random(1)
    for _ in range(times):
        call = stub.Generate(request, timeout=60)
        for _ in range(rng.randint(0, 2)):
            next(call)
        call.cancel()


def at_rest(client: Client) -> bool:
    """Tell whether nothing runs, waits or is held any more."""
    stats = client.stats()
    engine, memory = stats.engine, stats.memory
    held = stats.prefix_cache.leases + memory.live_kv_bytes + sum(model.in_use for model in stats.models)
    return not (engine.queued + engine.prefilling + engine.decoding + held)


def bytes_per_cancel(daemon: RunningDaemon, request: pb.GenerateRequest, warmup: int, times: int) -> dict[str, float]:
    """
    Cancel many calls and return what each cost parent and engine, in bytes that did not come back.

    Threads and descriptors must be as many as before.
    """
    channel = grpc.insecure_channel(f"unix:{daemon.socket}")
    with daemon.client() as client, channel:
        stub = SidecarServiceStub(channel)
        stub.Stats(pb.StatsRequest(), wait_for_ready=True)
        pids = {"parent": daemon.process.pid, "engine": client.stats().engine.pid}
        figures = []
        for count in (warmup, times):
            cancel(stub, request, count)
            wait_until(lambda: at_rest(client), "nothing runs, waits or is held")
            figures.append({name: (resident_bytes(pid), threads(pid), open_files(pid)) for name, pid in pids.items()})
    before, after = figures
    assert {name: held[1:] for name, held in after.items()} == {name: held[1:] for name, held in before.items()}
    cost = {name: (after[name][0] - before[name][0]) / times for name in pids}
    print(f"bytes per cancel, of {times}: {cost}")  # noqa: T201 - the figure is the point
    return cost


def test_five_hundred_cancelled_calls_come_back(start_daemon: Start) -> None:
    """
    Threads, descriptors, slots, leases; and the parent's memory: below 1 KB each.

    What a call takes while it runs is some 20 KB. A finer bound needs more calls: memory is handed out in pages.
    """
    daemon = start_daemon(FAKE)
    request = pb.GenerateRequest(model="hold", text="one two three")
    assert bytes_per_cancel(daemon, request, 300, 500)["parent"] < 1000


@pytest.mark.slow
def test_ten_thousand_cancelled_answers_come_back(start_daemon: Start) -> None:
    """With the real engine: below 64 bytes each in both processes; swallowed cancellations in grpc.aio cost 190."""
    daemon = start_daemon(kv_cache_mb="1")
    request = pb.GenerateRequest(model="embedded", text="one two three", max_tokens=3000)
    request.stop.ignore_eos = True
    times = often(10_000)
    cost = bytes_per_cancel(daemon, request, max(500, times // 5), times)
    assert cost["parent"] < 64
    assert cost["engine"] < 64


def test_twenty_starts_and_stops_in_one_process_hold_nothing(folder: Path) -> None:
    """Descriptors and threads are as many after the last as after the second; of the files only the lock is left."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.cycles", "20"],
        env=environment(folder),
        capture_output=True,
        text=True,
        check=True,
    )
    cycles = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(cycles) == 20
    assert {cycle["status"] for cycle in cycles} == {0}
    assert all(cycle["left"] == ["sidecar.sock.lock"] for cycle in cycles)
    for held in ("files", "threads"):
        counts = [cycle[held] for cycle in cycles]
        assert min(counts[-3:]) <= min(counts[1:4]), counts  # gRPC's own threads may still be on their way out
