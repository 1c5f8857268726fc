"""The gRPC servicer: one method for each RPC, which checks, admits and carries one call."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, closing
from functools import partial
from itertools import count
from typing import Any

import grpc
from structlog.contextvars import bind_contextvars

from daemon.server.admission import Admission, Place
from daemon.server.callers import Caller, Callers
from daemon.server.field_checks import MAX_NAME_BYTES
from daemon.server.generate_validation import check_generate
from daemon.server.group.routes import OpenCall, Routes
from daemon.server.stats import Stats
from daemon.server.validation import check_embed, check_invalidate, check_list_models, check_load, check_tokenize
from daemon.shared.durations import seconds
from daemon.shared.model_names import Named, make_plain
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb
from mlx_sidecar.v1 import sidecar_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class SidecarService(sidecar_pb2_grpc.SidecarServiceServicer):
    """
    The RPCs. Errors leave as `SidecarError`; the interceptor turns them into statuses.

    Args:
        routes: The ways to the engines.
        admission: Gives places in the queue.
        callers: Tells which process a call came from.
        stats: Answers Stats.
        aliases: The models that short names stand for.
    """

    def __init__(
        self,
        routes: Routes,
        admission: Admission,
        callers: Callers,
        stats: Stats,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self._routes = routes
        self._admission = admission
        self._callers = callers
        self._stats = stats
        self._aliases = aliases or {}

    async def GetOrLoad(  # noqa: N802
        self, request: pb.GetOrLoadRequest, context: Context
    ) -> AsyncIterator[pb.GetOrLoadResponse]:
        """Load a model; see the proto."""
        caller = self._caller(context)
        bind_contextvars(model=_name(request.model))
        check_load(request)
        self._resolve(request)
        with self._admission.admit(caller) as place:
            self._admission.began(place)  # a load never counts as waiting: max_queue is about prompts
            with closing(self._routes.open(ipc.Command(load=request))) as call:
                place.drop = call.fail
                async for event in call.events():
                    _note_load(event.load)
                    yield event.load

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        """Generate a completion; see the proto."""
        caller = self._caller(context)
        request.request_id = request.request_id or f"req-{secrets.token_hex(8)}"
        bind_contextvars(model=_name(request.model), request_id=request.request_id)
        check_generate(request)
        self._resolve(request)
        await asyncio.sleep(0)  # here and below: other calls get their turn between the stages of a large request
        command = ipc.Command(generate=request, program=caller.program)
        await asyncio.sleep(0)
        with self._admission.admit(caller) as place, closing(self._routes.open(command)) as call:
            seq, tokens = count(), 0
            async for event in self._running(place, call):
                tokens += event.generate.finished.usage.completion_tokens
                _note_generate(event.generate, tokens)
                if event.generate.HasField("finished") and not event.more:
                    self._stats.latency.finished(event.generate.finished)  # once a request: that of its last sample
                event.generate.seq = next(seq)
                yield event.generate

    async def Invalidate(self, request: pb.InvalidateRequest, context: Context) -> pb.InvalidateResponse:  # noqa: N802
        """Drop weights or prefixes; see the proto."""
        self._caller(context)
        check_invalidate(request)
        self._resolve(request)
        bind_contextvars(target=request.WhichOneof("target"), dry_run=request.dry_run)
        answer = pb.InvalidateResponse()
        with ExitStack() as held:
            opened = await self._routes.everywhere(ipc.Command(invalidate=request))
            calls = [held.enter_context(closing(call)) for call in opened]
            for call in calls:
                async for event in call.events():
                    _add(answer, event.invalidate)
        bind_contextvars(models=list(answer.models), blocks=answer.blocks, bytes_freed=answer.bytes_freed)
        return answer

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> AsyncIterator[pb.EmbedResponse]:  # noqa: N802
        """Turn texts into vectors; see the proto."""
        caller = self._caller(context)
        request.request_id = request.request_id or f"req-{secrets.token_hex(8)}"
        bind_contextvars(model=_name(request.model), request_id=request.request_id)
        check_embed(request)
        self._resolve(request)
        bind_contextvars(texts=len(request.texts))
        await asyncio.sleep(0)
        command = ipc.Command(embed=request, program=caller.program)
        with self._admission.admit(caller) as place, closing(self._routes.open(command)) as call:
            async for event in self._running(place, call):
                if event.embed.HasField("finished"):
                    bind_contextvars(cached_tokens=event.embed.finished.usage.cached_tokens)
                yield event.embed

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:  # noqa: N802
        """Convert between text and token ids; see the proto."""
        caller = self._caller(context)
        bind_contextvars(model=_name(request.model))
        check_tokenize(request)
        self._resolve(request)
        await asyncio.sleep(0)
        answer = pb.TokenizeResponse()
        with self._admission.admit(caller) as place:
            self._admission.began(place)  # it never waits for a slot of the model
            with closing(self._routes.open(ipc.Command(tokenize=request))) as call:
                place.drop = call.fail
                async for event in call.events():
                    answer = event.tokenize
        bind_contextvars(prompt_tokens=answer.count)
        return answer

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:  # noqa: N802
        """List the models of this machine; see the proto."""
        self._caller(context)
        check_list_models(request)
        answer = pb.ListModelsResponse()
        with closing(self._routes.open(ipc.Command(list_models=request))) as call:
            async for event in call.events():
                answer = event.list_models
        return answer

    async def Stats(self, request: pb.StatsRequest, context: Context) -> pb.StatsResponse:  # noqa: N802
        """Return the state of the daemon; see the proto."""
        return self._stats.response(request)

    async def _running(self, place: Place, call: OpenCall) -> AsyncIterator[ipc.Event]:
        """
        Yield the events of a call that waits for a slot of its model.

        An `accepted` event tells the size of its prompt. It is not passed on, as the call still waits.
        """
        place.drop = call.fail
        call.on_stall = partial(self._admission.leave, place)
        async for event in call.events():
            if event.HasField("accepted"):
                self._admission.tokenised(place, event.accepted.prompt_tokens)
                bind_contextvars(prompt_tokens=event.accepted.prompt_tokens)
                continue
            self._admission.began(place)
            yield event

    def _resolve(self, request: Named) -> None:
        """Replace the names in a request by those that the engine knows models by."""
        make_plain(request, self._aliases)
        if not isinstance(request, pb.InvalidateRequest):
            bind_contextvars(model=request.model)

    def _caller(self, context: Context) -> Caller:
        """Return the process that a call came from, for its log line as well."""
        caller = self._callers.arrived(context.invocation_metadata() or ())
        if caller.pid:
            bind_contextvars(caller=caller.program, caller_pid=caller.pid)
        return caller


def _add(answer: pb.InvalidateResponse, more: pb.InvalidateResponse) -> None:
    """Add what another engine dropped."""
    answer.models.extend(more.models)
    answer.blocks += more.blocks
    answer.bytes_freed += more.bytes_freed
    answer.bytes_in_use += more.bytes_in_use


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
        if started.warnings:
            bind_contextvars(warnings=len(started.warnings))
        if started.disk_tokens:
            bind_contextvars(disk_tokens=started.disk_tokens)
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
