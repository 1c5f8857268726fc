"""No text of a request is in a log, a span, a file or another caller's answer, for each field and failure."""

from __future__ import annotations

import os
import queue
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message as Proto
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from mlx_sidecar.v1 import sidecar_pb2 as pb
from mlx_sidecar.v1.sidecar_pb2_grpc import SidecarServiceStub
from tests.faults.raw import SERVICE, Refusal
from tests.support.daemons import SERVE, RunningDaemon, wait_until
from tests.support.models import copy_of_embedded

CANARY = "zyxkanarienvogelxyz"
NUMBER = 1_987_654_321
"""A token id that no model has; it tells as much as a word."""
NAMES = {"model", "adapter", "revision", "request_id", "draft_model"}
"""Fields with names, which may be logged; the API says so."""
PATIENCE = 120.0

Path_ = tuple[FieldDescriptor, ...]

SHAPES = (
    f"the {CANARY} sings",
    CANARY,
    f"{CANARY} " * 4_000,
    f'{{"{CANARY}": ',
    f'{{"type": "object", "{CANARY}": 1}}',
    f'{{"type": "{CANARY}"}}',
    f'{{"type": "object", "properties": {{"{CANARY}": {{"not": {{}}}}}}}}',
    f'{{"$ref": "#/{CANARY}"}}',
    f"({CANARY}",
    f"(?={CANARY})",
    f"start: {CANARY}",
    f'start: "{CANARY}',
    f"%{CANARY}\nstart: x",
    f"\x00{CANARY}\x1b[31m\u2028",
)
"""A text, too much of it, and what parsers of JSON, schemas, expressions and grammars stumble over and quote."""


def paths(kind: Any, before: Path_ = ()) -> Iterator[Path_]:
    """Yield the path to each field of a message that can hold a caller's content: texts, bytes, token ids."""
    for field in kind.fields:
        if field in before:
            continue
        if field.message_type is not None:
            yield from paths(field.message_type, (*before, field))
        elif field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_UINT32):
            yield (*before, field)


def put(message: Proto, path: Path_, text: str) -> None:
    """Write a text into the field at the end of a way, or the number where it takes numbers."""
    at: Any = message
    for field in path[:-1]:
        inner = getattr(at, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            if path[-1].type == FieldDescriptor.TYPE_UINT32:
                inner[NUMBER] = 0.5
            else:
                inner.update({text: "1"} if path[-1].name == "key" else {"name": text})
            return
        repeated = hasattr(inner, "append")
        at = (inner[0] if len(inner) else inner.add()) if repeated else inner
        if not repeated:
            at.SetInParent()
    last = path[-1]
    value = {FieldDescriptor.TYPE_BYTES: text.encode(), FieldDescriptor.TYPE_UINT32: NUMBER}.get(last.type, text)
    if hasattr(getattr(at, last.name), "append"):
        getattr(at, last.name).append(value)
    else:
        setattr(at, last.name, value)


def chat(**fields: Any) -> pb.Chat:
    """Return a conversation with a tool."""
    tools = [pb.Tool(name="look", parameters_json='{"type": "object"}')]
    return pb.Chat(messages=[pb.ChatMessage(role="user", content=f"the {CANARY} asks")], tools=tools, **fields)


def bases(folder: Path) -> dict[str, list[Proto]]:
    """Return requests, by their method, in which each of their fields means something; some fail by themselves."""
    quotes = copy_of_embedded(folder, "quotes")
    (quotes / "chat_template.jinja").write_text("{{ raise_exception('sorry: ' ~ messages ~ tools) }}")
    crashes = copy_of_embedded(folder, "crashes")
    (crashes / "chat_template.jinja").write_text("{{ messages[0].content + 1 }}")
    plain = pb.GenerateRequest(model="embedded", text=f"the {CANARY} asks", max_tokens=2)
    talk = pb.GenerateRequest(model="embedded", chat=chat(), max_tokens=2)
    return {
        "Generate": [
            plain,
            talk,
            pb.GenerateRequest(model="embedded", chat=chat(tool_choice=pb.TOOL_CHOICE_REQUIRED), max_tokens=2),
            pb.GenerateRequest(model=str(quotes), chat=chat(), max_tokens=2),
            pb.GenerateRequest(model=str(crashes), chat=chat(), max_tokens=2),
            pb.GenerateRequest(model="embedded", text=CANARY, sampling=pb.Sampling(top_p=7.0)),
        ],
        "GetOrLoad": [pb.GetOrLoadRequest(model="embedded")],
        "Invalidate": [
            pb.InvalidateRequest(prefix=pb.PrefixTarget(model="embedded", text=CANARY), dry_run=True),
            pb.InvalidateRequest(model=pb.ModelTarget(model="nobody/knows", weights=True)),
        ],
        "Stats": [pb.StatsRequest()],
    }


def attempts(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield a method and a request for each field, each form of a text and each way to fail."""
    for method, requests in bases(folder).items():
        for base in requests:
            yield method, base.SerializeToString()
            yield method, base.SerializeToString() + b"\xfa\x7f\x13" + CANARY.encode()  # a field that is not known
            yield method, base.SerializeToString() + b"\x0a\x7f" + CANARY.encode()  # and one that is cut off
            for path in paths(base.DESCRIPTOR):
                parsed = path[-1].name.endswith("json") or path[-1].name in ("json_schema", "regex", "grammar")
                for shape in SHAPES if parsed else SHAPES[:4]:
                    request = type(base)()
                    request.CopyFrom(base)
                    if path[-1].name not in NAMES:
                        put(request, path, shape)
                    yield method, request.SerializeToString()


def test_walk_finds_every_text_field_of_a_request() -> None:
    """Also in lists, in maps and in inner messages; new fields of the API are found too."""
    found = {".".join(field.name for field in path) for path in paths(pb.GenerateRequest.DESCRIPTOR)}
    assert {
        "text",
        "tokens.ids",
        "stop.strings",
        "cache.salt",
        "sampling.logit_bias.key",
        "chat.messages.tool_calls.arguments_json",
        "chat.tools.parameters_json",
        "response_format.grammar",
    } <= found
    for path in paths(pb.GenerateRequest.DESCRIPTOR):
        request = pb.GenerateRequest()
        put(request, path, CANARY)
        assert has_canary(str(request).encode()), path


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that arrive, as bytes."""

    def __init__(self) -> None:
        self.arrived: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Take a batch of spans."""
        self.arrived.put(request.SerializeToString())
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture(name="collector")
def _collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    server.start()
    yield collector
    server.stop(0).wait()


def told(error: grpc.RpcError) -> str:
    """Return the words of an error, as its caller has them."""
    return f"{error.details()}"


def ask_all(daemon: RunningDaemon, folder: Path) -> tuple[Counter[str], int]:
    """Make every attempt; return how often each status was the end, and in how many errors the canary was quoted."""
    ends: Counter[str] = Counter()
    quoted = 0
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        for method, data in attempts(folder):
            call: Any = channel.unary_stream(SERVICE + method)
            try:
                list(call(data, timeout=PATIENCE))
                ends["OK"] += 1
            except grpc.RpcError as error:
                ends[error.code().name] += 1
                quoted += CANARY in told(error) or str(NUMBER) in told(error)
        beside(channel)
    return ends, quoted


def beside(channel: grpc.Channel) -> None:
    """Ask health and reflection for the canary, and cut calls off in their middle."""
    health, reflection = HealthStub(channel), ServerReflectionStub(channel)
    for shape in SHAPES:
        with pytest.raises(grpc.RpcError):
            health.Check(health_pb2.HealthCheckRequest(service=shape), timeout=PATIENCE)
        for path in paths(reflection_pb2.ServerReflectionRequest.DESCRIPTOR):
            request = reflection_pb2.ServerReflectionRequest()
            if path[-1].type == FieldDescriptor.TYPE_STRING:
                put(request, path, shape)
                with suppress(grpc.RpcError):
                    list(reflection.ServerReflectionInfo(iter([request]), timeout=PATIENCE))
    held = pb.GenerateRequest(model="embedded", text=f"the {CANARY} sings", max_tokens=2000)
    held.stop.ignore_eos = True
    stub = SidecarServiceStub(channel)
    for timeout in (None, 0.2):
        stream = stub.Generate(held, timeout=timeout)
        next(stream)
        if timeout is None:
            stream.cancel()
        with pytest.raises(grpc.RpcError):
            list(stream)


def die_with_a_call(daemon: RunningDaemon) -> None:
    """Kill the engine while it answers, and wait for the next one."""
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        stub = SidecarServiceStub(channel)
        request = pb.GenerateRequest(model="embedded", text=f"the {CANARY} sings", max_tokens=2000)
        request.stop.ignore_eos = True
        stream = stub.Generate(request)
        next(stream)
        os.kill(stub.Stats(pb.StatsRequest()).engine.pid, signal.SIGSEGV)
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
        assert Refusal(caught.value).reason == "ENGINE_RESTARTED"
        wait_until(lambda: stub.Stats(pb.StatsRequest()).engine.restarts == 1, "the engine is replaced")


@pytest.mark.parametrize("level", ["debug", *(pytest.param(one, marks=pytest.mark.slow) for one in ("info", "error"))])
def test_no_request_text_is_logged_traced_or_kept(
    start_daemon: Callable[..., RunningDaemon],
    folder: Path,
    collector: Collector,
    capfd: pytest.CaptureFixture[str],
    level: str,
) -> None:
    """Every field of every request, in requests that succeed, are refused, are cut off, or are there at a crash."""
    daemon = start_daemon(SERVE, log_level=level, tracing="true")
    models = folder / "models"
    models.mkdir()
    with daemon.client() as client:
        client.load("embedded")
    ends, quoted = ask_all(daemon, models)
    assert {"OK", "INVALID_ARGUMENT"} <= ends.keys()
    assert ends["INVALID_ARGUMENT"] > 100
    assert quoted > 20, "errors that quote are told to their callers; else this test would show nothing"
    die_with_a_call(daemon)
    with daemon.client() as client:
        assert not has_canary(repr(client.stats()).encode()), "another caller reads it"
    assert daemon.stop() == 0
    files = [path for path in folder.rglob("*") if path.is_file() and models not in path.parents]
    assert folder / "daemon.log" in files
    for path in files:
        assert not has_canary(path.read_bytes()), first_line_with_it(path)
    assert not has_canary("".join(capfd.readouterr()).encode())
    spans = b""
    while not collector.arrived.empty():
        spans += collector.arrived.get()
    assert b"Generate" in spans
    assert not has_canary(spans)
    lines = daemon.log()
    if level != "error":  # both events are told below it
        bare = [line for line in lines if line["event"] == "engine_output"]
        assert bare[0]["line"] == "Fatal Python error: Segmentation fault", "what it writes when it crashes"
        assert all("line" in line for line in bare)
        refused = [line for line in lines if line.get("code") == "INVALID_ARGUMENT"]
        assert len(refused) > 100
        silent = [line for line in refused if not line.get("field") and line["reason"] != "CONTEXT_LENGTH_EXCEEDED"]
        assert silent == []
        assert not any("dropped" in line for line in refused), "an operator is told all that may be told"


def has_canary(data: bytes) -> bool:
    """Tell whether data has the canary, as a text or as the number."""
    return CANARY.encode() in data or str(NUMBER).encode() in data


def first_line_with_it(path: Path) -> str:
    """Return where a file has the canary."""
    return next(f"{path}: {line[:500]!r}" for line in path.read_bytes().splitlines() if has_canary(line))
