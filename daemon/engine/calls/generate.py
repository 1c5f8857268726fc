"""A Generate call until its request runs: find the model, prepare the prompt, load the weights, join the runner."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

from daemon.cache.entry import ModelLease
from daemon.cache.identity import ModelSource
from daemon.cache.load import LoadOutcome, Progress, Ticket
from daemon.cache.mlx.loader import LoadedModel
from daemon.cache.resolver import Wanted
from daemon.engine.background.task import PROMPT, TEMPLATE, Task, Waiting
from daemon.engine.calls.draft import DEFAULT_TOKENS, DraftModel, check_takes_back, draft_model
from daemon.engine.calls.driver import Call, Services, leased
from daemon.engine.calls.misnamed import retry_misnamed
from daemon.engine.calls.model_lookup import Found
from daemon.engine.calls.options import requests_of, sampling_of
from daemon.engine.calls.prefix_reuse import kv_of, read_ahead, restored
from daemon.engine.execution.answer import Answer
from daemon.engine.execution.bill import head_bytes
from daemon.engine.execution.request import Request, Speculation
from daemon.engine.execution.row_bills import BilledRow, prompt_bill
from daemon.engine.execution.sampling import row_vectors
from daemon.engine.execution.sequence import Sequence, Times
from daemon.engine.execution.sequence_kv import DraftKV
from daemon.engine.execution.speculation import guessable, has_head, head_of
from daemon.engine.memory.memory_budget import DECODE_ROOM, scoring_need
from daemon.engine.prompt.chat_templates import local_now
from daemon.engine.prompt.preparation import PreparedRequest, Rendered, prepare_request, render
from daemon.engine.prompt.tokenizer import Tokenizer
from daemon.kv.disk.restores import Restore
from daemon.shared.errors import invalid
from daemon.shared.readings import agreed
from mlx_sidecar.v1 import sidecar_pb2 as pb


@dataclass(slots=True)
class _CallState:
    """
    What a call keeps over all of its attempts to find and load its model.

    Attributes:
        times: The times that go into the answer.
        restore: What the prompt has on the disk.
        draft_restore: What it has there under the draft model.
        asked: When the weights were first asked for; None before.
    """

    times: Times
    restore: Restore
    draft_restore: Restore
    asked: float | None = None


def generate(services: Services, call_id: int, request: pb.GenerateRequest, program: str = "") -> Call:
    """
    Serve a Generate call until the runner has its request: `accepted` is sent, all further events are the runner's.

    Args:
        services: The parts that it uses.
        call_id: Its call.
        request: The validated request.
        program: The program that calls; programs take turns.

    Raises:
        SidecarError: REQUEST_EXCEEDS_MEMORY; or why a model cannot be had, or the prompt cannot be used.
    """
    state = _CallState(Times(services.clock()), services.disk.restore(), services.disk.restore())
    _refuse_samples(services, request)
    with ExitStack() as held:
        held.enter_context(state.restore)
        held.enter_context(state.draft_restore)
        prepared, ticket = yield from retry_misnamed(lambda: _prepare_and_load(services, call_id, request, state))
        held.callback(ticket.cancel)
        assert ticket.lease is not None
        assert state.asked is not None
        _refuse_unable(services, request, ticket.lease.model)
        draft: DraftModel | None = None
        if request.draft_model:
            on_found = partial(read_ahead, services, request, state.draft_restore, tokens=prepared.prompt.tokens)
            draft = yield from draft_model(services, request, prepared, ticket.lease.model, on_found)
            held.callback(draft.lease.release)
        services.overrides.done(ticket.name, request.adapter)
        if ticket.outcome is not LoadOutcome.HIT:
            state.times.load = services.clock() - state.asked
        _refuse_if_never(services, request, prepared, [ticket.lease, *([] if draft is None else [draft.lease])])
        yield from restored(services, request.cache.salt, [state.restore], ticket.lease.model)
        if draft is not None:
            yield from restored(services, request.cache.salt, [state.draft_restore], draft.lease.model)
        samples = requests_of(call_id, request, prepared, program)
        sequence = sequence_of(services, request, samples, state.times, ticket.lease, prepared)
        sequence.kv.in_memory = state.restore.in_memory
        _add_guessers(services, request, sequence, draft, state)
        services.runner.add(sequence)
        held.pop_all()  # the sequence gives the leases back


def _prepare_and_load(
    services: Services, call_id: int, request: pb.GenerateRequest, state: _CallState
) -> Waiting[tuple[PreparedRequest, Ticket[LoadedModel]]]:
    """Find the model and prepare the prompt on other threads, then wait for the weights."""

    def delayed(_: Progress) -> None:
        if services.alone:  # its model is downloaded or read first: the batching window need not wait
            services.coming.discard(call_id)

    services.coming.add(call_id)
    try:
        wanted = Wanted(request.model, adapter=request.adapter)
        now = agreed(local_now())  # templates tell the date: that of the first rank
        lengths = services.overrides.context_lengths()  # as this turn has them: all ranks of a group take the same
        prepare = partial(_prepare, services, request, now, lengths)
        prepared = yield from services.lookup.find(wanted, prepare, delayed)
    finally:
        services.coming.discard(call_id)
    read_ahead(services, request, state.restore, prepared.source, prepared.prompt.tokens)
    if state.asked is None:
        services.outbox.accepted(call_id, len(prepared.prompt.tokens))
        state.asked = services.clock()
    ticket = yield from leased(services.load(prepared.source, request.adapter, loaded_only=request.require_loaded))
    return prepared, ticket


def _prepare(
    services: Services,
    request: pb.GenerateRequest,
    now: float,
    lengths: Mapping[tuple[str, str], int],
    found: Found,
) -> Task[PreparedRequest]:
    """Return the task that reads the model's tokenizer, renders the conversation if there is one, and tokenises it."""
    assert isinstance(found, ModelSource)
    source = replace(found, context_override=lengths.get((found.name, request.adapter)))
    # Encoding takes turns; ids need none, and do not wait for a long text.
    lane = source.path, "tokens" if request.HasField("tokens") else "text"

    def encoded(tokenizer: Tokenizer, rendered: Rendered | None = None) -> Task[PreparedRequest]:
        return Task(PROMPT, source.name, lane, lambda: prepare_request(request, source, tokenizer, rendered))

    def begun(tokenizer: Tokenizer) -> Task[PreparedRequest]:
        if not request.HasField("chat"):
            return encoded(tokenizer)
        return Task(TEMPLATE, source.name, source.path, lambda: encoded(tokenizer, render(request, tokenizer, now)))

    return services.with_tokenizer(source, begun)


def _refuse_if_never(
    services: Services,
    request: pb.GenerateRequest,
    prepared: PreparedRequest,
    leases: list[ModelLease[LoadedModel]],
) -> None:
    """Refuse a request if its KV can never fit beside its models."""
    prompt, models = prepared.prompt, [lease.model for lease in leases]
    scores = scoring_need(models[0].vocab_size) if request.HasField("prompt_logprobs") else 0

    masked = prepared.constraint is not None
    vectors = row_vectors(sampling_of(request, prepared.source), masked=masked, scored=request.HasField("top_logprobs"))
    drafted = 0 if len(models) == 1 else request.draft_tokens or DEFAULT_TOKENS
    speculation = Speculation(request.speculation or pb.SPECULATION_AUTO)
    fed = 1 + guessable(speculation, models[0].guess_exactness, drafted)
    headed = has_head(speculation, models[0], alone=len(models) == 1 and request.samples <= 1)

    def need(tokens: int) -> int:
        row = BilledRow(tokens, min(prompt.max_tokens, DECODE_ROOM), vectors, fed, prompt.max_tokens > DECODE_ROOM)
        head = head_bytes(models[0], (row.held + row.room) * headed)
        return prompt_bill(models, row, max(1, request.samples)).total + scores + head

    weights = {id(model): model.nbytes for model in models}  # a model that guesses for itself is in memory once
    services.budget.refuse_if_never(need, len(prompt.tokens), sum(weights.values()))


def sequence_of(
    services: Services,
    request: pb.GenerateRequest,
    samples: list[Request],
    times: Times,
    lease: ModelLease[LoadedModel],
    ready: PreparedRequest,
) -> Sequence:
    """
    Return what the runner computes of a request with a model; of several samples the first, which has the others.

    They hold the model from now on, and the last of them gives it back. After an error it is the caller's to give back.

    Args:
        services: The parts that it uses.
        request: The validated request.
        samples: The request as the engine runs it, once for each of its samples.
        times: Its times so far.
        lease: The hold on its model.
        ready: The request, prepared for its model.
    """
    prepared = [ready, *(ready.again() for _ in samples[1:])]

    def sequence(sample: Request, own: PreparedRequest, lease: ModelLease[LoadedModel]) -> Sequence:
        kv = kv_of(services, request, lease, own.source)
        answer = Answer(sample, own.output, own.parser)
        constraint = None if own.constraint is None else own.constraint.mask(lease.model.vocab_size)
        return Sequence(kv, answer, times, constraint, text=own.tokenizer.text_of)

    first, *others = map(sequence, samples, prepared, lease.split(len(samples)))
    first.samples = others
    return first


def _add_guessers(
    services: Services, request: pb.GenerateRequest, sequence: Sequence, draft: DraftModel | None, state: _CallState
) -> None:
    """Give a sequence what guesses its tokens: the draft model, if it has one, and the head of its own model."""
    if draft is not None:
        kv = kv_of(services, request, draft.lease, draft.source)
        kv.in_memory = state.draft_restore.in_memory
        sequence.draft = DraftKV(kv, request.draft_tokens or DEFAULT_TOKENS)
    sequence.head = head_of(sequence, services.runner.governors.of(sequence.model_key))


def _refuse_samples(services: Services, request: pb.GenerateRequest) -> None:
    """Refuse more samples than can ever decode at once."""
    most = services.runner.max_batch
    if request.samples > most:
        raise invalid("samples", f"is {request.samples}, but this daemon decodes at most {most} at once (max_batch)")


def _refuse_unable(services: Services, request: pb.GenerateRequest, model: LoadedModel) -> None:
    """Refuse what a request asks for and the daemon cannot do with its model: kept prefixes, or kinds of guesses."""
    _refuse_keep(services, request, model)
    if request.speculation in (pb.SPECULATION_NGRAM, pb.SPECULATION_MTP):
        check_takes_back(model, "speculation", request.model)
    if request.speculation == pb.SPECULATION_MTP and isinstance(model.mtp, str):
        raise invalid("speculation", f"cannot be MTP with {request.model}: {model.mtp}; leave it out")


def _refuse_keep(services: Services, request: pb.GenerateRequest, model: LoadedModel) -> None:
    """Refuse to keep a prefix that is not even stored."""
    if not request.cache.HasField("keep"):
        return
    if not services.prefixes.enabled:
        raise invalid("cache.keep", "needs a prefix cache, and this daemon has none; leave it unset or set kv_cache_mb")
    if not model.layout.reusable:
        raise invalid("cache.keep", f"needs prefixes that can be reused, and {request.model} has none; leave it unset")
