"""Batches change how fast tokens come and nothing else: who shares a forward pass, and that nobody notices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.engine.execution import batch, decoder
from daemon.engine.execution.together import forward
from daemon.engine.prompt.tokenizer import Tokenizer
from daemon.engine.scheduling.padding import FREE_PADDING, fits
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import random_model
from tests.unit.engine.harness import Answer, Harness, generate
from tools.embedded import corpus

STOP = pb.Stop(ignore_eos=True)
PROMPTS = [example.completion() for example in islice(corpus.held_out(seed=80, tokens_hint=100), 6)]


@pytest.fixture(name="passes")
def _passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the numbers of rows of the forward passes of batches, as they happen."""
    seen: list[int] = []

    def counted(rows: Any, tokens: mx.array, *given: Any) -> mx.array:
        seen.append(tokens.shape[0])
        return forward(rows, tokens, *given)

    monkeypatch.setattr(batch, "forward", counted)
    return seen


def together(harness: Harness, requests: list[pb.GenerateRequest]) -> list[Answer]:
    """Run requests at the same time."""
    calls = [harness.begin(request) for request in requests]
    return [Answer(harness.finish(call)) for call in calls]


def test_requests_of_similar_length_share_a_batch(harness: Harness, passes: list[int]) -> None:
    """Four requests of forty tokens take far fewer than four times forty passes, and some pass has all four."""
    requests = [generate(prompt, max_tokens=40, stop=STOP) for prompt in PROMPTS[:4]]
    answers = together(harness, requests)
    assert all(len(answer.ids) == 40 for answer in answers)
    assert max(passes) == 4
    assert len(passes) < 2 * 40
    harness.settle()


def test_tokens_of_a_pass_share_a_reading(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other ranks of a group wait for each reading of the clock, while the device has less and less to do."""
    read: list[list[float]] = []
    original = decoder.Decoder.step

    def step(running: decoder.Decoder) -> Iterator[decoder.Read]:
        tokens = list(original(running))
        read.append([now for *_, now in tokens])
        return iter(tokens)

    monkeypatch.setattr(decoder.Decoder, "step", step)
    together(harness, [generate(prompt, max_tokens=10, stop=STOP) for prompt in PROMPTS[:4]])
    assert max(map(len, read)) == 4
    assert all(len(set(times)) <= 1 for times in read)


def test_tokens_of_a_pass_are_taken_without_a_shared_reading(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other ranks of a group read nothing after the begin of the step, so that none waits for the first one."""
    shared: list[int] = []
    original = decoder.Decoder.step

    def step(running: decoder.Decoder) -> Iterator[decoder.Read]:
        read: list[float] = []
        clock = running._clock

        def noted() -> float:
            read.append(clock())
            return read[-1]

        running._clock = noted
        for token in original(running):
            shared.append(len(read))
            yield token
        running._clock = clock

    monkeypatch.setattr(decoder.Decoder, "step", step)
    together(harness, [generate(prompt, max_tokens=10, stop=STOP) for prompt in PROMPTS[:4]])
    assert set(shared) == {1}


def test_first_token_is_sent_before_the_next_step(
    harness: Harness, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy device can take as long as a step to accept one; later tokens are read while it computes."""
    begun: list[int] = []
    original = decoder._token

    def read(sequence: Any, sampled: Any) -> Any:
        begun.append(len(passes))
        return original(sequence, sampled)

    monkeypatch.setattr(decoder, "_token", read)
    harness.run(generate("The", max_tokens=4, stop=STOP))
    assert begun == [0, 2, 3, 3]


@pytest.mark.parametrize(
    ("lengths", "shared"),
    [
        ([2, 60, 5], True),
        ([200] * 7 + [16_000], False),
        ([1000, 1300], True),
        ([1000, 2000], False),
        ([200, 300, 250], True),
    ],
)
def test_rows_share_a_batch_if_padding_costs_little(lengths: list[int], shared: bool) -> None:
    assert fits(lengths) == shared


@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=16))
def test_batch_padding_is_a_quarter_at_most(lengths: list[int]) -> None:
    if fits(lengths):
        assert max(lengths) * len(lengths) <= 1.25 * sum(lengths) + FREE_PADDING * len(lengths)


def test_long_request_is_not_padded_into_a_short_batch(harness: Harness, passes: list[int]) -> None:
    """The padded KV of a batch stays within its bound of the rows' own."""
    long = next(corpus.held_out(seed=81, tokens_hint=900)).completion()
    requests = [generate(text, max_tokens=30, stop=STOP) for text in (long, *PROMPTS[:3])]
    calls = [harness.begin(request) for request in requests]
    harness.until(lambda: harness.figures.engine.decoding == 4 or all(map(harness.decoding, calls)))
    (decoder,) = harness.engine._runner._decoders.values()
    for group in decoder._batches:
        lengths = [row.length for row in group.rows]
        assert fits(lengths)
    assert len(decoder._batches) == 2
    for call in calls:
        harness.finish(call)
    assert max(passes) == 3


def by_ids(ids: list[int], max_tokens: int) -> pb.GenerateRequest:
    """Return a request whose prompt is token ids: text might be tokenised otherwise when it comes back."""
    tokens = pb.TokenIds(ids=ids)
    return pb.GenerateRequest(model="embedded", tokens=tokens, max_tokens=max_tokens, stop=STOP, top_logprobs=2)


def test_generated_tokens_of_a_batch_row_are_reused(
    harness: Harness, engine: Callable[..., Harness], tokenizer: Tokenizer
) -> None:
    """The KV that a row takes with it is its own, bit for bit."""
    prompts = [tokenizer.encode_prompt(prompt) for prompt in PROMPTS[:3]]
    fresh = engine()
    for prompt, answer in zip(prompts, together(harness, [by_ids(prompt, 60) for prompt in prompts]), strict=True):
        longer = by_ids(prompt + answer.ids + prompt[:5], 8)
        warm, cold = harness.run(longer), fresh.run(longer)
        assert warm.cached >= len(prompt) + 40
        assert cold.cached == 0
        assert warm.content == cold.content


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], print_blob=True)
@given(
    plan=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 12), st.integers(1, 30), st.booleans()), min_size=2, max_size=6
    )
)
def test_batch_rows_join_and_leave_without_a_trace(harness: Harness, plan: list[tuple[int, int, int, bool]]) -> None:
    """Random arrivals, lengths and cancels: each answer is the one that its request gets alone."""
    requests = [generate(PROMPTS[which], max_tokens=length, stop=STOP, top_logprobs=1) for which, _, length, _ in plan]
    calls = []
    for request, (_, pause, _, _) in zip(requests, plan, strict=True):
        calls.append(harness.begin(request))
        for _ in range(pause):
            harness.step()
    for call, (_, _, _, cancelled) in zip(calls, plan, strict=True):
        if cancelled:
            harness.cancel(call)
    for call, request, (_, _, _, cancelled) in zip(calls, requests, plan, strict=True):
        if not cancelled:
            answer = Answer(harness.finish(call))
            request.cache.mode = pb.CACHE_MODE_BYPASS
            assert answer.content == harness.run(request).content
    harness.settle()


def test_model_whose_attention_chooses_blocks_by_place_shares_no_pass(harness: Harness, tmp_path: Path) -> None:
    """Padding before a row would move its tokens into other blocks; its self-test is too short to see that."""
    path = str(random_model(tmp_path, "minimax_m3_vl"))
    prompts = [[7 * i % 300 + 1 for i in range(length)] for length in (61, 50)]
    requests = [by_ids(prompt, 30) for prompt in prompts]
    for request in requests:
        request.model, request.cache.mode = path, pb.CACHE_MODE_BYPASS
    alone = [harness.run(request).content for request in requests]
    assert [answer.content for answer in together(harness, requests)] == alone
