"""Spans of calls: their fields, and the texts that they never have."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from structlog.contextvars import bind_contextvars

from daemon.cli import exit_codes
from daemon.server import app
from daemon.server.call_record import CallRecord
from daemon.server.tracing import CallTracer
from daemon.shared.config import Config, ConfigError
from daemon.shared.errors import invalid
from tests.unit.server.intercepted import SECRET, FakeContext, raising, serve

METHOD = "/mlx_sidecar.v1.SidecarService/Generate"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """Keeps the spans of a tracer."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = CallTracer(provider)

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        """All so far."""
        return self._exporter.get_finished_spans()

    def span(self) -> ReadableSpan:
        """Return the only one."""
        (one,) = self.spans
        return one


@pytest.fixture(name="collector")
def _collector() -> Collector:
    return Collector()


def ended(code: str = "OK", duration: float = 2.0, headers: dict[str, str] | None = None, **fields: Any) -> CallRecord:
    """Return a call."""
    return CallRecord(METHOD, code, duration, headers or {}, fields)


def test_trace_span_describes_one_call(collector: Collector) -> None:
    """Its RPC, status, names and figures; as long as the call was."""
    collector.tracer.record(ended(request_id="mine", model="m", prompt_tokens=7, reason="stop", duration=2.5))
    span = collector.span()
    assert (span.name, span.kind) == ("mlx_sidecar.v1.SidecarService/Generate", SpanKind.SERVER)
    assert span.attributes == {
        "rpc.system": "grpc",
        "rpc.service": "mlx_sidecar.v1.SidecarService",
        "rpc.method": "Generate",
        "rpc.grpc.status_code": 0,
        "mlx_sidecar.request_id": "mine",
        "mlx_sidecar.model": "m",
        "mlx_sidecar.prompt_tokens": 7,
        "mlx_sidecar.reason": "stop",
    }
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.end_time - span.start_time == 2_500_000_000


def test_trace_stages_are_consecutive_events(collector: Collector) -> None:
    """Each begins where the one before it has ended, and the first token comes when the engine says."""
    collector.tracer.record(ended(queue_s=0.5, load_s=0.0, prefill_s=1.0, decode_s=0.25, first_token_s=1.5))
    span = collector.span()
    assert span.start_time is not None
    events = {event.name: (event.timestamp - span.start_time, dict(event.attributes or {})) for event in span.events}
    assert events == {
        "queue": (0, {"duration_s": 0.5}),
        "load": (500_000_000, {"duration_s": 0.0}),
        "prefill": (500_000_000, {"duration_s": 1.0}),
        "first_token": (1_500_000_000, {}),
        "decode": (1_500_000_000, {"duration_s": 0.25}),
    }


@pytest.mark.parametrize(
    ("code", "number", "status"),
    [
        ("OK", 0, StatusCode.UNSET),
        ("CANCELLED", 1, StatusCode.UNSET),
        ("INVALID_ARGUMENT", 3, StatusCode.UNSET),
        ("RESOURCE_EXHAUSTED", 8, StatusCode.UNSET),
        ("DEADLINE_EXCEEDED", 4, StatusCode.ERROR),
        ("INTERNAL", 13, StatusCode.ERROR),
        ("UNAVAILABLE", 14, StatusCode.ERROR),
    ],
)
def test_only_server_faults_are_trace_errors(collector: Collector, code: str, number: int, status: StatusCode) -> None:
    """As OpenTelemetry's conventions for servers say; the span has the code in any case."""
    collector.tracer.record(ended(code, reason="NAN_LOGITS"))
    span = collector.span()
    assert (span.attributes or {})["rpc.grpc.status_code"] == number
    assert span.status.status_code is status
    assert span.status.description == ("NAN_LOGITS" if status is StatusCode.ERROR else None)


def test_trace_span_belongs_to_its_callers_trace(collector: Collector) -> None:
    """Which sends W3C's header; without one it is a trace of its own."""
    collector.tracer.record(ended(headers={"traceparent": f"00-{TRACE}-{PARENT}-01"}))
    collector.tracer.record(ended())
    first, second = collector.spans
    assert first.parent is not None
    assert (f"{first.parent.trace_id:032x}", f"{first.parent.span_id:016x}") == (TRACE, PARENT)
    assert second.parent is None


def _refusing_chat(_request: Any, _context: Any) -> AsyncIterator[str]:
    return raising(invalid("chat", f"is refused by the model's chat template: {SECRET}"))(_request, _context)


def _noting(request: Any, context: Any) -> AsyncIterator[str]:
    bind_contextvars(text=SECRET, error=SECRET)  # whatever else somebody may put into a log line one day
    return raising(ValueError(SECRET))(request, context)


@pytest.mark.parametrize("behaviour", [_refusing_chat, raising(ValueError(SECRET)), _noting])
async def test_error_text_is_not_in_a_trace_span(collector: Collector, behaviour: Callable[..., Any]) -> None:
    """They may quote the prompt: a template's refusal, an unexpected exception, a careless log field."""
    await serve(behaviour, FakeContext(), on_end=collector.tracer.record)
    span = collector.span()
    assert SECRET not in span.to_json()
    assert (span.attributes or {})["rpc.grpc.status_code"] in (3, 13)


@pytest.mark.parametrize(
    ("name", "value"),
    [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")],
)
def test_unknown_trace_exporter_is_refused(name: str, value: str) -> None:
    """Rather than sending nothing, or to another place."""
    with pytest.raises(ConfigError, match=f"{name} is '{value}', but spans can only be sent with"):
        CallTracer.from_environment({name: value})


def test_serve_without_the_tracing_extra_is_refused(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Neither a socket nor a log file is left."""
    monkeypatch.setattr(app, "logs", SimpleNamespace(configure=lambda *_: None, take_over=lambda: None))
    monkeypatch.setattr("os.chdir", lambda _: None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "daemon.server.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ConfigError) as caught:
        app.run(Config(socket=folder / "run" / "s", state_dir=folder, tracing=True))
    answer = exit_codes.explain(caught.value)
    assert answer == (
        (
            'tracing is on, but OpenTelemetry is not installed; set tracing to false, or install the extra "otel": '
            "in a checkout, run: uv tool install -c daemon/constraints.txt '.[otel]'"
        ),
        exit_codes.USAGE,
    )
    assert not (folder / "run" / "s").exists()
