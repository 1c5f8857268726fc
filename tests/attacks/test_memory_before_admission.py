"""Memory before admission: it is bounded for all calls together, and each incomplete request ends in time."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from daemon.server.grpc_server import MAX_MESSAGE_BYTES, SMALL_BYTES
from mlx_sidecar import Client
from mlx_sidecar.v1 import sidecar_pb2 as pb
from mlx_sidecar.v1.sidecar_pb2_grpc import SidecarServiceStub
from tests.attacks.half_sent import HalfSent
from tests.faults.conftest import FAKE
from tests.faults.raw import SERVICE, Refusal
from tests.support.daemons import RunningDaemon, wait_until

MIB = 2**20
BOUND = 250 * MIB
"""What a flood may add to the parent. The calls below claim twice as much, and more."""
WATCH = "/grpc.health.v1.Health/Watch"
LARGEST = MAX_MESSAGE_BYTES - 1024


def rss(daemon: RunningDaemon) -> int:
    """Return the resident bytes of the parent."""
    shown = subprocess.run(
        ["ps", "-o", "rss=", "-p", str(daemon.process.pid)], capture_output=True, text=True, check=True
    )
    return 1024 * int(shown.stdout)


@pytest.fixture(name="fake")
def _fake(start_daemon: Callable[..., RunningDaemon]) -> Iterator[RunningDaemon]:
    """Return a daemon with a fake engine, and end it."""
    daemon = start_daemon(FAKE)
    with daemon.client() as client:
        client.complete("ok", "one")
    yield daemon
    assert daemon.stop() == 0


@pytest.mark.parametrize("path", [SERVICE + "Generate", WATCH])
def test_half_sent_requests_are_bounded_and_ended(fake: RunningDaemon, path: str) -> None:
    """Thirty-two of 16 MiB would be 512 MiB. Stats and health are answered beside calls that send prompts."""
    before = rss(fake)
    most = before
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.05):
            most = max(most, rss(fake))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ExitStack() as stack:
            calls = [stack.enter_context(HalfSent(fake, path, LARGEST)) for _ in range(32)]
            wait_until(lambda: any(call.sent > MIB for call in calls), "some are received")
            with Client(fake.socket) as client:
                assert client.stats().daemon.pid == fake.process.pid
            for call in calls:
                assert call.ended.wait(120), "it is ended though its last byte never comes"
            assert sum(b"did not arrive whole" in call.answer for call in calls) > 0
    finally:
        done.set()
        watcher.join()
    assert most - before < BOUND
    with Client(fake.socket) as client:
        assert client.complete("ok", "one two").text == "one two"


@pytest.mark.parametrize("size", [SMALL_BYTES + 1, 15 * MIB, 31 * MIB])
def test_health_watch_with_a_long_name_is_refused(fake: RunningDaemon, size: int) -> None:
    """Twenty at once; each is refused, whether by its length in bytes or as more than gRPC takes."""
    before = rss(fake)
    request = health_pb2.HealthCheckRequest(service="x" * size)
    apart: list[tuple[str, int]] = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    with ExitStack() as stack:
        channels = [grpc.insecure_channel(f"unix:{fake.socket}", options=apart) for _ in range(20)]
        watches = [HealthStub(stack.enter_context(channel)).Watch(request, timeout=60) for channel in channels]
        refusals = [refusal(watch) for watch in watches]
        assert rss(fake) - before < BOUND
    if size < MAX_MESSAGE_BYTES:
        allowed = {("INVALID_ARGUMENT", "request"), ("RESOURCE_EXHAUSTED", "")}
        assert ("INVALID_ARGUMENT", "request") in {one.code_and_field for one in refusals}
        assert {one.code_and_field for one in refusals} <= allowed
    else:
        assert {one.code for one in refusals} == {grpc.StatusCode.RESOURCE_EXHAUSTED}


def refusal(call: Any) -> Refusal:
    """Return how a call ends that must not be answered."""
    with pytest.raises(grpc.RpcError) as caught:
        next(iter(call))
    return Refusal(caught.value)


def test_control_requests_have_small_size_limits(fake: RunningDaemon) -> None:
    """Stats, health and reflection; requests within the limit are answered."""
    long = "x" * SMALL_BYTES
    with grpc.insecure_channel(f"unix:{fake.socket}") as channel:
        health, reflection = HealthStub(channel), ServerReflectionStub(channel)

        def listed(name: str) -> Any:
            return reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services=name)]))

        assert refusal(listed(long)).code_and_field == ("INVALID_ARGUMENT", "request")
        names = {one.name for one in next(listed("x" * 100)).list_services_response.service}
        assert "mlx_sidecar.v1.SidecarService" in names
        with pytest.raises(grpc.RpcError) as caught:
            health.Check(health_pb2.HealthCheckRequest(service=long))
        assert Refusal(caught.value).code_and_field == ("INVALID_ARGUMENT", "request")
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        stats: Any = channel.unary_unary(SERVICE + "Stats")
        with pytest.raises(grpc.RpcError) as caught:
            stats(unknown(long))
        assert Refusal(caught.value).code_and_field == ("INVALID_ARGUMENT", "request")


def unknown(text: str) -> bytes:
    """Return a request with a field that no message has."""
    request: Message = pb.StatsRequest()
    return request.SerializeToString() + b"\xfa\x01" + bytes([128 + len(text) % 128, len(text) // 128]) + text.encode()


def test_health_watches_are_limited_in_number(fake: RunningDaemon) -> None:
    """The one beyond is told so, with a time to come back."""
    with grpc.insecure_channel(f"unix:{fake.socket}") as channel:
        health = HealthStub(channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(250)]
        for watch in watches:
            next(watch)
        one_more = refusal(health.Watch(health_pb2.HealthCheckRequest()))
        assert (one_more.code, one_more.reason, one_more.retry) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "QUEUE_FULL",
            True,
        )
        assert SidecarServiceStub(channel).Stats(pb.StatsRequest()).daemon.pid == fake.process.pid
        watches.pop().cancel()
        wait_until(lambda: answered(health), "the place is free again")
        for watch in watches:
            watch.cancel()


def answered(health: HealthStub) -> bool:
    """Tell whether a watch is let in."""
    watch = health.Watch(health_pb2.HealthCheckRequest())
    try:
        next(watch)
    except grpc.RpcError:
        return False
    watch.cancel()
    return True


def test_waiting_prompts_hold_bounded_bytes(start_daemon: Callable[..., RunningDaemon]) -> None:
    """Sixty of 7 MB with room in the queue: those beyond 128 MiB are refused, and come in when others have ended."""
    daemon = start_daemon(FAKE, max_queue="1000")
    with daemon.client() as client:
        client.complete("ok", "one")
    request = pb.GenerateRequest(model="hold", text="x" * 7_000_000)
    with grpc.insecure_channel(f"unix:{daemon.socket}", options=[("grpc.max_send_message_length", -1)]) as channel:
        stub = SidecarServiceStub(channel)
        held = []
        refusals: list[Refusal] = []
        for _ in range(60):
            stream = stub.Generate(request, timeout=120)
            try:
                assert next(stream).HasField("started")
                held.append(stream)
            except grpc.RpcError as error:
                refusals.append(Refusal(error))
        assert len(held) == 128 * MIB // request.ByteSize()
        assert {(one.code.name, one.reason, one.retry) for one in refusals} == {
            ("RESOURCE_EXHAUSTED", "QUEUE_FULL", True)
        }
        held.pop().cancel()

        def comes_in() -> bool:
            stream = stub.Generate(request, timeout=120)
            try:
                next(stream)
            except grpc.RpcError:
                return False
            held.append(stream)
            return True

        wait_until(comes_in, "there is room for another")
        for stream in held:
            stream.cancel()
    assert daemon.stop() == 0


def test_refused_requests_are_let_go_of_at_once(fake: RunningDaemon) -> None:
    """Five times in a row, and no more stays than after the first time: no reference cycle keeps a request."""
    request = health_pb2.HealthCheckRequest(service="x" * (15 << 20))
    apart: list[tuple[str, int]] = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    before = rss(fake)
    for _ in range(5):
        with ExitStack() as stack:
            channels = [grpc.insecure_channel(f"unix:{fake.socket}", options=apart) for _ in range(20)]
            watches = [HealthStub(stack.enter_context(channel)).Watch(request, timeout=60) for channel in channels]
            assert all(refusal(watch).code is not grpc.StatusCode.OK for watch in watches)
    assert rss(fake) - before < BOUND
