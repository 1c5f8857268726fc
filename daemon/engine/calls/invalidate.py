"""An Invalidate call: drops weights and cached prefixes, which running requests neither store again nor lend."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from daemon.cache.entry import Entry
from daemon.cache.identity import ModelKey, ModelSource
from daemon.cache.mlx.loader import LoadedModel
from daemon.cache.model_cache import ModelCache
from daemon.cache.resolver import Wanted
from daemon.engine.background.background import as_sidecar_error
from daemon.engine.background.task import LOOKUP, Task, Waiting, already, until
from daemon.engine.calls.driver import Call, Services
from daemon.engine.calls.model_lookup import Found
from daemon.engine.execution.runner import Runner
from daemon.engine.prompt.tokenizer import Tokenizer
from daemon.engine.reporting.model_registry import NameRegistry
from daemon.kv.disk.tier import DiskTier
from daemon.kv.dropped import Dropped
from daemon.kv.keys import Namespace, model_digest, partition_of, salt_partition
from daemon.kv.prefix_cache import PrefixCache
from daemon.shared.errors import Reason, SidecarError, invalid
from daemon.shared.failpoints import failpoint
from daemon.shared.model_names import climbs
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb

_Tokens = tuple[ModelSource, list[int]]
"""A model and the token ids of a prefix."""

_GONE = (Reason.MODEL_NOT_FOUND, Reason.MODEL_NOT_CACHED, Reason.MODEL_CORRUPT, Reason.MODEL_EXCEEDS_BUDGET)
"""Why a model cannot be found of which prefixes may be stored all the same."""

_UNKNOWN = (Reason.MODEL_NOT_RESPONDING, Reason.MACHINE_EXHAUSTED, Reason.MACHINE_FAULT, Reason.INTERNAL)
"""Why it is not known whether there is a model."""


def invalidate(services: Services, invalidator: Invalidator, call_id: int, request: pb.InvalidateRequest) -> Call:
    """
    Serve an Invalidate call: one answer.

    Raises:
        SidecarError: Why the model of a prefix cannot be found, or its text cannot be tokenised.
    """
    kind = request.WhichOneof("target")
    yield from until(lambda: not services.disk.opening)
    if kind == "prefix":
        source, tokens = yield from _find_prefix(services, request.prefix)
        answer = invalidator.prefix(source, request.prefix.salt, tokens, dry_run=request.dry_run)
    elif kind == "model":
        if climbs(request.model.model):
            model = yield from services.background.run(_resolving(request.model.model)).wait()
            request = _renamed(request, model)
        yield from _look_up(services, request.model.model)
        answer = invalidator.model(request.model, dry_run=request.dry_run)
    else:
        answer = invalidator.all(request.all, dry_run=request.dry_run)
    if not request.dry_run:
        services.tokenizers.forget_turns()  # of all prompts: it costs their next turns little
        yield from _removed(services)
    services.overrides.apply(ipc.Command(invalidate=request), answer.models)
    services.outbox.invalidated(call_id, answer)


def _renamed(request: pb.InvalidateRequest, model: str) -> pb.InvalidateRequest:
    renamed = pb.InvalidateRequest()
    renamed.CopyFrom(request)
    renamed.model.model = model
    return renamed


def _look_up(services: Services, name: str) -> Waiting[None]:
    """
    Find out what content a name stands for, if the disk may have prefixes of it that were stored by another name.

    Raises:
        SidecarError: If that cannot be found out now: prefixes of it may stay, and be reused by this name later.
    """
    known = services.names.keys(name) or services.disk.catalog.of_model(name)
    if known or (services.disk.open and not len(services.disk.catalog)) or not services.disk.enabled:
        return
    wanted = Wanted(name, offline=True)
    try:
        found = yield from services.lookup.find(wanted, lambda found: already(name, found))
    except SidecarError as error:
        if error.reason in _UNKNOWN:
            raise
        return  # there is no such model: then nothing was stored by this name
    if isinstance(found, ModelSource):
        services.names.seen(found)


def _removed(services: Services) -> Waiting[None]:
    """
    Wait until what was invalidated is removed from the disk.

    Raises:
        SidecarError: If it cannot be removed; the next start may find it again.
    """
    yield from until(lambda: services.disk.settled)
    error = services.disk.work.removal_error()
    if error is not None:
        raise as_sidecar_error(error)


def _find_prefix(services: Services, target: pb.PrefixTarget) -> Waiting[_Tokens]:
    """Find the model of a prefix, and tokenise the prefix."""
    try:
        return (yield from services.lookup.find(Wanted(target.model), partial(_tokenising, services, target)))
    except SidecarError as error:
        # Prefixes may outlive the files of their model. With token ids, nothing has to be read to drop them.
        source = services.names.latest(target.model)
        if source is None or target.WhichOneof("input") != "tokens" or error.reason not in _GONE:
            raise
    return source, list(target.tokens.ids)


def _tokenising(services: Services, target: pb.PrefixTarget, found: Found) -> Task[_Tokens]:
    """Return the task that makes token ids of a prefix."""
    assert isinstance(found, ModelSource)
    if target.WhichOneof("input") == "tokens":
        return already(target.model, (found, list(target.tokens.ids)))

    def tokenised(tokenizer: Tokenizer) -> _Tokens:
        tokens = tokenizer.encode_prompt(target.text)
        if not tokens:
            raise invalid("prefix.text", "has no tokens")
        # The last token of a text may become another one when the text goes on.
        return found, tokens[:-1] or tokens

    return services.with_tokenizer(found, tokenised)


def _resolving(name: str) -> Task[str]:
    """Return the task that makes of a path with `..` the one that it leads to, as a load names it."""

    def resolved() -> str:
        try:
            return str(Path(name).resolve())
        except (OSError, RuntimeError, ValueError):  # no path, or a loop of links: no model was ever loaded from there
            return "/"

    return Task(LOOKUP, name, name, resolved)


_NOTHING = Dropped(0, 0, 0)


class Invalidator:
    """
    Drops models and prefixes. Runs on the MLX thread, between two steps, so no step sees half of a change.

    Args:
        models: The model cache.
        prefixes: The prefix cache.
        runner: The running requests.
        disk: The tier below the prefix cache.

    Attributes:
        names: The contents that each name stood for.
    """

    def __init__(
        self, models: ModelCache[ModelSource, LoadedModel], prefixes: PrefixCache, runner: Runner, disk: DiskTier
    ) -> None:
        self._models = models
        self._prefixes = prefixes
        self._runner = runner
        self._disk = disk
        self.names = NameRegistry(self._is_kept)

    def _is_kept(self, key: ModelKey) -> bool:
        digest = model_digest(key.weights, key.adapter)
        return (
            any(entry.key == key for entry in self._models.entries())
            or any(source.key == key for source, _ in self._models.loading())
            or bool(self._prefixes.trie.tops(lambda namespace: namespace.startswith(digest)))
        )

    def model(self, target: pb.ModelTarget, *, dry_run: bool) -> pb.InvalidateResponse:
        """
        Drop the weights and prefixes of a name, of all revisions and adapters that it was asked for with.

        Other names of the same contents lose theirs with it.
        """
        keys = self.names.keys(target.model)
        entries = [entry for entry in self._models.entries() if entry.key in keys and not entry.draining]
        named = self._disk.catalog.of_model(target.model)
        digests = (*(model_digest(key.weights, key.adapter) for key in keys), *named)
        answer = self._drop(
            entries if target.weights else [],
            (lambda namespace: namespace.startswith(digests)) if target.prefixes else None,
            dry_run=dry_run,
        )
        if target.prefixes and not (dry_run or self._disk.open):  # which adapters it had is known once it can be read
            self._disk.forget(lambda _: True, target.model)
        return answer

    def all(self, target: pb.AllTarget, *, dry_run: bool) -> pb.InvalidateResponse:
        """Drop everything of the kinds asked for."""
        entries = [entry for entry in self._models.entries() if not entry.draining]
        return self._drop(
            entries if target.weights else [], (lambda _: True) if target.prefixes else None, dry_run=dry_run
        )

    def prefix(self, source: ModelSource, salt: str, tokens: list[int], *, dry_run: bool) -> pb.InvalidateResponse:
        """Drop the prompts that begin with a prefix, with every adapter of the model and every state of its files."""
        keys = {source.key} | self.names.keys(source.name)
        wanted = {
            Namespace(key.weights, key.adapter, layout, salt).digest()
            for key in keys
            for layout in self.names.layouts(key)
        }
        named, partition = self._disk.catalog.of_model(source.name), salt_partition(salt)
        digests = (*(model_digest(key.weights, key.adapter) for key in keys), *named)
        for digest in digests:
            wanted |= set(self._disk.catalog.salted(digest, partition))
        dropped = [self._prefixes.forget_prefix(name, tokens, dry_run=dry_run) for name in sorted(wanted)]
        if not dry_run:
            failpoint("invalidate.dropped")
            self._cut_off(lambda namespace: namespace in wanted)
            if not self._disk.open:  # what lies there is not known: of this model and salt, all of it goes
                self._disk.forget(lambda name: name.startswith(digests) and partition_of(name) == partition)
                self._disk.forget(lambda name: partition_of(name) == partition, source.name)
        return _answer([], dropped)

    def _drop(
        self, entries: list[Entry[LoadedModel]], accept: Callable[[str], bool] | None, *, dry_run: bool
    ) -> pb.InvalidateResponse:
        answer = _answer(entries, [self._prefixes.clear(accept, dry_run=dry_run) if accept else _NOTHING])
        if not dry_run:
            failpoint("invalidate.dropped")
            dropped = tuple(model_digest(key.weights, key.adapter) for key in self._keys_of(entries))
            self._cut_off(lambda name: name.startswith(dropped) or (accept is not None and accept(name)))
            for entry in entries:
                self._models.invalidate(entry.key)
        return answer

    def _keys_of(self, entries: list[Entry[LoadedModel]]) -> list[ModelKey]:
        return [entry.model.source.key for entry in entries]

    def _cut_off(self, accept: Callable[[str], bool]) -> None:
        """Let running requests of these namespaces go on by themselves: what they hold is for no other."""
        for kv in (kv for sequence in self._runner.sequences() for kv in sequence.kvs):
            if accept(kv.namespace):
                kv.invalidated()
        self._runner.readers.outlooks.renew()


def _answer(entries: list[Entry[LoadedModel]], dropped: list[Dropped]) -> pb.InvalidateResponse:
    """Add up; called before weights are dropped, while their entries still count the requests that use them."""
    return pb.InvalidateResponse(
        models=dict.fromkeys(name for entry in entries for name in entry.names),
        blocks=sum(part.blocks for part in dropped),
        bytes_freed=sum(entry.nbytes for entry in entries if not entry.leases)
        + sum(part.bytes_freed for part in dropped),
        bytes_in_use=sum(entry.nbytes for entry in entries if entry.leases)
        + sum(part.bytes_in_use for part in dropped),
    )
