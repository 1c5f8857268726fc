"""Invalidate calls: drop weights and cached prefixes, and keep running requests from storing them again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from daemon.cache.entry import Entry
from daemon.cache.identity import ModelKey, ModelSource
from daemon.cache.load import Progress
from daemon.cache.mlx.loader import LoadedModel
from daemon.cache.model_cache import ModelCache
from daemon.cache.resolver import Wanted
from daemon.engine.background.task import Task, already
from daemon.engine.calls.generate import Services
from daemon.engine.calls.model_lookup import Found
from daemon.engine.execution.runner import Runner
from daemon.engine.prompt.prompts import tokenise
from daemon.engine.prompt.tokenizers import Tokenizer
from daemon.engine.reporting.model_registry import NameRegistry
from daemon.kv.keys import Namespace, model_digest
from daemon.kv.prefix_cache import Dropped, PrefixCache
from daemon.shared.errors import Reason, SidecarError, invalid
from daemon.shared.failpoints import failpoint
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


_NOTHING = Dropped(0, 0, 0)


class Invalidator:
    """
    Runs on the MLX thread, between two steps, so that it never sees half of anything.

    Args:
        models: The model cache.
        prefixes: The prefix cache.
        runner: The running requests.

    Attributes:
        known: What each name stood for.
    """

    def __init__(self, models: ModelCache[ModelSource, LoadedModel], prefixes: PrefixCache, runner: Runner) -> None:
        self._models = models
        self._prefixes = prefixes
        self._runner = runner
        self.known = NameRegistry(self._is_kept)

    def _is_kept(self, key: ModelKey) -> bool:
        digest = model_digest(key.weights, key.adapter)
        return (
            any(entry.key == key for entry in self._models.entries())
            or any(source.key == key for source, _ in self._models.loading())
            or bool(self._prefixes.trie.tops(lambda namespace: namespace.startswith(digest)))
        )

    def model(self, target: pb.ModelTarget, *, dry_run: bool) -> pb.InvalidateResponse:
        """
        Drop what belongs to a name, under every revision and adapter that it was asked for with; and with it whatever
        other name stands for the same content.
        """
        keys = self.known.keys(target.model)
        entries = [entry for entry in self._models.entries() if entry.key in keys and not entry.draining]
        digests = tuple(model_digest(key.weights, key.adapter) for key in keys)
        return self._drop(
            entries if target.weights else [],
            (lambda namespace: namespace.startswith(digests)) if target.prefixes else None,
            dry_run=dry_run,
        )

    def all(self, target: pb.AllTarget, *, dry_run: bool) -> pb.InvalidateResponse:
        """Drop everything of the kinds asked for."""
        entries = [entry for entry in self._models.entries() if not entry.draining]
        return self._drop(
            entries if target.weights else [], (lambda _: True) if target.prefixes else None, dry_run=dry_run
        )

    def prefix(self, source: ModelSource, salt: str, tokens: list[int], *, dry_run: bool) -> pb.InvalidateResponse:
        """Drop the prompts that begin with a prefix, with every adapter of the model and every state of its files."""
        keys = {source.key} | self.known.keys(source.name)
        wanted = {
            Namespace(key.weights, key.adapter, layout, salt).digest()
            for key in keys
            for layout in self.known.layouts(key)
        }
        dropped = [self._prefixes.forget_prefix(name, tokens, dry_run=dry_run) for name in sorted(wanted)]
        if not dry_run:
            failpoint("invalidate.dropped")
            self._stop_storing(lambda namespace: namespace in wanted)
        return _answer([], dropped)

    def _drop(
        self, entries: list[Entry[LoadedModel]], accept: Callable[[str], bool] | None, *, dry_run: bool
    ) -> pb.InvalidateResponse:
        answer = _answer(entries, [self._prefixes.clear(accept, dry_run=dry_run) if accept else _NOTHING])
        if not dry_run:
            failpoint("invalidate.dropped")
            dropped = tuple(model_digest(key.weights, key.adapter) for key in self._keys_of(entries))
            self._stop_storing(lambda name: name.startswith(dropped) or (accept is not None and accept(name)))
            for entry in entries:
                self._models.invalidate(entry.key)
        return answer

    def _keys_of(self, entries: list[Entry[LoadedModel]]) -> list[ModelKey]:
        return [entry.model.source.key for entry in entries]

    def _stop_storing(self, accept: Callable[[str], bool]) -> None:
        running = self._runner.sequences()
        for sequence in [*running, *(one.draft.sequence for one in running if one.draft is not None)]:
            if accept(sequence.namespace):
                sequence.writes = False


def _answer(entries: list[Entry[LoadedModel]], dropped: list[Dropped]) -> pb.InvalidateResponse:
    """Add up; called before weights are dropped, while their entries still know who uses them."""
    return pb.InvalidateResponse(
        models=dict.fromkeys(name for entry in entries for name in entry.names),
        blocks=sum(part.blocks for part in dropped),
        bytes_freed=sum(entry.nbytes for entry in entries if not entry.leases)
        + sum(part.bytes_freed for part in dropped),
        bytes_in_use=sum(entry.nbytes for entry in entries if entry.leases)
        + sum(part.bytes_in_use for part in dropped),
    )
