"""Scores of prompts: the log-probability of each token as plain mlx-lm computes it, in chunks, whatever is cached."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load
from numpy.typing import NDArray

from daemon.engine.execution import prefill, prompt_scores
from daemon.engine.execution.sequence import Sequence
from daemon.engine.memory.memory_budget import SCORED_TOKENS, scoring_need
from daemon.engine.output.detokenizer import Token
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import random_model
from tests.unit.engine.harness import Answer, Harness, Reference, generate
from tools.embedded import corpus

PROMPT = next(corpus.held_out(seed=71, tokens_hint=400)).completion()
CLOSE = 1e-4
"""Of log-probabilities: products of other shapes round in another way."""


def score(text: str = PROMPT, **fields: Any) -> pb.GenerateRequest:
    """Return a request that scores a prompt and generates nothing."""
    return generate(text, **{"max_tokens": 0, "prompt_logprobs": 0, **fields})


def scores_of(events: list[ipc.Event]) -> list[pb.TokenLogprob]:
    """Return the scores of a call, whose messages follow each other without gaps."""
    messages = [event.generate.prompt_logprobs for event in events if event.generate.HasField("prompt_logprobs")]
    scores: list[pb.TokenLogprob] = []
    for message in messages:
        assert message.start == len(scores) + 1
        assert 0 < len(message.logprobs) <= SCORED_TOKENS
        scores += message.logprobs
    return scores


def expected(model: Any, prompt: list[int]) -> NDArray[np.float32]:
    """Return the log-probabilities after each token of a prompt, in one pass, [tokens, vocab]."""
    logits = model(mx.array([prompt]))[0].astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def assert_scored(scores: list[pb.TokenLogprob], prompt: list[int], logprobs: NDArray[np.float32]) -> None:
    """Compare scores with the log-probabilities of a plain forward pass."""
    assert [entry.token_id for entry in scores] == prompt[1:]
    for position, entry in enumerate(scores):
        assert entry.logprob == pytest.approx(logprobs[position, entry.token_id], abs=CLOSE)
        ranked = np.sort(logprobs[position])[::-1][: len(entry.top)]
        assert [other.logprob for other in entry.top] == pytest.approx(ranked.tolist(), abs=CLOSE)
        for other in entry.top:
            assert other.logprob == pytest.approx(logprobs[position, other.token_id], abs=CLOSE)


@pytest.mark.parametrize("count", [0, 3, 20])
def test_scores_are_those_of_one_forward_pass(harness: Harness, reference: Reference, count: int) -> None:
    """Computed in several chunks, and again when the prompt is cached: its KV alone would give no logits."""
    prompt = reference.tokenizer.encode(PROMPT)
    logprobs = expected(reference.model, prompt)
    assert len(prompt) > 2 * SCORED_TOKENS
    for _ in range(2):
        before = harness.figures.engine.prompt_tokens
        events = harness.finish(harness.begin(score(prompt_logprobs=count)))
        assert harness.figures.engine.prompt_tokens - before == len(prompt) - 1
        assert_scored(scores_of(events), prompt, logprobs)
        assert all(len(entry.top) == count for entry in scores_of(events))
        end = Answer(events).finished
        assert (end.reason, end.usage.completion_tokens) == (pb.FINISH_REASON_LENGTH, 0)
        assert (end.usage.prompt_tokens, end.usage.cached_tokens) == (len(prompt), 0)
    harness.settle()


@pytest.mark.parametrize("family", ["gemma3_text", "qwen3_next", "deepseek_v3"])
def test_scores_with_windows_states_and_latents(harness: Harness, tmp_path: Path, family: str) -> None:
    """Their chunks end at other positions."""
    path = random_model(tmp_path, family)
    model, tokenizer = load(str(path))[:2]
    prompt = tokenizer.encode(PROMPT)
    scores = scores_of(harness.finish(harness.begin(score(model=str(path), prompt_logprobs=2))))
    assert_scored(scores, prompt, expected(model, prompt))


def test_scored_prompt_is_stored_for_others(harness: Harness, reference: Reference) -> None:
    """And the answer after it is that of a prompt that was not scored."""
    plain = harness.run(generate(PROMPT, top_logprobs=2, cache=pb.CacheOptions(mode=pb.CACHE_MODE_BYPASS)))
    scored = harness.run(score(max_tokens=12, top_logprobs=2))
    assert scored.content == plain.content
    assert len(scores_of(scored.events)) == len(reference.tokenizer.encode(PROMPT)) - 1
    warm = harness.run(generate(PROMPT, top_logprobs=2))
    assert warm.cached > 0
    assert warm.content == plain.content
    harness.settle()


def test_short_prompts_are_scored_apart(harness: Harness, reference: Reference) -> None:
    """Several that arrive together share no pass; a single token has no score."""
    texts = ["Once upon", "The dog", "a"]
    events = [harness.finish(call) for call in [harness.begin(score(text)) for text in texts]]
    for text, sent in zip(texts, events, strict=True):
        prompt = reference.tokenizer.encode(text)
        assert_scored(scores_of(sent), prompt, expected(reference.model, prompt))
    harness.settle()


def test_samples_score_their_prompt_once(harness: Harness, reference: Reference) -> None:
    """Before the first delta."""
    sampling = pb.Sampling(temperature=1.0, seed=1)
    events = harness.finish(harness.begin(score(max_tokens=3, samples=3, sampling=sampling)))
    assert len(scores_of(events)) == len(reference.tokenizer.encode(PROMPT)) - 1
    kinds = [event.generate.WhichOneof("event") for event in events if event.HasField("generate")]
    assert "prompt_logprobs" not in kinds[kinds.index("delta") :]


def test_held_scores_wait(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that lags holds its prompt, and then its answer."""
    monkeypatch.setattr(prefill, "SCORED_TOKENS", 16)
    expected_answer = harness.run(generate(PROMPT))
    call = harness.begin(score(max_tokens=12, prompt_logprobs=20))
    harness.until(lambda: bool(scores_of(harness.of(call))))
    harness.engine.handle(ipc.Command(call_id=call, hold=ipc.Hold(held=True)))
    sent = len(harness.of(call))
    for _ in range(3):
        harness.step()
    assert len(harness.of(call)) == sent
    assert not harness.engine.busy
    harness.engine.handle(ipc.Command(call_id=call, hold=ipc.Hold(held=False)))
    assert Answer(harness.finish(call)).ids == expected_answer.ids
    harness.settle()


def test_held_prompt_is_lent_the_turn_of_a_follower(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that begins like it waits for it, and must not wait for ever."""
    monkeypatch.setattr(prefill, "SCORED_TOKENS", 16)
    call = harness.begin(score())
    harness.until(lambda: bool(scores_of(harness.of(call))))
    harness.engine.handle(ipc.Command(call_id=call, hold=ipc.Hold(held=True)))
    harness.run(generate(PROMPT))
    harness.cancel(call)
    harness.settle()


def test_scores_that_are_no_numbers_fail(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the model's fault, and nothing of it is kept."""
    monkeypatch.setattr(prompt_scores, "scored_tokens", lambda *_: [Token(1, math.nan)])
    assert harness.run(score()).failure.reason == "NAN_LOGITS"
    harness.settle()
    assert harness.figures.prefix_cache.blocks == 0


def test_memory_of_scores_is_reserved(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the KV, for a chunk and not for the whole prompt."""
    asked: list[int] = []
    make_room = harness.engine._runner._make_room

    def noted(need: int, billed: int) -> bool:
        asked.append(need)
        return make_room(need, billed)

    monkeypatch.setattr(harness.engine._runner, "_make_room", noted)
    harness.run(generate(PROMPT, max_tokens=1))
    harness.run(score(max_tokens=1))
    assert asked[1] - asked[0] == scoring_need(harness.engine._models.entries()[0].model.vocab_size)


def test_scores_need_no_more_than_they_reserve() -> None:
    """At the peak of a chunk, with a large vocabulary; and not half as much, so that no request waits in vain."""
    logits = mx.random.normal((SCORED_TOKENS, 50_000))
    mx.eval(logits)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    request = SimpleNamespace(prompt_logprobs=20)
    scored = SimpleNamespace(prompt=list(range(SCORED_TOKENS + 1)), request=request, text=str, scores=[])
    prompt_scores.score_prompt(cast("Sequence", scored), 0, logits)
    assert len(scored.scores) == SCORED_TOKENS
    peak = mx.get_peak_memory() - before + logits.nbytes
    assert scoring_need(50_000) / 2 < peak <= scoring_need(50_000)


def test_logprobs_tell_the_text_of_tokens(harness: Harness, reference: Reference) -> None:
    """Each alone, its leading space included; so the texts of a prompt of plain words add up to it."""
    events = harness.finish(harness.begin(score("The dog sang in the garden", prompt_logprobs=3)))
    scores = scores_of(events)
    assert "".join(entry.text for entry in scores).endswith(" in the garden")
    for entry in scores:
        others = [other.text for other in entry.top if other.token_id == entry.token_id]
        assert not others or others == [entry.text]
    answer = harness.run(generate("The dog", top_logprobs=1))
    assert "".join(entry.text for entry in answer.logprobs) == answer.text
    assert all(math.isfinite(entry.logprob) for entry in scores)
