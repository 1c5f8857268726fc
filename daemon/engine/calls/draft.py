"""The draft model of a Generate call: found and checked against the call's model, then loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from daemon.cache.context_length import most_positions
from daemon.cache.entry import ModelLease
from daemon.cache.identity import ModelSource
from daemon.cache.mlx.loader import LoadedModel
from daemon.cache.resolver import Wanted
from daemon.engine.background.task import Task, Waiting
from daemon.engine.calls.driver import Services, leased
from daemon.engine.calls.misnamed import retry_misnamed
from daemon.engine.calls.model_lookup import Found
from daemon.engine.prompt.preparation import PreparedRequest, Prompt
from daemon.engine.prompt.tokenizer import Tokenizer
from daemon.kv.mlx.guess_passes import Exactness
from daemon.shared.errors import invalid
from mlx_sidecar.v1 import sidecar_pb2 as pb

DEFAULT_TOKENS = 4
"""Tokens guessed at a time."""


@dataclass(frozen=True, slots=True)
class DraftModel:
    """
    A draft model in memory.

    Attributes:
        source: The model as it was asked for.
        lease: Keeps it in memory; the caller releases it.
    """

    source: ModelSource
    lease: ModelLease[LoadedModel]


def draft_model(
    services: Services,
    request: pb.GenerateRequest,
    prepared: PreparedRequest,
    model: LoadedModel,
    on_found: Callable[[ModelSource], None],
) -> Waiting[DraftModel]:
    """
    Find and load the draft model of a request. Both models must be able to take tokens back.

    Args:
        services: The parts of the engine.
        request: The request, which names a draft model.
        prepared: The same, prepared for its model.
        model: Its model, in memory.
        on_found: Takes the draft model before its weights are loaded.

    Raises:
        SidecarError: INVALID_ARGUMENT at `draft_model` if the two models cannot work together; or why the draft model
            cannot be had.
    """
    check_takes_back(model, "draft_model", request.model)
    return (yield from retry_misnamed(lambda: _find_and_load(services, request, prepared, on_found)))


def _find_and_load(
    services: Services, request: pb.GenerateRequest, prepared: PreparedRequest, on_found: Callable[[ModelSource], None]
) -> Waiting[DraftModel]:
    def compare(found: Found) -> Task[ModelSource]:
        assert isinstance(found, ModelSource)

        def compared(other: Tokenizer) -> ModelSource:
            if difference := other.difference(prepared.tokenizer):
                said = f"has another tokenizer than {request.model}; it needs the same ({difference})"
                raise invalid("draft_model", said)
            _refuse_small(found, prepared.prompt)
            return found

        return services.with_tokenizer(found, compared)

    source = yield from services.lookup.find(Wanted(request.draft_model), compare)
    on_found(source)
    ticket = yield from leased(services.load(source, loaded_only=request.require_loaded))
    assert ticket.lease is not None
    try:
        check_takes_back(ticket.lease.model, "draft_model", request.draft_model)
        services.overrides.done(ticket.name, "")
    except BaseException:
        ticket.cancel()
        raise
    return DraftModel(source, ticket.lease)


def _refuse_small(draft: ModelSource, prompt: Prompt) -> None:
    """
    Refuse a draft model with fewer token ids or learned positions than a request needs: MLX would read beyond them.

    Raises:
        SidecarError: INVALID_ARGUMENT at `draft_model`.
    """
    largest, ids = max(prompt.tokens), draft.vocab_size
    if ids and largest >= ids:
        raise invalid("draft_model", f"has {ids} token ids, and the prompt has token {largest}; leave out one of them")
    length, most = len(prompt.tokens), most_positions(draft.config)
    if most is not None and length > most:
        said = f"has learned {most} positions, and the prompt has {length} tokens; leave it out, or shorten the prompt"
        raise invalid("draft_model", said)


def check_takes_back(model: LoadedModel, field: str, name: str) -> None:
    """
    Refuse a model that cannot take tokens back, as a wrong guess has to leave its KV.

    Args:
        model: The model, in memory.
        field: The field of the request that asks for guesses.
        name: What the request calls the model.

    Raises:
        SidecarError: INVALID_ARGUMENT at the field.
    """
    if model.guess_exactness is Exactness.WRONG:
        raise invalid(field, f"needs models that can take tokens back, and the cache of {name} cannot; leave it out")
