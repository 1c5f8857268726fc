"""An Invalidate call that names a prefix: its text becomes tokens off the MLX thread before anything is dropped."""

from __future__ import annotations

from functools import partial

from daemon.cache.entry import Progress
from daemon.cache.identity import ModelSource
from daemon.cache.resolver import Wanted
from daemon.engine.calls import Services
from daemon.engine.finder import Found
from daemon.engine.invalidation import Invalidator
from daemon.engine.prompts import tokenise
from daemon.engine.task import Task, already
from daemon.engine.tokenizers import Tokenizer
from daemon.errors import Reason, SidecarError, invalid
from mlx_sidecar.v1 import sidecar_pb2 as pb

_Tokens = tuple[ModelSource, list[int]]
"""The ids of a prefix, for a model."""

_GONE = (Reason.MODEL_NOT_FOUND, Reason.MODEL_NOT_CACHED, Reason.MODEL_CORRUPT, Reason.MODEL_EXCEEDS_BUDGET)


class PrefixCall:
    """Invalidates the prompts that begin with a prefix."""

    def __init__(
        self, services: Services, call_id: int, request: pb.InvalidateRequest, invalidator: Invalidator
    ) -> None:
        self._services = services
        self._call_id = call_id
        self._request = request
        self._invalidator = invalidator
        self._over = False
        services.finder.find(Wanted(request.prefix.model), self)

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._over

    def poll(self) -> bool:
        """Nothing is to be done until the tokens are there."""
        return not self._over

    def cancel(self) -> None:
        """Nobody waits for the answer; nothing is dropped."""
        self._over = True

    def progress(self, progress: Progress) -> None:
        """Invalidate has no such event."""

    def prepare(self, found: Found) -> Task[_Tokens]:
        """Tokenise the prefix."""
        assert isinstance(found, ModelSource)
        target = self._request.prefix
        if target.WhichOneof("input") == "tokens":
            return already(target.model, (found, list(target.tokens.ids)))
        return self._services.with_tokenizer(found, partial(self._tokens, found))

    def ready(self, result: _Tokens) -> None:
        """Drop it."""
        if not self._over:
            source, tokens = result
            answer = self._invalidator.prefix(source, self._request.prefix.salt, tokens, dry_run=self._request.dry_run)
            self._over = True
            self._services.outbox.invalidated(self._call_id, answer)

    def _tokens(self, source: ModelSource, tokenizer: Tokenizer) -> _Tokens:
        tokens = tokenise(pb.GenerateRequest(text=self._request.prefix.text), tokenizer)
        if not tokens:
            raise invalid("prefix.text", "has no tokens")
        return source, tokens[:-1] or tokens

    def fail(self, error: SidecarError) -> None:
        """End the call with an error; nothing if it was over. Prefixes of a model whose files are gone can go too."""
        known = self._invalidator.known.latest(self._request.prefix.model)
        tokens = self._request.prefix.WhichOneof("input") == "tokens"
        if known is not None and tokens and not self._over and error.reason in _GONE:
            self._services.background.run(self.prepare(known), self.ready, self.fail)
        elif not self._over:
            self._over = True
            self._services.outbox.fail(self._call_id, error)
