"""Any number of calls may share a connection: each runs, waits, or gets an error with a time to retry."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import grpc
import pytest

from daemon.server.grpc_server import MAX_STREAMS
from mlx_sidecar import AsyncClient, Client, ConnectionLost, Delta, SidecarError
from mlx_sidecar.v1 import sidecar_pb2 as pb
from mlx_sidecar.v1.sidecar_pb2_grpc import SidecarServiceStub
from tests.faults.conftest import FAKE
from tests.faults.raw import Refusal
from tests.support.daemons import END_SECONDS, RunningDaemon

CALLS = 300
QUEUE = 64
HELD = pb.GenerateRequest(model="hold", text="x")
"""Is answered with one delta, and then with nothing until it is cancelled."""


@pytest.fixture(name="daemon")
def _daemon(start_daemon: Callable[..., RunningDaemon]) -> Iterator[RunningDaemon]:
    """Return a daemon with a fake engine and a short queue, and end it."""
    daemon = start_daemon(FAKE, max_queue=str(QUEUE))
    with daemon.client() as client:
        client.complete("ok", "one")
    yield daemon
    assert daemon.stop() == 0


def outcome(call: Callable[[], object]) -> str:
    """Return the outcome of a call: "ok", or the reason or class of its error."""
    try:
        call()
    except SidecarError as error:
        return error.reason or type(error).__name__
    except grpc.RpcError as error:
        refusal = Refusal(error)
        return refusal.reason + (" with RetryInfo" if refusal.retry else "") or refusal.code.name
    return "ok"


def all_at_once(calls: list[Callable[[], object]]) -> Counter[str]:
    """Make calls in a thread each, and count their outcomes."""
    outcomes: Counter[str] = Counter()
    lock, start = threading.Lock(), threading.Barrier(len(calls))

    def make(call: Callable[[], object]) -> None:
        start.wait()
        seen = outcome(call)
        with lock:
            outcomes[seen] += 1

    threads = [threading.Thread(target=make, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_three_hundred_calls_of_a_new_channel_all_run(daemon: RunningDaemon) -> None:
    """All are open at the same time; the channel has not heard of any limit when it sends them."""
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        stub = SidecarServiceStub(channel)
        waiting = [stub.Generate(HELD, timeout=END_SECONDS) for _ in range(CALLS)]
        seen = Counter(outcome(stream.__next__) for stream in waiting)
        for stream in waiting:
            stream.cancel()
    assert seen["ok"] + seen["QUEUE_FULL with RetryInfo"] == CALLS, seen
    assert seen["ok"] >= QUEUE


def test_calls_beyond_the_queue_get_a_retry_delay(daemon: RunningDaemon) -> None:
    """No call gets gRPC's bare UNAVAILABLE."""
    request = pb.GenerateRequest(model="hold-waiting", text="x")
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        stub = SidecarServiceStub(channel)
        streams = [stub.Generate(request, timeout=END_SECONDS) for _ in range(CALLS)]
        refused = 0
        ended = threading.Semaphore(0)
        for stream in streams:
            if not stream.add_callback(ended.release):  # it has ended already
                ended.release()
        for _ in range(CALLS - QUEUE):
            assert ended.acquire(timeout=END_SECONDS)
        for stream in streams:
            if stream.is_active():
                stream.cancel()
            else:
                assert outcome(stream.__next__) == "QUEUE_FULL with RetryInfo"
                refused += 1
    assert refused == CALLS - QUEUE


@pytest.mark.parametrize("calls", [CALLS, MAX_STREAMS + 100])
def test_the_client_carries_any_number_of_calls(daemon: RunningDaemon, calls: int) -> None:
    """The first calls of a new client too; calls beyond the limit of a connection wait."""
    with Client(daemon.socket) as client:
        assert all_at_once([lambda: client.complete("ok", "one two")] * calls).keys() <= {"ok", "QUEUE_FULL"}
        assert client.stats().daemon.pid == daemon.process.pid


@pytest.mark.parametrize("calls", [CALLS, MAX_STREAMS + 100])
async def test_async_client_carries_any_number_of_calls(daemon: RunningDaemon, calls: int) -> None:
    """As the synchronous client does."""
    async with AsyncClient(daemon.socket) as client:
        ends = await asyncio.gather(*(client.complete("ok", "one two") for _ in range(calls)), return_exceptions=True)
        kinds = Counter(getattr(end, "reason", type(end).__name__) for end in ends if isinstance(end, BaseException))
        assert kinds.keys() <= {"QUEUE_FULL"}
        assert (await client.stats()).daemon.pid == daemon.process.pid


def test_client_reuses_its_channel_after_a_restart(
    daemon: RunningDaemon, start_daemon: Callable[..., RunningDaemon]
) -> None:
    """Its channel connects anew, and knows no limit again."""
    with Client(daemon.socket) as client:
        client.stats()
        assert daemon.stop() == 0
        again = start_daemon(FAKE, max_queue=str(QUEUE))
        with again.client() as other:
            other.complete("ok", "one")
        outcomes = all_at_once([lambda: client.complete("ok", "one two")] * CALLS)
        assert outcomes.keys() <= {"ok", "QUEUE_FULL"}
        assert again.stop() == 0


def test_daemon_stopped_by_debugger_is_not_absent(daemon: RunningDaemon) -> None:
    """Neither a new client nor a client with an open call says so."""
    with Client(daemon.socket, timeout=0.3) as known, Client(daemon.socket, timeout=0.3) as new:
        stream = known.generate("hold", "x")
        while not isinstance(next(stream), Delta):
            pass
        os.kill(daemon.process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(ConnectionLost, match="listens"):
                new.stats()
            with pytest.raises(SidecarError) as caught:
                known.stats()
            assert caught.value.code == "DEADLINE_EXCEEDED"
        finally:
            os.kill(daemon.process.pid, signal.SIGCONT)
        stream.close()
