"""
A request that has its model, from the waiting list to its last token.

Four types share the work: `Request` is the frozen input, `SequenceKV` is the cache of keys and values under one model,
`Answer` is what was sampled, and `Sequence` is the progress of all of it. Its events are in `events.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from daemon.cache.identity import ModelKey
from daemon.cache.mlx.loader import LoadedModel
from daemon.engine.execution.answer import Answer
from daemon.engine.execution.events import (
    Finished,
    FinishReason,
    Guesses,
    PrefillProgress,
    PromptLogprobs,
    Started,
    Timings,
    Usage,
)
from daemon.engine.execution.head_kv import HeadKV
from daemon.engine.execution.pooling import Pooled, trunk
from daemon.engine.execution.request import Request, Speculation
from daemon.engine.execution.sequence_kv import DraftKV, SequenceKV
from daemon.engine.output.detokenizer import Piece, Token
from daemon.engine.structured_output.constraint import Constraint
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.miss import PLACED
from daemon.shared.errors import Reason, SidecarError


@dataclass(slots=True)
class Times:
    """Moments of a request (`arrived`, `started`, `first_token`, `last_token`) and spans, in seconds of the clock."""

    arrived: float
    load: float = 0.0
    lookup: float = 0.0
    restore: float = 0.0
    started: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0

    def spans(self) -> Timings:
        """Return them as spans, none below zero."""
        restored = self.started + self.lookup + self.restore
        return Timings(
            queue=max(0.0, self.started - self.arrived - self.load),
            load=max(0.0, self.load),
            lookup=max(0.0, self.lookup),
            restore=max(0.0, self.restore),
            prefill=max(0.0, self.first_token - restored),
            decode=max(0.0, self.last_token - self.first_token),
            first_token=max(0.0, self.first_token - self.arrived),
        )


@dataclass(slots=True, eq=False)
class Sequence:
    """
    One request that has its model.

    Attributes:
        kv: Its KV, and the holds that come with it.
        answer: Its answer, with the request.
        times: Its times.
        constraint: Decides which tokens it may sample; None if all.
        draft: KV of the draft model that guesses for it; None without a draft model.
        head: What the model's MTP head knows of it; None if that does not guess.
        guesses: Tokens that each kind of source guessed for it, and how many of them were right.
        pooled: Takes the hidden states of its prompt, which is a text to embed and ends with its prefill; None if it
            generates.
        logits: Those after its prompt, [1, vocab], until it decodes; None if its last token was not computed yet.
        samples: Further answers to its prompt, which decode from its KV; none once they do.
        text: Returns the text of a token alone, for log-probabilities.
        scores: Tokens of its prompt with their log-probabilities, until they are sent.
        scored: Tokens of its prompt up to the last that was sent with its log-probability.
        paused: Whether its prompt waits because its reader lags; the decoder knows those that decode.
    """

    kv: SequenceKV
    answer: Answer
    times: Times
    constraint: Constraint | None = None
    draft: DraftKV | None = None
    head: HeadKV | None = None
    guesses: dict[int, tuple[int, int]] = field(default_factory=dict)
    pooled: Pooled | None = None
    logits: Any = None
    samples: list[Sequence] = field(default_factory=list)
    text: Callable[[int], str] = str
    scores: list[Token] = field(default_factory=list)
    scored: int = 1
    paused: bool = False

    @property
    def request(self) -> Request:
        """The request."""
        return self.answer.request

    @property
    def generated(self) -> list[int]:
        """Tokens sampled so far."""
        return self.answer.tokens

    @property
    def call_id(self) -> int:
        """The call that it answers."""
        return self.request.call_id

    @property
    def prompt(self) -> list[int]:
        """Ids of the prompt."""
        return self.request.prompt

    @property
    def loaded(self) -> LoadedModel:
        """Its model."""
        return self.kv.loaded

    @property
    def model_key(self) -> ModelKey:
        """Identity of its model."""
        return self.kv.model_key

    @property
    def namespace(self) -> str:
        """Digest under which its KV may be shared; namespaces take turns."""
        return self.kv.namespace

    @property
    def program(self) -> str:
        """The program that called; programs take turns."""
        return self.request.program

    @property
    def priority(self) -> int:
        """Higher starts and prefills first."""
        return self.request.priority

    @property
    def arrived(self) -> float:
        """Its arrival, in seconds of the engine's clock."""
        return self.times.arrived

    @property
    def rows(self) -> int:
        """Sequences that decode when its prompt is computed: itself and its further samples."""
        return 1 + len(self.samples)

    def split(self, *, copy: bool) -> list[Sequence]:
        """
        Return it and its further samples, each ready to decode after the same prompt.

        Args:
            copy: Whether each of them gets a copy of its cache; else they are to be rows of one batch.
        """
        samples, self.samples = self.samples, []
        for sample in samples:
            self.kv.share(sample.kv, copy=copy)
            sample.logits, sample.times = self.logits, replace(self.times)
        return [self, *samples]

    @property
    def kvs(self) -> list[SequenceKV]:
        """Its KV, and its draft model's if there is one."""
        return [self.kv] if self.draft is None else [self.kv, self.draft.kv]

    @property
    def prefill_end(self) -> int:
        """Tokens of the prompt that prefill computes: all but the last, which the decoder feeds, if there is one."""
        return len(self.prompt) - (self.pooled is None)

    def module(self, kv: SequenceKV, *, last: bool = False) -> Any:
        """
        Return what computes one of its KVs: the model, or the part of it that computes hidden states.

        Args:
            kv: The KV.
            last: Whether only the logits after the last token are wanted. There may be more.
        """
        if self.head is not None and kv is self.kv:
            return partial(self.head.compute, kv.held, last=last)
        if self.pooled is not None:
            return trunk(kv.loaded.model)
        return kv.loaded.last if last and kv.loaded.last is not None else kv.loaded.model

    def tokens_in(self, kv: SequenceKV) -> list[int]:
        """Return exactly the tokens that one of its KVs holds."""
        return (self.prompt + self.generated)[: kv.held]

    def resumable_in(self, kv: SequenceKV) -> int | None:
        """
        Return after how many tokens of one of its KVs another prompt is likely to go on; None for all.

        A prompt with a template has the token behind the answer that ended it. Text without one does not: then it is
        the last whole block before that token.
        """
        last = self.tokens_in(kv)[-1:]
        if not self.generated or kv.loaded.layout.parts.resumes_anywhere or self.request.stop_ids.isdisjoint(last):
            return None
        return None if last[0] in self.prompt else (kv.held - 1) // BLOCK_TOKENS * BLOCK_TOKENS

    def started(self) -> Started:
        """Return its first event."""
        request, miss, place = self.request, self.kv.miss, None
        if miss is not None and miss.reason in PLACED and request.places is not None:
            place = request.places.at(miss.token)
        return Started(
            request.request_id, request.model_name, len(self.prompt), self.kv.cached, request.warnings, miss, place,
            self.kv.from_disk,
        )  # fmt: skip

    def progress(self, done: int) -> PrefillProgress:
        """Return the event that `done` prompt tokens are in the cache."""
        return PrefillProgress(done, len(self.prompt))

    def take_scores(self) -> PromptLogprobs | None:
        """Return the event of the tokens that were scored since the last call, if there are any."""
        tokens, self.scores = self.scores, []
        start, self.scored = self.scored, self.scored + len(tokens)
        return PromptLogprobs(start, tokens) if tokens else None

    def accept(self, token: Token, now: float) -> tuple[Piece, FinishReason | None]:
        """Take a sampled token, which was read `now`; see `Answer.accept`."""
        self.times.last_token = now
        if not self.generated:
            self.times.first_token = now
        return self.answer.accept(token)

    def finished(self, reason: FinishReason, *, more: bool = False) -> Finished:
        """Return its last event; there are `more` if other samples of its request are still to end."""
        proposed, accepted = self.guesses.get(Speculation.DRAFT, (0, 0))
        usage = Usage(
            len(self.prompt), self.kv.cached, len(self.generated), proposed, accepted, self.answer.reasoning_tokens,
            tuple(Guesses(kind, *counts) for kind, counts in sorted(self.guesses.items())),
        )  # fmt: skip
        request, spans = self.request, self.times.spans()
        return Finished(reason, self.answer.output.stop_match, usage, spans, request.index, request.sampling.seed, more)

    def release(self) -> None:
        """Give KV, prefixes and models back, those of samples that did not begin included; called exactly once."""
        for sample in self.samples:
            sample.release()
        self.head = None
        for kv in reversed(self.kvs):
            kv.release()


def nan_logits(sequence: Sequence) -> SidecarError:
    """Return the error of a model with logits that are no numbers."""
    name = sequence.loaded.source.name
    return SidecarError(Reason.NAN_LOGITS, f"{name} computed logits that are no numbers; its weights may be bad")
