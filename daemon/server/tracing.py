"""
Spans for OpenTelemetry: one for each call that has ended. Imported only if the configuration asks for it.

The library's own interceptor for grpc.aio (opentelemetry-instrumentation-grpc 0.66b2) cannot be used: outside of ours
it iterates over handlers, and ours write; inside of ours it sees an error before it is a status, so that it reports
failed calls as OK, and records the exception's words, which may quote a prompt.
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
"""At the daemon's end, spans that wait have this long to reach the collector; launchd does not wait for ever."""

_SUPPORTED = {
    "OTEL_TRACES_EXPORTER": "otlp",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
}
"""Variables that choose among exporters, and the one that there is."""

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
"""What a span tells of a call's log line: names and figures, nothing whose words a prompt could get into."""

_STAGES = ("queue", "load", "lookup", "restore", "prefill", "decode")
"""The spans of Timings, in their order; each begins where the one before it has ended."""

_FAULTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
"""Codes that are the server's fault, by OpenTelemetry's conventions; the others leave a span's status unset."""


class CallTracer:
    """
    Makes spans of calls.

    Args:
        provider: Where they go.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("mlx-sidecar", __version__)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> CallTracer:
        """
        Return one that sends spans as the standard OTEL_* variables say.

        Raises:
            ConfigError: If they ask for an exporter that there is not.
        """
        for name, only in _SUPPORTED.items():
            if environ.get(name, only) not in (only, ""):
                raise ConfigError(f"{name} is {environ[name]!r}, but spans can only be sent with {only!r}.")
        own = Resource.create({"service.name": "mlx-sidecar", "service.version": __version__})
        provider = TracerProvider(resource=own.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def record(self, call: CallRecord) -> None:
        """Make the span of a call that ends now."""
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
        """Send what waits, for a short time at most; what a collector does not take by then is lost."""
        last = Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        last.start()
        last.join(CLOSE_SECONDS)


def _events(fields: Mapping[str, object]) -> Iterator[tuple[str, float, float | None]]:
    """Yield name, seconds from the call's begin, and length of what the engine says it did; nothing if it did not."""
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
