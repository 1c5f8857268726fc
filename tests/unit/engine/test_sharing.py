"""Requests that arrive together share what they have in common, although none of it was cached when they came."""

from __future__ import annotations

from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.harness import Answer, Harness, generate
from tools.embedded import corpus


def test_concurrent_prompts_prefill_common_prefix_once(harness: Harness) -> None:
    """Six requests over one cold context: the first computes it, the others find it."""
    example = next(corpus.held_out(seed=82, tokens_hint=400))
    questions = [corpus.completion_question(corpus.question(fact)) for fact in example.facts[:6]]
    calls = [harness.begin(generate(example.context + question, max_tokens=10)) for question in questions]
    answers = [Answer(harness.finish(call)) for call in calls]
    assert answers[0].cached == 0
    assert all(answer.cached >= answer.started.prompt_tokens - 32 for answer in answers[1:])
    for question, answer in zip(questions, answers, strict=True):
        alone = generate(example.context + question, max_tokens=10)
        alone.cache.mode = pb.CACHE_MODE_BYPASS
        assert harness.run(alone).ids == answer.ids


def test_cancelled_prefill_leaves_its_prefix(harness: Harness) -> None:
    """The follower goes on from there."""
    text = next(corpus.held_out(seed=83, tokens_hint=1500)).completion()
    leader, follower = (harness.begin(generate(text, max_tokens=4)) for _ in range(2))
    harness.until(lambda: any(event.generate.HasField("prefill") for event in harness.of(leader)))
    harness.cancel(leader)
    assert Answer(harness.finish(follower)).cached > 0
    harness.settle()
