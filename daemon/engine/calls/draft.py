"""The draft model of a request: found, compared with its model, and loaded once that is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from daemon.cache.entry import ModelLease
from daemon.cache.identity import ModelSource
from daemon.cache.load import Progress, Ticket
from daemon.cache.mlx.loader import LoadedModel
from daemon.cache.resolver import Wanted
from daemon.engine.background.background import as_sidecar_error
from daemon.engine.background.task import Task
from daemon.engine.calls.model_lookup import Found
from daemon.engine.calls.model_search import Searches
from daemon.engine.prompt.tokenizers import Tokenizer
from daemon.shared.errors import SidecarError, invalid
from mlx_sidecar.v1 import sidecar_pb2 as pb

if TYPE_CHECKING:
    from daemon.engine.calls.generate import Services

DEFAULT_TOKENS = 4
"""Tokens guessed at a time."""


@dataclass(frozen=True, slots=True)
class Guesser:
    """A draft model in memory: as it was asked for, and the hold on it."""

    source: ModelSource
    lease: ModelLease[LoadedModel]


class DraftModel:
    """
    Fails with INVALID_ARGUMENT at `draft_model` if the two cannot work together.

    Args:
        services: What calls need.
        request: The Generate request.
        tokenizer: That of its model.
        model: Its model, in memory.
    """

    def __init__(
        self, services: Services, request: pb.GenerateRequest, tokenizer: Tokenizer, model: LoadedModel
    ) -> None:
        self._services = services
        self._request = request
        self._tokenizer = tokenizer
        self._source: ModelSource | None = None
        self._ticket: Ticket[LoadedModel] | None = None
        self._error: SidecarError | None = None
        self._over = False
        _check_cache(model, request.model)
        self._searches = Searches(services.finder, Wanted(request.draft_model))
        self._searches.begin(self)

    @property
    def over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._over

    def poll(self) -> Guesser | None:
        """
        Return the model once it is ready; None before.

        Raises:
            SidecarError: Why it will not be.
        """
        if self._error is not None:
            raise self._error
        ticket = self._ticket
        if ticket is None or not ticket.done:
            return None
        if ticket.error is not None:
            self._ticket = None
            if self._searches.again(self, ticket.error):
                return None
            raise as_sidecar_error(ticket.error)
        assert ticket.lease is not None
        assert self._source is not None
        _check_cache(ticket.lease.model, self._request.draft_model)
        self._services.recalled.done(ticket.name, "")
        return Guesser(self._source, ticket.lease)

    def progress(self, progress: Progress) -> None:
        """Generate has no event for it."""

    def prepare(self, found: Found) -> Task[ModelSource]:
        """Compare the tokenizers."""
        assert isinstance(found, ModelSource)

        def compared(tokenizer: Tokenizer) -> ModelSource:
            if not tokenizer.has_ids_of(self._tokenizer):
                raise invalid("draft_model", f"has another tokenizer than {self._request.model}; it needs the same")
            return found

        return self._services.with_tokenizer(found, compared)

    def ready(self, source: ModelSource) -> None:
        """Wait for its weights."""
        if not self._over:
            request = self._request
            self._source = source
            self._ticket = self._services.load(source, loaded_only=request.require_loaded)

    def fail(self, error: SidecarError) -> None:
        """Keep the error for the call that waits."""
        self._error = error

    def cancel(self) -> None:
        """Stop waiting."""
        self._over = True
        if self._ticket is not None:
            self._ticket.cancel()


def _check_cache(model: LoadedModel, name: str) -> None:
    """Refuse a model that cannot take tokens back."""
    if not (model.layout.reusable and model.layout.parts.resumes_anywhere):
        raise invalid("draft_model", f"needs models with full attention alone, and {name} is not one")
