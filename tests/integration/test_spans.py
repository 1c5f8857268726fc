"""A daemon that traces, and a collector that takes its spans over OTLP."""

from __future__ import annotations

import queue
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

import mlx_sidecar
from tests.support import serve_fake
from tests.support.daemons import END_SECONDS, RunningDaemon

CANARY = "xylophone-zeppelin-canary"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what arrives."""

    def __init__(self) -> None:
        self.arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.endpoint = ""

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Take a batch of spans."""
        self.arrived.put(request)
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture(name="collector")
def _collector() -> Iterator[Collector]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield collector
    server.stop(0).wait()


def fake() -> list[str]:
    """Return the command line of a daemon with a fake engine."""
    return [sys.executable, "-m", serve_fake.__name__]


def test_trace_spans_are_exported_without_a_prompt(
    start_daemon: Callable[..., RunningDaemon], collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of calls that ended just before the daemon did as well; answers, which repeat the prompt here, neither."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    daemon = start_daemon(fake(), tracing="true")
    with daemon.client() as client:
        assert CANARY in client.complete("ok", f"the {CANARY} is here", request_id="mine-1").text
        with pytest.raises(mlx_sidecar.InvalidArgument):
            client.complete("ok", CANARY, top_p=7.0)
        with pytest.raises(mlx_sidecar.SidecarError):
            client.complete("fail", CANARY)
        client.stats()
    assert daemon.stop() == 0
    batch = collector.arrived.get(timeout=END_SECONDS)
    assert CANARY.encode() not in batch.SerializeToString()
    (resource,) = batch.resource_spans
    about = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert (about["service.name"], about["deployment.environment"]) == ("mlx-sidecar", "test")
    spans = [span for scope in resource.scope_spans for span in scope.spans]
    told = [{one.key: one.value for one in span.attributes} for span in spans]
    assert [one["rpc.grpc.status_code"].int_value for one in told] == [0, 3, 13]
    assert {one["rpc.method"].string_value for one in told} == {"Generate"}
    assert told[0]["mlx_sidecar.request_id"].string_value == "mine-1"
    assert [one["mlx_sidecar.model"].string_value for one in told] == ["ok", "ok", "fail"]


def test_absent_trace_collector_delays_no_call(
    start_daemon: Callable[..., RunningDaemon], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls are answered, the daemon ends as ever, and the log has the exporter's complaint."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    daemon = start_daemon(fake(), tracing="true")
    with daemon.client() as client:
        assert client.complete("ok", "a b").text
    assert daemon.stop() == 0
    assert any(str(line.get("logger", "")).startswith("opentelemetry") for line in daemon.log())
