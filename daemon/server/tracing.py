"""
OpenTelemetry spans: one for each call that has ended. Imported only if `tracing` is on.

The library's own interceptor for grpc.aio (opentelemetry-instrumentation-grpc 0.66b2) cannot be used. Outside of our
interceptor it iterates over responses, which ours writes. Inside it sees an error before it is a status: it reports
failed calls as OK, and records the text of the exception, which may quote a prompt.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from threading import Thread

from google.rpc import code_pb2
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode

from daemon import __version__
from daemon.server.call_record import CallRecord
from daemon.shared.config import ConfigError
from daemon.shared.log_fields import permitted

CLOSE_SECONDS = 2.0
"""Time of the last spans to reach the collector when the daemon ends; launchd does not wait for ever."""

_SUPPORTED = {
    "OTEL_TRACES_EXPORTER": "otlp",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
}
"""Variables that choose among exporters, and the only value that is supported."""

_TOLD = (
    "request_id",
    "model",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reason",
    "outcome",
    "error_id",
    "target",
    "dry_run",
)
"""Fields of the log line that a span has too: names and figures, no text that could quote a prompt."""

_STAGES = ("queue", "load", "lookup", "restore", "prefill", "decode")
"""Stages of a request, as in the message Timings. Each begins where the stage before it ended."""

_FAULTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
"""Codes that OpenTelemetry's conventions count as the server's faults. Other codes leave the span's status unset."""


class CallTracer:
    """
    Makes a span of each call.

    Args:
        provider: OpenTelemetry's provider, which sends them.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("mlx-sidecar", __version__)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> CallTracer:
        """
        Return a tracer that sends spans as the standard OTEL_* variables say.

        Raises:
            ConfigError: If they choose an exporter that is not supported.
        """
        for name, only in _SUPPORTED.items():
            if environ.get(name, only) not in (only, ""):
                raise ConfigError(f"{name} is {environ[name]!r}, but spans can only be sent with {only!r}.")
        own = Resource.create({"service.name": "mlx-sidecar", "service.version": __version__})
        provider = TracerProvider(resource=own.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def record(self, call: CallRecord) -> None:
        """Make the span of a call that has just ended."""
        end = time.time_ns()
        begin = end - _nanoseconds(call.duration)
        service, _, method = call.method.removeprefix("/").partition("/")
        attributes: dict[str, str | int | bool] = {
            "rpc.system": "grpc",
            "rpc.service": service,
            "rpc.method": method,
            "rpc.grpc.status_code": code_pb2.Code.Value(call.code),
        }
        fields = permitted(call.fields)
        attributes |= {f"mlx_sidecar.{name}": fields[name] for name in _TOLD if name in fields}
        span = self._tracer.start_span(
            f"{service}/{method}",
            context=extract(call.headers),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=begin,
        )
        for name, at, seconds in _events(fields):
            span.add_event(name, {} if seconds is None else {"duration_s": seconds}, begin + _nanoseconds(at))
        if call.code in _FAULTS:
            span.set_status(Status(StatusCode.ERROR, str(fields.get("reason", call.code))))
        span.end(end)

    def close(self) -> None:
        """Send the spans that wait. Spans that the collector does not take within two seconds are lost."""
        last = Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        last.start()
        last.join(CLOSE_SECONDS)


def _events(fields: Mapping[str, object]) -> Iterator[tuple[str, float, float | None]]:
    """Yield name, start in seconds from the begin of the call, and length of each stage that the log line has."""
    at = 0.0
    for stage in _STAGES:
        length = fields.get(f"{stage}_s")
        if isinstance(length, float):
            yield stage, at, length
            at += length
    first = fields.get("first_token_s")
    if isinstance(first, float):
        yield "first_token", first, None


def _nanoseconds(seconds: float) -> int:
    return round(1e9 * seconds)
