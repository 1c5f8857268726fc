"""The gRPC servicer: one method for each RPC, which checks, admits and carries one call."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import closing
from functools import partial
from itertools import count
from typing import Any

import grpc
from structlog.contextvars import bind_contextvars

from daemon.server.admission import Admission
from daemon.server.stats import Stats
from daemon.server.supervision.call_router import CallRouter
from daemon.server.validation import MAX_NAME_BYTES, check_generate, check_invalidate, check_load
from daemon.shared.durations import seconds
from daemon.shared.model_names import make_plain
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb
from mlx_sidecar.v1 import sidecar_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class SidecarService(sidecar_pb2_grpc.SidecarServiceServicer):
    """
    The four RPCs. Errors leave as `SidecarError`; the interceptor turns them into statuses.

    Args:
        router: The way to the engine.
        admission: Gives places in the queue.
        stats: Answers Stats.
    """

    def __init__(self, router: CallRouter, admission: Admission, stats: Stats) -> None:
        self._router = router
        self._admission = admission
        self._stats = stats

    async def GetOrLoad(  # noqa: N802
        self, request: pb.GetOrLoadRequest, context: Context
    ) -> AsyncIterator[pb.GetOrLoadResponse]:
        """Load a model; see the proto."""
        bind_contextvars(model=_name(request.model))
        check_load(request)
        make_plain(request)
        with self._admission.place() as ticket:
            self._admission.began(ticket)  # a load never counts as waiting: max_queue is about prompts
            with closing(self._router.open(ipc.Command(load=request))) as call:
                ticket.drop = call.fail
                async for event in call.events():
                    _note_load(event.load)
                    yield event.load

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        """Generate a completion; see the proto."""
        bind_contextvars(model=_name(request.model))
        check_generate(request)
        make_plain(request)
        await asyncio.sleep(0)  # here and below: other calls get their turn between the stages of a large request
        request.request_id = request.request_id or f"req-{secrets.token_hex(8)}"
        bind_contextvars(request_id=request.request_id)
        command = ipc.Command(generate=request)
        await asyncio.sleep(0)
        with self._admission.place() as ticket, closing(self._router.open(command)) as call:
            ticket.drop = call.fail
            call.on_stall = partial(self._admission.leave, ticket)
            seq, tokens = count(), 0
            async for event in call.events():
                if event.HasField("accepted"):
                    self._admission.tokenised(ticket, event.accepted.prompt_tokens)
                    bind_contextvars(prompt_tokens=event.accepted.prompt_tokens)
                    continue
                self._admission.began(ticket)
                tokens += event.generate.finished.usage.completion_tokens
                _note_generate(event.generate, tokens)
                if event.generate.HasField("finished") and not event.more:
                    self._stats.latency.finished(event.generate.finished)  # once a request: that of its last sample
                event.generate.seq = next(seq)
                yield event.generate

    async def Invalidate(self, request: pb.InvalidateRequest, context: Context) -> pb.InvalidateResponse:  # noqa: N802
        """Drop weights or prefixes; see the proto."""
        check_invalidate(request)
        make_plain(request)
        bind_contextvars(target=request.WhichOneof("target"), dry_run=request.dry_run)
        answer = pb.InvalidateResponse()
        with closing(self._router.open(ipc.Command(invalidate=request))) as call:
            async for event in call.events():
                answer = event.invalidate
        bind_contextvars(models=list(answer.models), blocks=answer.blocks, bytes_freed=answer.bytes_freed)
        return answer

    async def Stats(self, request: pb.StatsRequest, context: Context) -> pb.StatsResponse:  # noqa: N802
        """Return the state of the daemon; see the proto."""
        return self._stats.response(request)


def _name(model: str) -> str:
    """Return a model's name for the log, cut to the longest valid name; it is not checked yet."""
    return model[:MAX_NAME_BYTES]


def _note_load(event: pb.GetOrLoadResponse) -> None:
    """Add the fields of a load to the call's log line."""
    if event.HasField("ready"):
        outcome = pb.LoadOutcome.Name(event.ready.outcome).removeprefix("LOAD_OUTCOME_").lower()
        bind_contextvars(outcome=outcome, load_s=_rounded(seconds(event.ready.load_time)))


def _note_generate(event: pb.GenerateResponse, tokens: int) -> None:
    """Add the fields of an answer to the call's log line. `tokens` are those of all samples that have ended."""
    if event.HasField("started"):
        started = event.started
        bind_contextvars(prompt_tokens=started.prompt_tokens, cached_tokens=started.cached_tokens)
        if started.HasField("miss"):
            bind_contextvars(**_miss(started.miss))
    elif event.HasField("finished"):
        finished = event.finished
        spans = {f"{field.name}_s": _rounded(seconds(value)) for field, value in finished.timings.ListFields()}
        reason = pb.FinishReason.Name(finished.reason).removeprefix("FINISH_REASON_").lower()
        bind_contextvars(completion_tokens=tokens, reason=reason, **spans)


def _miss(miss: pb.Miss) -> dict[str, Any]:
    """Return the log fields of a miss: positions and counts, nothing of a prompt."""
    fields: dict[str, Any] = {"miss": pb.MissReason.Name(miss.reason).removeprefix("MISS_REASON_").lower()}
    fields["miss_token"] = miss.token
    if miss.reason == pb.MISS_REASON_RESUME_POINT:
        fields["miss_resume_token"] = miss.resume_token
    if miss.differs:
        parts = (pb.NamespacePart.Name(part).removeprefix("NAMESPACE_PART_").lower() for part in miss.differs)
        fields["miss_differs"] = ",".join(parts)
    for name in ("message", "character"):
        if miss.HasField(name):
            fields[f"miss_{name}"] = getattr(miss, name)
    if miss.HasField("seen"):
        fields["miss_seen_s"] = round(seconds(miss.seen), 3)
    return fields


def _rounded(value: float) -> float:
    return round(value, 6)
