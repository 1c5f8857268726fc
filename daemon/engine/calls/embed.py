"""
An Embed call: finds and loads its model, lets the runner compute its texts, and sends their vectors in order.

Each text is a sequence of the runner, like the prompt of a Generate call. So texts wait for slots and memory, share
passes, take turns with other requests, and reuse what the prefix cache has of their beginning. The call waits for all
of them; if it ends early, by an error or a cancellation, the texts that are left end with it.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from daemon.cache.identity import ModelSource
from daemon.cache.load import Ticket
from daemon.cache.mlx.loader import LoadedModel
from daemon.cache.resolver import Wanted
from daemon.engine.background.task import PROMPT, Task, Waiting, until
from daemon.engine.calls.driver import Call, Services, leased
from daemon.engine.calls.misnamed import retry_misnamed
from daemon.engine.calls.model_lookup import Found
from daemon.engine.calls.prefix_reuse import kv_of, read_ahead, restored
from daemon.engine.execution.answer import Answer
from daemon.engine.execution.pooling import Pooled, check_trunk
from daemon.engine.execution.request import Request, SamplingParams
from daemon.engine.execution.row_bills import BilledRow, prompt_bill
from daemon.engine.execution.sequence import Sequence, Times
from daemon.engine.output.detokenizer import Output
from daemon.engine.prompt.embedding import POOLINGS, PreparedTexts, prepare_texts
from daemon.engine.prompt.tokenizer import Tokenizer
from daemon.shared.durations import duration
from mlx_sidecar.v1 import sidecar_pb2 as pb

AHEAD = 64
"""
Texts that may be computed before they can be sent. A reader that lags holds its call, and so few vectors wait for it.
"""


def embed(services: Services, call_id: int, request: pb.EmbedRequest, program: str = "") -> Call:
    """
    Serve an Embed call: an `embedding` for each text, then `finished`.

    Args:
        services: What serves calls.
        call_id: The call.
        request: Its request.
        program: The program that calls; programs take turns.

    Raises:
        SidecarError: REQUEST_EXCEEDS_MEMORY; or why the model cannot be had, or a text cannot be used.
    """
    began = services.clock()
    prepared, ticket = yield from retry_misnamed(lambda: _prepare_and_load(services, call_id, request))
    try:
        sequences = _sequences(services, call_id, request, prepared, ticket, program)
    except BaseException:
        ticket.cancel()
        raise
    vectors = [sequence.pooled for sequence in sequences if sequence.pooled is not None]
    yield from _run(services, call_id, request, sequences, vectors)
    usage = pb.Usage(prompt_tokens=prepared.tokens, cached_tokens=sum(pooled.cached for pooled in vectors))
    finished = pb.EmbedFinished(
        model=prepared.source.name,
        dimensions=vectors[-1].width,
        pooling=next(number for number, name in POOLINGS.items() if name == prepared.pooling),
        normalized=prepared.normalize,
        usage=usage,
        time=duration(services.clock() - began),
    )
    services.outbox.embed(call_id, pb.EmbedResponse(finished=finished))


def _run(
    services: Services, call_id: int, request: pb.EmbedRequest, sequences: list[Sequence], vectors: list[Pooled]
) -> Waiting[None]:
    """Let the runner compute texts, at most AHEAD beyond the one that is sent next, and send their vectors in order."""
    given, ours = 0, dict.fromkeys(sequences)
    services.embeds_held[call_id] = False
    try:
        yield from _restored(services, request, sequences)
        for index, pooled in enumerate(vectors):
            if given - index <= AHEAD // 2:
                # Texts of similar length share passes.
                for sequence in sorted(sequences[given : index + AHEAD], key=lambda sequence: len(sequence.prompt)):
                    services.runner.add(sequence)
                    del ours[sequence]
                given = index + AHEAD
            yield from until(lambda done=pooled.done: done() and not services.embeds_held[call_id])  # type: ignore[misc]
            if pooled.error is not None:
                raise pooled.error
            vector = pb.Embedding(index=index, values=pooled.vector)
            pooled.sent()
            services.outbox.embed(call_id, pb.EmbedResponse(embedding=vector))
    finally:
        del services.embeds_held[call_id]
        services.runner.cancel(call_id)
        for sequence in ours:
            sequence.release()


def _restored(services: Services, request: pb.EmbedRequest, sequences: list[Sequence]) -> Waiting[None]:
    """Wait until the prefix cache has what the disk has of the beginnings of the texts; most share theirs."""
    first: dict[tuple[int, ...], Sequence] = {}
    for sequence in sequences:
        if sequence.kv.reads and len(first) < AHEAD:
            first.setdefault(tuple(sequence.kv.sharable(sequence.prompt)[:-1]), sequence)
    model = sequences[0].kv.loaded
    with ExitStack() as held:
        restores = [held.enter_context(services.disk.restore()) for _ in first]
        for restore, sequence in zip(restores, first.values(), strict=True):
            read_ahead(services, request, restore, model.source, sequence.kv.sharable(sequence.prompt))
        yield from restored(services, request.cache.salt, restores, model)
    for restore, sequence in zip(restores, first.values(), strict=True):
        sequence.kv.in_memory = restore.in_memory


def _prepare_and_load(
    services: Services, call_id: int, request: pb.EmbedRequest
) -> Waiting[tuple[PreparedTexts, Ticket[LoadedModel]]]:
    """Find the model and tokenise the texts on other threads, then wait for the weights."""

    def prepare(found: Found) -> Task[PreparedTexts]:
        assert isinstance(found, ModelSource)

        def tokenised(tokenizer: Tokenizer) -> Task[PreparedTexts]:
            return Task(PROMPT, found.name, (found.path, "text"), partial(prepare_texts, request, found, tokenizer))

        return services.with_tokenizer(found, tokenised)

    prepared = yield from services.lookup.find(Wanted(request.model, adapter=request.adapter), prepare)
    services.outbox.accepted(call_id, prepared.tokens)
    ticket = yield from leased(services.load(prepared.source, request.adapter, loaded_only=request.require_loaded))
    return prepared, ticket


def _sequences(
    services: Services,
    call_id: int,
    request: pb.EmbedRequest,
    prepared: PreparedTexts,
    ticket: Ticket[LoadedModel],
    program: str,
) -> list[Sequence]:
    """Return a sequence for each text. They hold the model from now on; the last of them gives it back."""
    assert ticket.lease is not None
    source = prepared.source
    services.overrides.done(ticket.name, request.adapter)
    _refuse_unable(services, prepared, ticket.lease.model)
    arrived = services.clock()
    leases = ticket.lease.split(len(prepared.texts))
    sequences = []
    for lease, ids, shared in zip(leases, prepared.texts, prepared.shared, strict=True):
        kv = kv_of(services, request, lease, source)
        kv.shared = shared
        kv.reads, kv.writes = kv.reads and bool(shared), kv.writes and bool(shared)
        options = Request(
            call_id=call_id,
            request_id=request.request_id,
            model_name=source.name,
            prompt=ids,
            max_tokens=0,
            sampling=SamplingParams(),
            stop_ids=frozenset(),
            message_ends=prepared.message_ends,
            priority=request.priority,
            program=program,
        )
        pooled = Pooled(prepared.pooling, prepared.normalize, prepared.dimensions, prepared.skipped)
        sequences.append(Sequence(kv, Answer(options, Output(str, ())), Times(arrived), pooled=pooled))
    return sequences


def _refuse_unable(services: Services, prepared: PreparedTexts, model: LoadedModel) -> None:
    """Refuse texts if their model has no hidden states, or if the longest can never fit beside it."""
    if (key := model.source.key) not in services.embedders:  # the graph of a pass takes as long as a short text
        check_trunk(model)
        services.embedders.add(key)
    longest = max(map(len, prepared.texts))
    services.budget.refuse_if_never(
        lambda tokens: prompt_bill([model], BilledRow(tokens, 0)).total, longest, model.nbytes
    )
