"""What an operator has: health, reflection, and one log line for each call that never holds a prompt."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import mlx_sidecar
from mlx_sidecar import Client
from tests.faults.conftest import FAKE
from tests.support.daemons import RunningDaemon

SERVICE = "mlx_sidecar.v1.SidecarService"
CANARY = "xylophone-zeppelin-canary"


def test_health_knows_the_process_and_the_service(daemon: RunningDaemon, client: Client) -> None:
    """`""` is the process, the service's name is the engine."""
    client.load("embedded")
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError):
            health.Check(health_pb2.HealthCheckRequest(service="nobody"))


def test_health_is_not_serving_until_the_engine_is_up(start_daemon: Callable[..., RunningDaemon]) -> None:
    """The process answers at once; the service follows the engine."""
    daemon = start_daemon()
    with daemon.client() as client:
        client.stats()
        with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            seen = []
            for update in stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE)):
                seen.append(update.status)
                if update.status == health_pb2.HealthCheckResponse.SERVING:
                    break
    assert seen[-1] == health_pb2.HealthCheckResponse.SERVING
    assert set(seen[:-1]) <= {health_pb2.HealthCheckResponse.NOT_SERVING}


def test_health_watch_outlives_the_end_of_another(start_daemon: Callable[..., RunningDaemon]) -> None:
    """A monitor that leaves does not cut the others off from changes."""
    daemon = start_daemon(FAKE)
    request = health_pb2.HealthCheckRequest(service=SERVICE)
    with daemon.client() as client, grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        client.load("ok")
        stub = health_pb2_grpc.HealthStub(channel)
        stays, leaves = (stub.Watch(request, timeout=60) for _ in range(2))
        assert [next(watch).status for watch in (stays, leaves)] == [health_pb2.HealthCheckResponse.SERVING] * 2
        leaves.cancel()
        with pytest.raises(mlx_sidecar.EngineRestarted):
            client.complete("die", "one")
        assert next(stays).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert next(stays).status == health_pb2.HealthCheckResponse.SERVING
        stays.cancel()


def test_reflection_lists_the_service(daemon: RunningDaemon) -> None:
    """Tools such as grpcurl need no proto file."""
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = stub.ServerReflectionInfo(iter([request]))
    assert SERVICE in {service.name for service in answer.list_services_response.service}


def test_log_line_tells_where_a_conversation_diverges(start_daemon: Callable[..., RunningDaemon]) -> None:
    """Positions and counts only; the client has the same, and Stats counts it."""
    daemon = start_daemon()
    system = "You answer questions about the code of a door, in one short sentence. Today is "
    with daemon.client() as client:
        for day in ("Monday.", "Friday."):
            chat = [{"role": "system", "content": system + day + CANARY}, {"role": "user", "content": "Who is there?"}]
            answer = client.complete("embedded", chat, max_tokens=2)
        assert answer.miss is not None
        assert (answer.miss.reason, answer.miss.message) == ("diverged", 0)
        assert abs((answer.miss.character or 0) - len(system)) <= 4
        misses = client.stats().prefix_cache.misses
    assert (misses.never_seen, misses.diverged) == (1, 1)
    assert daemon.stop() == 0
    _, line = [line for line in daemon.log() if line["event"] == "rpc" and line["rpc"] == "Generate"]
    told = (line["miss"], line["miss_message"], line["miss_character"], line["miss_token"])
    assert told == ("diverged", 0, answer.miss.character, answer.miss.token)
    assert line["miss_seen_s"] >= 0
    assert CANARY not in (daemon.folder / "daemon.log").read_text()


def test_each_call_logs_one_line_without_its_prompt(start_daemon: Callable[..., RunningDaemon]) -> None:
    """Request id, model, tokens, timings and status; neither prompt nor answer, also when a call fails."""
    daemon = start_daemon(log_level="debug")
    with daemon.client() as client:
        client.complete("embedded", f"Remember the {CANARY}.", max_tokens=4, request_id="mine-1", keep=60)
        with pytest.raises(mlx_sidecar.InvalidArgument):
            client.complete("embedded", f"Remember the {CANARY}.", top_p=7.0)
        with pytest.raises(mlx_sidecar.ContextLengthExceeded):
            client.complete("embedded", f"Remember the {CANARY}." * 400)
    assert daemon.stop() == 0
    lines = [line for line in daemon.log() if line["event"] == "rpc" and line["rpc"] == "Generate"]
    assert [line["code"] for line in lines] == ["OK", "INVALID_ARGUMENT", "INVALID_ARGUMENT"]
    ok = lines[0]
    assert (ok["request_id"], ok["model"], ok["completion_tokens"], ok["reason"]) == ("mine-1", "embedded", 4, "length")
    assert ok["prompt_tokens"] > ok["cached_tokens"] == 0
    assert ok["duration_s"] >= ok["first_token_s"] > 0
    assert (ok["miss"], ok["miss_token"]) == ("never_seen", 0)
    assert lines[1]["reason"] == "INVALID_ARGUMENT"
    assert CANARY not in (daemon.folder / "daemon.log").read_text()


def test_second_run_of_a_daemon_tests_no_model_again(
    daemon: RunningDaemon, start_daemon: Callable[..., RunningDaemon]
) -> None:
    """It finds the notes of a load. A daemon of a test has those of the embedded model, unless it asks for none."""
    second = start_daemon()
    for running in (daemon, second):
        with running.client() as client:
            client.load("embedded")
    tested = [
        next(line for line in running.log() if line["event"] == "model_tested" and line["model"] == "embedded")
        for running in (daemon, second)
    ]
    assert [line["known"] for line in tested] == [False, True]
