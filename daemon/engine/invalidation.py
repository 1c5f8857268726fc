"""Invalidation: drops weights and cached prefixes, and keeps running requests from storing what was dropped."""

from __future__ import annotations

from collections.abc import Callable

from daemon.cache.entry import Entry
from daemon.cache.identity import ModelKey, ModelSource
from daemon.cache.loader import LoadedModel
from daemon.cache.model_cache import ModelCache
from daemon.engine.known import Known
from daemon.engine.runner import Runner
from daemon.failpoints import failpoint
from daemon.kv.namespace import Namespace, model_digest
from daemon.kv.prefix_cache import Dropped, PrefixCache
from mlx_sidecar.v1 import sidecar_pb2 as pb

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
        self.known = Known(self._is_kept)

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
