"""A daemon that plays a script: servicers of both kinds, a fake channel, and the errors of a real daemon."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc_testing
from google.protobuf.any_pb2 import Any as AnyProto
from google.protobuf.message import Message as Proto
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from mlx_sidecar import Client
from mlx_sidecar._channel import stub
from mlx_sidecar.v1 import sidecar_pb2 as pb
from mlx_sidecar.v1.sidecar_pb2_grpc import SidecarServiceServicer

SERVICE = pb.DESCRIPTOR.services_by_name["SidecarService"]

HANG = object()
"""A step that waits until the call is cancelled."""

PATIENCE = 10
"""Seconds after which a test that waits for something has failed."""


@dataclass
class Fail:
    """A step that ends the call with a status, unless there is no reason an ErrorInfo, and a word on retries."""

    code: str
    reason: str = ""
    message: str = "it failed"
    domain: str = "mlx-sidecar"
    metadata: dict[str, str] = field(default_factory=dict)
    details: list[Proto] = field(default_factory=list)
    pushback: str = ""

    def status(self) -> Any:
        """Return what `abort_with_status` takes."""
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=self.domain, metadata=self.metadata)
        details = [*([info] if self.reason else []), *self.details]
        status = status_pb2.Status(code=code_pb2.Code.Value(self.code), message=self.message)
        status.details.extend(_packed(detail) for detail in details)
        answer = rpc_status.to_status(status)
        pushed = (("grpc-retry-pushback-ms", self.pushback),) if self.pushback else ()
        return answer._replace(trailing_metadata=(*answer.trailing_metadata, *pushed))


def _packed(detail: Proto) -> AnyProto:
    packed = AnyProto()
    packed.Pack(detail)
    return packed


@dataclass
class Script:
    """What the daemon is asked, and what it answers: steps for each call, the last ones again and again."""

    calls: deque[list[Any]] = field(default_factory=lambda: deque([[]]))
    requests: list[Any] = field(default_factory=list)
    asked: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def answer(self, *calls: list[Any]) -> None:
        """Answer the next calls with these steps."""
        self.calls = deque(calls)

    def begin(self, request: Any) -> list[Any]:
        """Note a call and return its steps."""
        self.requests.append(request)
        self.asked.set()
        return self.calls.popleft() if len(self.calls) > 1 else self.calls[0]


class ThreadedServicer(SidecarServiceServicer):
    """Plays a script in a `grpc.server`."""

    def __init__(self, script: Script) -> None:
        self.script = script

    def _play(self, request: Any, context: Any) -> Iterator[Any]:
        steps = self.script.begin(request)
        # Before the first step: a call that is cancelled between two steps never gets to the next one.
        if HANG in steps:
            context.add_callback(self.script.cancelled.set)
        for step in steps:
            if isinstance(step, Fail):
                context.abort_with_status(step.status())
            elif step is HANG:
                assert self.script.cancelled.wait(PATIENCE)
                return
            else:
                yield step

    def GetOrLoad(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        return self._play(request, context)

    def Generate(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        return self._play(request, context)

    def Invalidate(self, request: Any, context: Any) -> Any:  # noqa: N802
        return next(self._play(request, context))

    def Stats(self, request: Any, context: Any) -> Any:  # noqa: N802
        return next(self._play(request, context))

    def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        return next(self._play(request, context))

    def Tokenize(self, request: Any, context: Any) -> Any:  # noqa: N802
        return next(self._play(request, context))

    def Embed(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        return self._play(request, context)


class AsyncServicer(SidecarServiceServicer):
    """Plays a script in a `grpc.aio.server`."""

    def __init__(self, script: Script) -> None:
        self.script = script

    async def _play(self, request: Any, context: Any) -> AsyncIterator[Any]:
        steps = self.script.begin(request)
        if HANG in steps:
            context.add_done_callback(lambda _: self.script.cancelled.set())
        for step in steps:
            if isinstance(step, Fail):
                await context.abort_with_status(step.status())
            elif step is HANG:
                await asyncio.Event().wait()
            else:
                yield step

    async def GetOrLoad(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for step in self._play(request, context):
            yield step

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for step in self._play(request, context):
            yield step

    async def Invalidate(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await anext(self._play(request, context))

    async def Stats(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await anext(self._play(request, context))

    async def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await anext(self._play(request, context))

    async def Tokenize(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await anext(self._play(request, context))

    async def Embed(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for step in self._play(request, context):
            yield step


class FakeDaemon:
    """A client over grpcio-testing's channel, and the daemon's end of it."""

    def __init__(self) -> None:
        self.channel = grpc_testing.channel([SERVICE], grpc_testing.strict_real_time())
        self.client = Client(Path("/nowhere/sidecar.sock"))
        self.client._channel = self.channel
        self.client._stub = stub(self.channel)
        self.client._connected = True

    def take_stream(self, method: str) -> tuple[Any, Any]:
        """Return the request of the next streaming call, and the call's other end."""
        _, request, rpc = self.channel.take_unary_stream(SERVICE.methods_by_name[method])
        return request, rpc

    def take_unary(self, method: str) -> tuple[Any, Any]:
        """Return the request of the next unary call, and the call's other end."""
        _, request, rpc = self.channel.take_unary_unary(SERVICE.methods_by_name[method])
        return request, rpc


def finish(rpc: Any, code: grpc.StatusCode = grpc.StatusCode.OK, details: str = "") -> None:
    """End a streaming call of the fake channel."""
    rpc.terminate((), code, details)


def started(**fields: Any) -> pb.GenerateResponse:
    """Return the first message of a generation."""
    return pb.GenerateResponse(seq=0, started=pb.Started(**fields))


def delta(seq: int, text: str, *token_ids: int) -> pb.GenerateResponse:
    """Return a piece of text."""
    return pb.GenerateResponse(seq=seq, delta=pb.Delta(text=text, token_ids=token_ids))


def finished(seq: int, **fields: Any) -> pb.GenerateResponse:
    """Return the last message of a generation."""
    return pb.GenerateResponse(seq=seq, finished=pb.Finished(reason=pb.FINISH_REASON_STOP, **fields))


def hello() -> list[Any]:
    """Return the steps of a whole generation, whose text is "Hello there"."""
    return [
        started(request_id="r1", model="m", prompt_tokens=5, cached_tokens=4),
        pb.GenerateResponse(seq=1, prefill=pb.PrefillProgress(done=5, total=5)),
        delta(2, "Hello", 7),
        delta(3, "", 8),
        delta(4, " there", 9, 10),
        finished(5, usage=pb.Usage(prompt_tokens=5, cached_tokens=4, completion_tokens=5)),
    ]
