"""A sequence: one Generate request from its prompt to its last token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from daemon.cache.entry import ModelLease
from daemon.cache.identity import ModelKey
from daemon.cache.mlx.loader import LoadedModel
from daemon.engine.execution.sampling import Params
from daemon.engine.output.answer_parser import AnswerParser
from daemon.engine.output.detokenizer import Output, Piece, Token
from daemon.engine.structured_output.token_mask import TokenMask
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.lease import PrefixLease
from daemon.kv.mlx.request_kv import Boundary
from daemon.shared.durations import duration
from mlx_sidecar.v1 import sidecar_pb2 as pb


@dataclass(slots=True)
class Times:
    """Moments and spans of a request, in seconds of the engine's clock."""

    arrived: float
    load: float = 0.0
    lookup: float = 0.0
    restore: float = 0.0
    started: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0

    def message(self) -> pb.Timings:
        """Return them as the API's Timings: the spans before the first token add up to it."""
        restored = self.started + self.lookup + self.restore
        spans = {
            "queue": self.started - self.arrived - self.load,
            "load": self.load,
            "lookup": self.lookup,
            "restore": self.restore,
            "prefill": self.first_token - restored,
            "decode": self.last_token - self.first_token,
            "first_token": self.first_token - self.arrived,
        }
        return pb.Timings(**{name: duration(max(0.0, seconds)) for name, seconds in spans.items()})


@dataclass(slots=True, eq=False)
class Sequence:
    """
    One request that has its model.

    Attributes:
        call_id: The call that it answers.
        model_name: The name that its model was asked for by.
        prompt: Ids of the prompt.
        max_tokens: Most tokens to generate.
        stop_ids: Ids that end it.
        message_ends: Ids that end a message of its prompt.
        top_logprobs: Alternatives wanted for each token; None if no log-probabilities are.
        namespace: Digest under which its KV may be shared.
        priority: Higher starts and prefills first.
        reads, writes: Whether it may reuse cached prefixes, and store its own.
        generated: Tokens sampled so far.
        cached: Prompt tokens whose KV was reused.
        cache: Its KV, one mlx-lm cache for each layer; None until prefill begins, in a batch, and at the end.
        channels: Takes its answer apart; None if all of it is text.
        constraint: Which tokens it may sample; None if all.
        logits: Those after its prompt, [1, vocab], until it decodes; None if its last token was not computed yet.
        held: Tokens whose KV its cache, or its row of a batch, holds.
        boundary: The state of recurrent layers at the last end of a block.
        prefix: Its hold on the prefix that it reused.
        draft: The model that guesses for it; None if none does.
    """

    call_id: int
    request_id: str
    model_name: str
    model: ModelLease[LoadedModel]
    prompt: list[int]
    max_tokens: int
    params: Params
    stop_ids: frozenset[int]
    message_ends: frozenset[int]
    top_logprobs: int | None
    output: Output
    namespace: str
    reads: bool
    writes: bool
    times: Times
    channels: AnswerParser | None = None
    constraint: TokenMask | None = None
    priority: int = 0
    generated: list[int] = field(default_factory=list)
    cached: int = 0
    cache: list[Any] | None = None
    logits: Any = None
    held: int = 0
    boundary: Boundary | None = None
    prefix: PrefixLease | None = None
    draft: Draft | None = None

    @property
    def model_key(self) -> ModelKey:
        """Identity of its model."""
        return self.loaded.source.key

    @property
    def loaded(self) -> LoadedModel:
        """Its model."""
        return self.model.model

    @property
    def arrived(self) -> float:
        """Its arrival, in seconds of the engine's clock."""
        return self.times.arrived

    @property
    def tokens_in_cache(self) -> list[int]:
        """Exactly the tokens whose KV its cache, or its row of a batch, holds."""
        return (self.prompt + self.generated)[: self.held]

    def advanced(self, tokens: int, caches: list[Any], row: int | None = None) -> None:
        """
        Count tokens that were fed to its model, and keep the state of recurrent layers at the end of a block.

        Args:
            tokens: How many.
            caches: What the model wrote to.
            row: Which row of it, if it is that of a batch.
        """
        self.held += tokens
        layout = self.loaded.layout
        if layout.states and self.writes and self.held % BLOCK_TOKENS == 0:
            self.boundary = Boundary(self.held, layout.state(caches, row))

    def started(self) -> pb.GenerateResponse:
        """Return its first event."""
        return pb.GenerateResponse(
            started=pb.Started(
                request_id=self.request_id,
                model=self.model_name,
                prompt_tokens=len(self.prompt),
                cached_tokens=self.cached,
            )
        )

    def progress(self, done: int) -> pb.GenerateResponse:
        """Return the event that `done` prompt tokens are in the cache."""
        return pb.GenerateResponse(prefill=pb.PrefillProgress(done=done, total=len(self.prompt)))

    def accept(self, token: Token, now: float) -> tuple[Piece, pb.FinishReason | None]:
        """
        Take a sampled token.

        Returns:
            What may be sent, and why the sequence has ended, if it has.
        """
        piece, reason = self._accept(token, now)
        if self.channels is None:
            return piece, reason
        parts = self.channels.add(piece.text)
        text, reasoning, calls = parts.text, parts.reasoning, parts.calls
        if reason is not None:
            ended = reason == pb.FINISH_REASON_STOP and not self.output.stop_match
            rest = self.channels.finish(ended=ended)
            text, reasoning, calls = text + rest.text, reasoning + rest.reasoning, calls + rest.calls
            if ended and self.channels.calls:
                reason = pb.FINISH_REASON_TOOL_CALLS
        return Piece(text, piece.tokens, reasoning, calls), reason

    def _accept(self, token: Token, now: float) -> tuple[Piece, pb.FinishReason | None]:
        self.generated.append(token.id)
        self.times.last_token = now
        if len(self.generated) == 1:
            self.times.first_token = now
        if token.id in self.stop_ids:
            return self.output.finish(), pb.FINISH_REASON_STOP
        piece = self.output.add(token)
        if self.output.stop_match:
            return piece, pb.FINISH_REASON_STOP
        if len(self.generated) < self.max_tokens:
            return piece, None
        rest = self.output.finish()
        reason = pb.FINISH_REASON_STOP if self.output.stop_match else pb.FINISH_REASON_LENGTH
        return Piece(piece.text + rest.text, piece.tokens + rest.tokens), reason

    def finished(self, reason: pb.FinishReason) -> pb.GenerateResponse:
        """Return its last event."""
        usage = pb.Usage(
            prompt_tokens=len(self.prompt), cached_tokens=self.cached, completion_tokens=len(self.generated)
        )
        if self.draft is not None:
            usage.draft_tokens, usage.accepted_tokens = self.draft.proposed, self.draft.accepted
        return pb.GenerateResponse(
            finished=pb.Finished(
                reason=reason, stop_match=self.output.stop_match, usage=usage, timings=self.times.message()
            )
        )

    def release(self) -> None:
        """Give its KV, its hold on the prefix cache and its model back; called exactly once."""
        self.cache = self.boundary = None
        if self.draft is not None:
            self.draft.sequence.release()
        if self.prefix is not None:
            self.prefix.release()
        self.model.release()


@dataclass(slots=True)
class Draft:
    """
    A smaller model that guesses for a sequence.

    Attributes:
        sequence: The same request as a sequence of the smaller model.
        count: How many tokens it guesses at a time.
        proposed: Tokens that it guessed.
        accepted: How many of them were right.
    """

    sequence: Sequence
    count: int
    proposed: int = 0
    accepted: int = 0


def delta(piece: Piece, *, logprobs: bool) -> pb.GenerateResponse:
    """Return the event for a piece of text."""
    ids = [token.id for token in piece.tokens]
    message = pb.Delta(text=piece.text, token_ids=ids, reasoning=piece.reasoning, tool_calls=piece.calls)
    if logprobs:
        message.logprobs.extend(_logprob(token) for token in piece.tokens)
    return pb.GenerateResponse(delta=message)


def _logprob(token: Token) -> pb.TokenLogprob:
    top = [pb.TopLogprob(token_id=id_, logprob=logprob) for id_, logprob in token.top]
    return pb.TokenLogprob(token_id=token.id, logprob=token.logprob or 0.0, top=top)
