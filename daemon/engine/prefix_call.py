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
from daemon.errors import Reason, SidecarError, invalid
from mlx_sidecar.v1 import sidecar_pb2 as pb

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
        self._gone: SidecarError | None = None
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

    def prepare(self, found: Found) -> tuple[ModelSource, list[int]]:
        """Tokenise the prefix."""
        assert isinstance(found, ModelSource)
        return found, self._tokens(found)

    def ready(self, result: tuple[ModelSource, list[int]]) -> None:
        """Drop it."""
        if not self._over:
            source, tokens = result
            answer = self._invalidator.prefix(source, self._request.prefix.salt, tokens, dry_run=self._request.dry_run)
            self._over = True
            self._services.outbox.invalidated(self._call_id, answer)

    def _tokens(self, source: ModelSource) -> list[int]:
        target = self._request.prefix
        if target.WhichOneof("input") == "tokens":
            return list(target.tokens.ids)
        if self._gone is not None:
            raise self._gone
        tokens = tokenise(pb.GenerateRequest(text=target.text), self._services.tokenizers.get(source))
        if not tokens:
            raise invalid("prefix.text", "has no tokens")
        return tokens[:-1] or tokens

    def fail(self, error: SidecarError) -> None:
        """End the call with an error; nothing if it was over. Prefixes of a model whose files are gone can go too."""
        known = self._invalidator.known.latest(self._request.prefix.model)
        if known is not None and self._gone is None and error.reason in _GONE:
            self._gone = error
            self._services.background.run(partial(self.prepare, known), self.ready, self.fail)
        elif not self._over:
            self._over = True
            self._services.outbox.fail(self._call_id, error)
