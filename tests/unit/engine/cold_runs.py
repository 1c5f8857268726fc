"""Compares any answer with a cold run: that of an engine that reuses nothing, shares nothing and guesses nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.harness import Answer

CLOSE = 2e-3
"""Of log-probabilities, where the shape of a product or of a scan depends on where a chunk begins."""


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
        """All that does not depend on rounding: tokens, channels and how it ended."""
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


class ColdRuns:
    """
    Cold runs of requests, each of which is run once.

    Args:
        harness: An engine of its own, or whatever answers as one.
        bound: How far log-probabilities may be off; 0 for bits.
    """

    def __init__(self, harness: Runs, bound: float) -> None:
        self._harness = harness
        self._bound = bound
        self._known: dict[bytes, Answer] = {}

    def check(self, request: pb.GenerateRequest, answer: Answer) -> None:
        """Compare each sample of an answer, and the scores of its prompt."""
        assert not answer.failure.message, answer.failure
        for finished in (e.generate.finished for e in answer.events if e.generate.HasField("finished")):
            cold = self._run(request, finished.seed if finished.HasField("seed") else None)
            own, alone = Sample(answer, finished.index), Sample(cold)
            assert own.said == alone.said, f"sample {finished.index}"
            self._same(own.logprobs, alone.logprobs)
            self._same(scores(answer), scores(cold))

    def _run(self, request: pb.GenerateRequest, seed: int | None) -> Answer:
        """Return the answer to a request, or to one of its samples, which its seed names."""
        cold = pb.GenerateRequest()
        cold.CopyFrom(request)
        for field in ("draft_model", "draft_tokens", "samples", "priority"):
            cold.ClearField(field)
        cold.cache.CopyFrom(pb.CacheOptions(mode=pb.CACHE_MODE_BYPASS))
        cold.speculation = pb.SPECULATION_OFF
        if seed is not None:
            cold.sampling.seed = seed
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
