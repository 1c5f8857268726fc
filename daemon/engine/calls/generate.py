"""Calls before they run: names become models, prompts become tokens, and both wait for weights."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

from daemon.cache.entry import ModelLease
from daemon.cache.identity import ModelSource
from daemon.cache.limits import not_loaded
from daemon.cache.load import Outcome, Progress, Ticket
from daemon.cache.mlx.loader import LoadedModel
from daemon.cache.model_cache import ModelCache
from daemon.cache.resolver import Wanted
from daemon.engine.background.background import Background, as_sidecar_error
from daemon.engine.background.task import PROMPT, TEMPLATE, TOKENIZER, Task, already
from daemon.engine.calls.draft import DEFAULT_TOKENS, DraftModel, Guesser
from daemon.engine.calls.model_lookup import Found, ModelLookup
from daemon.engine.calls.model_search import Searches
from daemon.engine.calls.recalled import Recalled
from daemon.engine.execution.runner import Runner
from daemon.engine.execution.sampling import Params
from daemon.engine.execution.sequence import Draft, Sequence, Times
from daemon.engine.memory.memory_budget import MemoryBudget, kv_need
from daemon.engine.outbox import Outbox
from daemon.engine.prompt.preparation import PreparedRequest, prepare_request
from daemon.engine.prompt.prompts import render
from daemon.engine.prompt.tokenizers import Tokenizer, Tokenizers
from daemon.engine.reporting import model_info
from daemon.kv.keys import Namespace
from daemon.shared.durations import duration, seconds
from daemon.shared.errors import SidecarError, invalid
from mlx_sidecar.v1 import sidecar_pb2 as pb

Models = ModelCache[ModelSource, LoadedModel]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Services:
    """What calls need; all of it belongs to the MLX thread but for the tokenizers."""

    models: Models
    runner: Runner
    ledger: MemoryBudget
    finder: ModelLookup
    tokenizers: Tokenizers
    background: Background
    outbox: Outbox
    clock: Callable[[], float]
    seen: Callable[[ModelSource], None]
    shares: Callable[[Namespace, ModelSource], None]
    recalled: Recalled

    def load(self, source: ModelSource, adapter: str = "", *, loaded_only: bool) -> Ticket[LoadedModel]:
        """
        Wait for a model that a Generate call has asked for, and keep it as earlier callers wanted.

        Raises:
            SidecarError: MODEL_NOT_CACHED if only a loaded model will do and it is not.
        """
        self.seen(source)
        if loaded_only and not self.models.contains(source.key):
            raise not_loaded(source.name, kept=self.models.limits.budget_bytes > 0)
        return self.models.get_or_load(
            source, pin=self.recalled.pin(source.name, adapter), ttl=self.recalled.ttl(source.name, adapter)
        )

    def with_tokenizer(self, source: ModelSource, then: Callable[[Tokenizer], T | Task[T]]) -> Task[T]:
        """
        Return the task that reads a model's tokenizer and goes on with it.

        Its lane is the directory: copies of a model may lie on a disk that hangs and on one that does not.
        """
        return Task(TOKENIZER, source.name, source.path, lambda: then(self.tokenizers.get(source)))


class Call(Protocol):
    """A call that is not running yet."""

    def poll(self) -> bool:
        """Go on if its model is ready; False once the call is over for this stage."""

    def cancel(self) -> None:
        """Give back what it holds. Nothing is sent any more. Harmless twice."""

    def fail(self, error: SidecarError) -> None:
        """Give back what it holds and end the call with an error; nothing if it was over."""


class LoadCall:
    """A GetOrLoad call."""

    def __init__(self, services: Services, call_id: int, request: pb.GetOrLoadRequest) -> None:
        self._services = services
        self._call_id = call_id
        self._request = request
        self._ticket: Ticket[LoadedModel] | None = None
        self._sent: Progress | None = None
        self._began = services.clock()
        self._over = threading.Event()
        wanted = Wanted(request.model, request.revision, request.adapter, request.allow_download, request.estimate_only)
        self._searches = Searches(services.finder, wanted)
        self._searches.begin(self)

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._over.is_set()

    def poll(self) -> bool:
        """Report progress, and end the call once its model is ready."""
        ticket = self._ticket
        if self.over or ticket is None:
            return not self.over
        if ticket.error is not None:
            self._ticket = None
            if not self._searches.again(self, ticket.error):
                self.fail(as_sidecar_error(ticket.error))
        elif ticket.lease is not None:
            self._ready(ticket)
        elif ticket.progress != self._sent:
            self._sent = ticket.progress
            self.progress(ticket.progress)
        return not self.over

    def cancel(self) -> None:
        """Stop waiting; the last caller of a load abandons it."""
        self._over.set()
        if self._ticket is not None:
            self._ticket.cancel()

    def progress(self, progress: Progress) -> None:
        """Tell how far it is; any thread."""
        if not self.over:
            self._services.outbox.load(self._call_id, model_info.progress(progress))

    def prepare(self, found: Found) -> Task[Found]:
        """Nothing is to be done off the MLX thread."""
        return already(self._request.model, found)

    def ready(self, found: Found) -> None:
        """Answer with an estimate, or wait for the model's weights."""
        if self.over:
            return
        request = self._request
        if request.estimate_only or isinstance(found, int):
            self._over.set()
            info = model_info.planned(request.model, found) if isinstance(found, int) else model_info.estimated(found)
            self._services.outbox.load(self._call_id, pb.GetOrLoadResponse(ready=info))
            return
        models = self._services.models
        if request.pin and not models.limits.budget_bytes:
            raise invalid("pin", "can keep nothing: model_cache_mb is 0")
        recalled = self._services.recalled
        self._services.seen(found)
        self._ticket = models.get_or_load(
            found,
            pin=request.pin if request.HasField("pin") else recalled.pin(found.name, request.adapter),
            ttl=seconds(request.ttl) if request.HasField("ttl") else recalled.ttl(found.name, request.adapter),
            options=request.skip_warmup,
        )

    def _ready(self, ticket: Ticket[LoadedModel]) -> None:
        assert ticket.lease is not None
        self._services.recalled.done(ticket.name, self._request.adapter)
        info = model_info.loaded(ticket.lease.model, ticket.name, ticket.outcome)
        info.evicted.extend(ticket.evicted)
        if info.outcome != pb.LOAD_OUTCOME_HIT:
            info.load_time.CopyFrom(duration(self._services.clock() - self._began))
            info.warmup_time.CopyFrom(duration(ticket.lease.model.warmup_time))
        self._over.set()
        ticket.cancel()
        self._services.outbox.load(self._call_id, pb.GetOrLoadResponse(ready=info))

    def fail(self, error: SidecarError) -> None:
        """Give back what it holds and end the call with an error; nothing if it was over."""
        if not self._over.is_set():
            self.cancel()
            self._services.outbox.fail(self._call_id, error)


class GenerateCall:
    """A Generate call until its sequence can run."""

    def __init__(self, services: Services, call_id: int, request: pb.GenerateRequest) -> None:
        self._services = services
        self._call_id = call_id
        self._request = request
        self._ticket: Ticket[LoadedModel] | None = None
        self._prepared: PreparedRequest | None = None
        self._draft: DraftModel | None = None
        self._times = Times(services.clock())
        self._asked = 0.0
        self._over = False
        self._searching = False
        wanted = Wanted(request.model, adapter=request.adapter)
        self._searches = Searches(services.finder, wanted)
        self._searches.begin(self)

    @property
    def over(self) -> bool:
        """Whether it has ended or runs."""
        return self._over

    @property
    def comes_soon(self) -> bool:
        """Whether its prompt is being tokenised, and its model did not have to be read or downloaded before that."""
        return self._ticket is None and not self._over and not self._searching

    def progress(self, progress: Progress) -> None:
        """Generate has no event for a model that is being read; the caller waits."""
        self._searching = True

    def prepare(self, found: Found) -> Task[PreparedRequest]:
        """Read the model's tokenizer, render the conversation if there is one, and tokenise the prompt."""
        assert isinstance(found, ModelSource)
        return self._services.with_tokenizer(found, partial(self._render, found))

    def _render(self, source: ModelSource, tokenizer: Tokenizer) -> Task[PreparedRequest]:
        request = self._request
        name, path = source.name, source.path
        if not request.HasField("chat"):
            # Encoding takes turns; ids need none, and do not wait for a long text.
            lane = path, request.WhichOneof("prompt")
            return Task(PROMPT, name, lane, lambda: prepare_request(request, source, tokenizer))

        def rendered() -> Task[PreparedRequest]:
            text = render(request.chat, tokenizer)
            return Task(PROMPT, name, (path, "text"), lambda: prepare_request(request, source, tokenizer, text))

        return Task(TEMPLATE, name, path, rendered)

    def ready(self, result: PreparedRequest) -> None:
        """Wait for the model's weights."""
        if self._over:
            return
        first, self._prepared = self._prepared is None, result
        request, services = self._request, self._services
        if first:
            services.outbox.accepted(self._call_id, len(result.prompt.tokens))
            self._asked = services.clock()
        self._ticket = services.load(result.source, request.adapter, loaded_only=request.require_loaded)

    def poll(self) -> bool:
        """Hand the sequence to the runner once its model, and its draft model, are ready."""
        ticket = self._ticket
        if self._over or ticket is None or not ticket.done:
            return not self._over
        if ticket.error is not None:
            self._ticket = None
            if not self._searches.again(self, ticket.error):
                self.fail(as_sidecar_error(ticket.error))
        elif not self._request.draft_model:
            self._start(ticket)
        else:
            self._poll_draft(ticket)
        return not self._over

    def _poll_draft(self, ticket: Ticket[LoadedModel]) -> None:
        assert self._prepared is not None
        assert ticket.lease is not None
        if self._draft is None:
            self._draft = DraftModel(self._services, self._request, self._prepared.tokenizer, ticket.lease.model)
        draft = self._draft.poll()
        if draft is not None:
            self._start(ticket, draft)

    def cancel(self) -> None:
        """Stop waiting; the last caller of a load abandons it."""
        self._over = True
        for one in (self._ticket, self._draft):
            if one is not None:
                one.cancel()

    def _start(self, ticket: Ticket[LoadedModel], draft: Guesser | None = None) -> None:
        assert ticket.lease is not None
        self._services.recalled.done(ticket.name, self._request.adapter)
        if ticket.outcome is not Outcome.HIT:
            self._times.load = self._services.clock() - self._asked
        loaded = ticket.lease.model
        assert self._prepared is not None
        prompt = self._prepared.prompt
        models = [loaded] if draft is None else [loaded, draft.lease.model]
        need = sum(kv_need(model.layout, len(prompt.tokens), prompt.max_tokens) for model in models)
        self._services.ledger.refuse_if_never(need, sum(model.nbytes for model in models))
        sequence = self._sequence(ticket.lease, self._prepared.source, self._prepared)
        if draft is not None:
            guesser = self._sequence(draft.lease, draft.source, self._prepared)
            guesser = replace(guesser, generated=sequence.generated)
            sequence.draft = Draft(guesser, self._request.draft_tokens or DEFAULT_TOKENS)
        self._services.runner.add(sequence)
        self._over = True

    def _sequence(self, lease: ModelLease[LoadedModel], source: ModelSource, ready: PreparedRequest) -> Sequence:
        tokenizer, prompt = ready.tokenizer, ready.prompt
        request = self._request
        model = lease.model
        stop = request.stop
        mode = request.cache.mode
        namespace = Namespace(source.key.weights, source.key.adapter, model.layout.signature, request.cache.salt)
        self._services.shares(namespace, source)
        return Sequence(
            call_id=self._call_id,
            request_id=request.request_id,
            model_name=source.name,
            model=lease,
            prompt=prompt.tokens,
            max_tokens=prompt.max_tokens,
            params=Params.of(request.sampling),
            stop_ids=frozenset(stop.token_ids) | (frozenset() if stop.ignore_eos else tokenizer.eos_ids),
            message_ends=tokenizer.eos_ids,
            top_logprobs=request.top_logprobs if request.HasField("top_logprobs") else None,
            output=ready.output,
            namespace=namespace.digest(),
            reads=mode != pb.CACHE_MODE_BYPASS,
            writes=mode in (pb.CACHE_MODE_UNSPECIFIED, pb.CACHE_MODE_READ_WRITE),
            times=self._times,
            priority=request.priority,
            channels=ready.channels,
            constraint=ready.constraint(model.vocab_size),
        )

    def fail(self, error: SidecarError) -> None:
        """Give back what it holds and end the call with an error; nothing if it was over."""
        if not self._over:
            self.cancel()
            self._services.outbox.fail(self._call_id, error)
