"""Exactness: an answer is that of plain mlx-lm, bit by bit, whatever was cached before and whatever runs beside it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import pytest

from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.harness import Answer, Harness, Reference, generate
from tools.embedded import corpus

READ_ONLY = pb.CacheOptions(mode=pb.CACHE_MODE_READ_ONLY)
SAMPLED = pb.Sampling(temperature=1.0, top_p=0.9, seed=7)


def assert_is(answer: Answer, reference: Reference, prompt: list[int], count: int) -> None:
    """Compare an answer with the reference, log-probabilities bit by bit."""
    ids, logprobs = reference.greedy(prompt, count)
    assert answer.ids == ids
    assert [entry.logprob for entry in answer.logprobs] == logprobs


@pytest.mark.parametrize("tokens", [40, 150, 700])
def test_cold_and_warm_answers_match_mlx_lm(harness: Harness, reference: Reference, tokens: int) -> None:
    """At several lengths, to the last bit of the log-probabilities."""
    example = next(corpus.held_out(seed=5, tokens_hint=tokens))
    request = generate(example.completion(), top_logprobs=3)
    prompt = reference.tokenizer.encode(example.completion())
    cold, warm = harness.run(request), harness.run(request)
    assert cold.cached == 0
    assert warm.cached == len(prompt) - 1
    assert warm.content == cold.content
    assert_is(cold, reference, prompt, 12)
    harness.settle()


def test_reuse_is_exact_at_every_prefix_length(harness: Harness, reference: Reference) -> None:
    """A prompt that parts from the cached one anywhere reuses what is equal and no more."""
    base = reference.tokenizer.encode(next(corpus.held_out(seed=6, tokens_hint=120)).completion())
    harness.run(pb.GenerateRequest(model="embedded", tokens=pb.TokenIds(ids=base), max_tokens=1))
    for length in (1, 2, 15, 16, 17, 31, 32, 33, 48, 49, 64, len(base)):
        other = 40 if base[length - 1] != 40 else 41
        for prompt in (base[:length], [*base[: length - 1], other]):
            answer = harness.run(
                pb.GenerateRequest(
                    model="embedded", tokens=pb.TokenIds(ids=prompt), max_tokens=4, top_logprobs=0, cache=READ_ONLY
                )
            )
            assert_is(answer, reference, prompt, 4)
            assert answer.cached == (length - 1 if length > 16 else 0)


def test_chat_turns_reuse_earlier_turns_exactly(harness: Harness, reference: Reference) -> None:
    """Prompts are rendered by the model's own template."""
    example = next(corpus.held_out(seed=7, tokens_hint=100))
    before = 0
    for turns in range(3):
        messages = example.dialogue(turns)
        prompt = reference.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        chat = pb.Chat(messages=[pb.ChatMessage(role=one["role"], content=one["content"]) for one in messages])
        answer = harness.run(pb.GenerateRequest(model="embedded", chat=chat, max_tokens=12, top_logprobs=0))
        assert answer.started.prompt_tokens == len(prompt)
        assert answer.cached >= before
        assert_is(answer, reference, prompt, 12)
        before = len(reference.tokenizer.apply_chat_template(messages[:-1]))  # the last question comes later next time


def test_generated_tokens_are_reused_exactly(harness: Harness, reference: Reference) -> None:
    """A prompt that goes on where an answer ended finds the answer's KV, and is exact all the same."""
    prompt = reference.tokenizer.encode(next(corpus.held_out(seed=8, tokens_hint=60)).completion())
    stop = pb.Stop(ignore_eos=True)
    ids = pb.TokenIds(ids=prompt)
    first = harness.run(pb.GenerateRequest(model="embedded", tokens=ids, max_tokens=40, stop=stop))
    longer = prompt + first.ids + [50, 51]
    answer = harness.run(
        pb.GenerateRequest(model="embedded", tokens=pb.TokenIds(ids=longer), max_tokens=8, top_logprobs=0)
    )
    assert answer.cached >= len(prompt) + 39
    assert_is(answer, reference, longer, 8)


def test_answers_follow_their_own_prompt(harness: Harness, reference: Reference) -> None:
    """Contexts that differ in one code get answers that differ in it: no KV of the other is taken."""
    rng = corpus.held_out_rng(9)
    differ = 0
    for example in islice(corpus.held_out(seed=9, tokens_hint=150), 3):
        texts = []
        for variant in (example, corpus.contrast(rng, example)):
            answer = harness.run(generate(variant.completion(), top_logprobs=0))
            assert_is(answer, reference, reference.tokenizer.encode(variant.completion()), 12)
            texts.append(answer.text)
        differ += texts[0] != texts[1]
    assert differ >= 2


@pytest.mark.parametrize("sampling", [pb.Sampling(), SAMPLED], ids=["greedy", "seeded"])
def test_answers_are_unchanged_in_a_batch(
    harness: Harness, engine: Callable[..., Harness], sampling: pb.Sampling
) -> None:
    """A batch of requests, some of which share a prefix, gives each the answer that it has alone."""
    examples = list(islice(corpus.held_out(seed=10, tokens_hint=100), 2))
    prompts = [one.completion() for one in examples] + [one.context + " The" for one in examples]
    requests = [generate(prompt, sampling=sampling, top_logprobs=2) for prompt in prompts]
    alone = [engine().run(request).content for request in requests]
    calls = [harness.begin(request) for request in requests]
    together = [Answer(harness.finish(call)).content for call in calls]
    assert together == alone
    harness.settle()


def test_answers_differ_by_seed_and_without_a_seed(harness: Harness) -> None:
    """Sampling is random unless it is asked not to be."""
    hot = [pb.Sampling(temperature=3.0, seed=seed) for seed in (1, 1, 2)] + [pb.Sampling(temperature=3.0)] * 2
    stop = pb.Stop(ignore_eos=True)
    ids = [harness.run(generate("The code of", sampling=one, stop=stop, max_tokens=20)).ids for one in hot]
    assert ids[0] == ids[1]
    assert len({tuple(one) for one in ids}) == 4


def test_answers_are_unchanged_when_rows_join_or_leave(harness: Harness, engine: Callable[..., Harness]) -> None:
    """Sequences come and go at any step."""
    example = next(corpus.held_out(seed=11, tokens_hint=100))
    request = generate(example.completion(), sampling=SAMPLED, max_tokens=30, stop=pb.Stop(ignore_eos=True))
    alone = engine().run(request).content
    call = harness.begin(request)
    harness.until(lambda: harness.decoding(call))
    neighbour = harness.begin(generate("The", max_tokens=500, stop=pb.Stop(ignore_eos=True)))
    harness.until(lambda: harness.decoding(neighbour))
    harness.cancel(neighbour)
    assert Answer(harness.finish(call)).content == alone
    harness.settle()
