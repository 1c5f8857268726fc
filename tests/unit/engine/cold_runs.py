"""
Compares any answer with a cold run: that of an engine that reuses nothing, shares nothing and guesses nothing.

Where log-probabilities may be off by rounding, two tokens can be so close that rounding decides between them: one of
some thousand sampled answers has such a place. Another answer than the cold one is right only if a cold run gives
exactly that one when its logits are off by as little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Protocol

import mlx.core as mx

from daemon.engine.execution import sampling
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.harness import Answer

CLOSE = 2e-3
"""Of log-probabilities, where the shape of a product or of a scan depends on where a chunk begins."""

ROUNDINGS = (1e-6, 1e-5, 1e-4)
"""How far logits are off in the runs that are to explain another answer; more than 1e-5 was seen of scans alone."""
TRIES = 16
"""Runs with each of them: about half of them decide a tie in the other way."""


class Sample:
    """
    What one sample of an answer says.

    Args:
        answer: The answer.
        index: The sample.
    """

    def __init__(self, answer: Answer, index: int = 0) -> None:
        events = [event.generate for event in answer.events]
        deltas = [event.delta for event in events if event.HasField("delta") and event.delta.index == index]
        self.ids = [token for delta in deltas for token in delta.token_ids]
        self.text = "".join(delta.text for delta in deltas)
        self.reasoning = "".join(delta.reasoning for delta in deltas)
        self.calls = [(call.name, call.arguments_json) for delta in deltas for call in delta.tool_calls]
        self.logprobs = [entry for delta in deltas for entry in delta.logprobs]
        self.finished = next(e.finished for e in events if e.HasField("finished") and e.finished.index == index)

    @property
    def said(self) -> tuple[Any, ...]:
        """All that it says, but for its scores: tokens, channels and how it ended."""
        end, usage = self.finished, self.finished.usage
        counts = (usage.prompt_tokens, usage.completion_tokens, usage.reasoning_tokens)
        return self.ids, self.text, self.reasoning, self.calls, end.reason, end.stop_match, counts

    def turns(self, *, reasoning: bool) -> list[pb.ChatMessage]:
        """Return the turns of a conversation that it makes: its own, and the answers of the tools that it calls."""
        turn = pb.ChatMessage(
            role="assistant", content=self.text, reasoning_content=self.reasoning if reasoning else ""
        )
        for number, (name, arguments) in enumerate(self.calls):
            turn.tool_calls.add(id=f"call{number}", name=name, arguments_json=arguments)
        return [turn, *(pb.ChatMessage(role="tool", content="done", tool_call_id=call.id) for call in turn.tool_calls)]


class Runs(Protocol):
    """
    An engine that runs requests: a harness, or a daemon.

    Attributes:
        events: Events of requests that have ended; nothing needs them any more.
    """

    events: list[ipc.Event]

    def run(self, request: pb.GenerateRequest) -> Answer:
        """Return the answer to a request."""


@contextmanager
def rounded(size: float, seed: int) -> Iterator[None]:
    """Let logits be off by so much, at random, in all engines of this process."""
    draw, likeliest, numbers = sampling.Sampler._draw, sampling.draw_likeliest, count()

    def off(logits: mx.array) -> mx.array:
        key = mx.random.key(1_000_000 * seed + next(numbers))
        return logits.astype(mx.float32) + size * mx.random.normal(logits.shape, key=key)

    sampling.Sampler._draw = lambda self, logits, *rest: draw(self, off(logits), *rest)  # type: ignore[method-assign]
    sampling.draw_likeliest = lambda logits: likeliest(off(logits))
    try:
        yield
    finally:
        sampling.Sampler._draw, sampling.draw_likeliest = draw, likeliest  # type: ignore[method-assign]


class ColdRuns:
    """
    Cold runs of requests, each of which is run once.

    Args:
        harness: An engine of its own, or whatever answers as one.
        bound: How far log-probabilities may be off; 0 for bits.
        near: Whether the engine is in this process, so that its logits can be off as by rounding.

    Attributes:
        checked: Samples that were compared.
        ties: How many of them were another answer than the cold one, because of a tie.
    """

    def __init__(self, harness: Runs, bound: float, *, near: bool = False) -> None:
        self.checked = self.ties = 0
        self._harness = harness
        self._bound = bound
        self._near = near
        self._known: dict[bytes, Answer] = {}

    def check(self, request: pb.GenerateRequest, answer: Answer) -> None:
        """Compare each sample of an answer, and the scores of its prompt."""
        assert not answer.failure.message, answer.failure
        for finished in (e.generate.finished for e in answer.events if e.generate.HasField("finished")):
            asked = self._asked(request, finished.seed if finished.HasField("seed") else None)
            own, cold = Sample(answer, finished.index), self._run(asked)
            alone = Sample(cold)
            self.checked += 1
            if own.said != alone.said:
                alone = self._tied(asked, own) or alone
            assert own.said == alone.said, f"sample {finished.index}"
            self._same(own.logprobs, alone.logprobs)
            self._same(scores(answer), scores(cold))

    def _tied(self, asked: pb.GenerateRequest, own: Sample) -> Sample | None:
        """Return the cold run that says the same as an answer, off by no more than rounding; None if none does."""
        for size in ROUNDINGS if self._near and self._bound else ():
            for seed in range(TRIES):
                with rounded(size, seed):
                    alone = Sample(self._harness.run(asked))
                self._harness.events.clear()
                if alone.said == own.said:
                    self.ties += 1
                    assert self.ties <= 3 + self.checked // 100, "so many ties are no chance"
                    return alone
        return None

    def _asked(self, request: pb.GenerateRequest, seed: int | None) -> pb.GenerateRequest:
        """Return a request, or that for one of its samples, which its seed names, as it is run cold."""
        cold = pb.GenerateRequest()
        cold.CopyFrom(request)
        for field in ("draft_model", "draft_tokens", "samples", "priority"):
            cold.ClearField(field)
        cold.cache.CopyFrom(pb.CacheOptions(mode=pb.CACHE_MODE_BYPASS))
        cold.speculation = pb.SPECULATION_OFF
        if seed is not None:
            cold.sampling.seed = seed
        return cold

    def _run(self, cold: pb.GenerateRequest) -> Answer:
        """Return the answer to a request that is run cold."""
        key = cold.SerializeToString(deterministic=True)
        if key not in self._known:
            self._known[key] = self._harness.run(cold)
            self._harness.events.clear()
        assert not self._known[key].failure.message, self._known[key].failure
        return self._known[key]

    def _same(self, some: Sequence[pb.TokenLogprob], expected: Sequence[pb.TokenLogprob]) -> None:
        if not self._bound:
            assert list(some) == list(expected)
        for one, other in zip(some, expected, strict=True):
            assert one.token_id == other.token_id
            assert abs(one.logprob - other.logprob) <= self._bound


def scores(answer: Answer) -> list[pb.TokenLogprob]:
    """Return the log-probabilities of a prompt."""
    return [entry for event in answer.events for entry in event.generate.prompt_logprobs.logprobs]
