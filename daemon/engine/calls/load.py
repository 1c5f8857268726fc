"""A GetOrLoad call: finds a model, and describes it from its files or loads its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from daemon.cache.context_length import MOST, most_positions
from daemon.cache.identity import ModelSource
from daemon.cache.load import Progress, Ticket
from daemon.cache.mlx.loader import LoadedModel
from daemon.cache.resolver import Wanted
from daemon.engine.background.task import TEMPLATE, Task, Waiting, already
from daemon.engine.calls.driver import Call, Services, leased
from daemon.engine.calls.misnamed import retry_misnamed
from daemon.engine.execution.bill import head_bytes
from daemon.engine.execution.request import Speculation
from daemon.engine.execution.row_bills import BilledRow, prompt_bill
from daemon.engine.execution.speculation import guessable, has_head
from daemon.engine.memory.memory_budget import DECODE_ROOM
from daemon.engine.prompt.tokenizer import Tokenizer
from daemon.engine.reporting import model_info
from daemon.shared.durations import duration, seconds
from daemon.shared.errors import Reason, SidecarError, invalid
from mlx_sidecar.v1 import sidecar_pb2 as pb

_OF_THE_HUB = (
    Reason.MODEL_NOT_CACHED, Reason.MODEL_NOT_FOUND, Reason.MODEL_GATED, Reason.MODEL_NOT_RESPONDING,
)  # fmt: skip
"""Why the Hub may give nothing newer, which is no fault of a model that is here."""


def load(services: Services, call_id: int, request: pb.GetOrLoadRequest) -> Call:
    """
    Serve a GetOrLoad call: `progress` events, then `ready`.

    Raises:
        SidecarError: INVALID_ARGUMENT at `pin` if no model stays in memory, or at `context_length` if the model has
            fewer positions; or why the model cannot be had.
    """
    began = services.clock()
    warnings = (yield from _update(services, call_id, request)) if request.update else []
    source, result = yield from retry_misnamed(lambda: _find_and_load(services, call_id, request))
    if isinstance(result, Ticket):
        try:
            context_length = _keep_choices(services, request, result.name)
            info = _describe(result, context_length, services.clock() - began)
            assert result.lease is not None
            info.max_request_tokens = _most_tokens(services, result.lease.model, info.context_length)
            if source is not None:
                model_info.add_own(info, source)
        finally:
            result.cancel()  # before the answer: the figures that go out with it shall not count this use
    else:
        info = result
    info.warnings.extend(warnings)
    services.outbox.load(call_id, pb.GetOrLoadResponse(ready=info))


def _update(services: Services, call_id: int, request: pb.GetOrLoadRequest) -> Waiting[list[str]]:
    """Fetch what is new of the model, if it is the Hub's. Return why that was not possible; nothing if it was."""
    wanted = replace(_wanted(request), estimate=True, update=True)
    try:
        yield from services.lookup.find(wanted, partial(already, request.model), _reporter(services, call_id))
    except SidecarError as error:
        if error.reason not in _OF_THE_HUB:
            raise
        if error.reason is Reason.MODEL_NOT_CACHED:
            return [error.message]
        return [f"{request.model} was not updated: {error.message}"]
    return []


def _find_and_load(
    services: Services, call_id: int, request: pb.GetOrLoadRequest
) -> Waiting[tuple[ModelSource | None, Ticket[LoadedModel] | pb.ModelInfo]]:
    """Return the model and its ticket, or its description if that is all that the call asks for."""
    report = _reporter(services, call_id)
    found = yield from services.lookup.find(_wanted(request), partial(already, request.model), report)
    if isinstance(found, int):
        return None, model_info.planned(request.model, found)
    _check_length(request.context_length, most_positions(found.config))
    if request.estimate_only:
        chosen = services.overrides.context_length(found.name, request.adapter)
        return found, model_info.estimated(replace(found, context_override=chosen))
    if not (request.skip_warmup or services.models.contains(found.key)):
        # Nothing waits for it, and its error is that of the first prompt.
        services.background.run(services.with_tokenizer(found, partial(_warm_up, found)))
    return found, (yield from leased(_begin(services, request, found), report))


def _wanted(request: pb.GetOrLoadRequest) -> Wanted:
    return Wanted(request.model, request.revision, request.adapter, request.allow_download, request.estimate_only)


def _reporter(services: Services, call_id: int) -> Callable[[Progress], None]:
    """Return what sends the progress of a call."""
    return lambda progress: services.outbox.load(call_id, model_info.progress(progress))


def _warm_up(source: ModelSource, tokenizer: Tokenizer) -> Task[None] | None:
    """Find out what the first conversation needs to know: of the tokenizer here, of its template in a worker."""
    tokenizer.warm_up()

    def tried() -> None:
        tokenizer.shape(tools=False)

    return Task(TEMPLATE, source.name, source.path, tried) if tokenizer.has_chat_template else None


def _check_length(wanted: int, most: int | None) -> None:
    if most is not None and wanted > most:
        raise invalid(
            "context_length", f"is {wanted}, and the model has learned {most} positions; choose at most {most}"
        )


def _begin(services: Services, request: pb.GetOrLoadRequest, source: ModelSource) -> Ticket[LoadedModel]:
    """Ask for the weights."""
    if request.pin and not services.models.limits.budget_bytes:
        raise invalid("pin", "can keep nothing: model_cache_mb is 0")
    return services.load(
        source,
        request.adapter,
        pin=request.pin if request.HasField("pin") else None,
        ttl=seconds(request.ttl) if request.HasField("ttl") else None,
        skip_warmup=request.skip_warmup,
    )


def _keep_choices(services: Services, request: pb.GetOrLoadRequest, name: str) -> int | None:
    """Keep what the call chose for a model that is ready now, and return the context length that was ever chosen."""
    if request.HasField("context_length"):
        services.overrides.choose_context_length(name, request.adapter, request.context_length)
    services.overrides.done(name, request.adapter)
    return services.overrides.context_length(name, request.adapter)


def _describe(ticket: Ticket[LoadedModel], context_length: int | None, passed: float) -> pb.ModelInfo:
    """Describe a model that is ready, and unless it was in memory how long that took, in seconds."""
    assert ticket.lease is not None
    model = ticket.lease.model
    info = model_info.loaded(model, ticket.name, context_length, ticket.outcome)
    info.evicted.extend(ticket.evicted)
    if info.outcome != pb.LOAD_OUTCOME_HIT:
        info.load_time.CopyFrom(duration(passed))
        info.warmup_time.CopyFrom(duration(model.warmup_time))
    return info


def _most_tokens(services: Services, model: LoadedModel, context_length: int) -> int:
    """Return how many tokens of prompt and completion fit beside weights; idle models and prefixes make room."""
    others = [entry for entry in services.models.entries() if entry.key != model.source.key]
    stay = [entry.nbytes for entry in others if entry.pinned or not services.models.limits.evict_on_memory_pressure]
    fed = 1 + guessable(Speculation.AUTO, model.guess_exactness, 0)
    headed = has_head(Speculation.AUTO, model, alone=True)

    def need(tokens: int) -> int:
        room = min(tokens - 1, DECODE_ROOM)
        own = prompt_bill([model], BilledRow(tokens - room, room, fed=fed)).total
        return own + head_bytes(model, tokens * headed)

    longest = services.budget.longest(need, context_length or MOST, model.nbytes + sum(stay))
    return longest if longest > 1 else 0  # prompt and answer have a token each
