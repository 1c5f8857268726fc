"""Prompts computed together: one forward pass for the short ends of several, and the same answers as alone."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import BatchKVCache

from daemon.engine import engine
from daemon.engine.calls import generate as generate_module
from daemon.engine.engine import Engine
from daemon.engine.execution import prefill
from daemon.engine.execution.batched_prefill import PrefillBatch
from daemon.engine.execution.decoder import Decoder
from daemon.engine.execution.prefill import Prefill
from daemon.engine.execution.prefill_queue import PrefillQueue
from daemon.engine.prompt.preparation import prepare_request
from daemon.engine.scheduling.batching_window import LINGER_SECONDS, MOST_SECONDS, most_seconds
from daemon.engine.scheduling.policy import AIM_SECONDS, Allowance, StepTimes
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import random_model
from tests.unit.engine.harness import PATIENCE, Answer, Harness, generate
from tests.unit.engine.prompts import apart

STOP = pb.Stop(ignore_eos=True)


@pytest.fixture(name="passes")
def _passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many prompts each pass over several had, as they happen."""
    seen: list[int] = []
    compute = PrefillBatch.compute

    def counted(together: PrefillBatch) -> list[Any]:
        seen.append(len(together.prefills))
        return compute(together)

    monkeypatch.setattr(PrefillBatch, "compute", counted)
    return seen


def request(prompt: list[int], **fields: Any) -> pb.GenerateRequest:
    """Return a request with log-probabilities, so that answers are compared to the last bit."""
    return pb.GenerateRequest(
        **{"model": "embedded", "max_tokens": 6, "stop": STOP, "top_logprobs": 2, **fields},
        tokens=pb.TokenIds(ids=prompt),
    )


def alone(harness: Harness, asked: pb.GenerateRequest) -> Answer:
    """Return the answer of a request that runs by itself and finds nothing cached."""
    cold = pb.GenerateRequest()
    cold.CopyFrom(asked)
    cold.cache.mode = pb.CACHE_MODE_BYPASS
    return harness.run(cold)


def test_prefill_waits_for_a_prompt_being_tokenized(
    harness: Harness, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.run(request(apart(8, 0)))
    reached, go_on = threading.Event(), threading.Event()

    def slowly(asked: pb.GenerateRequest, *rest: Any) -> Any:
        if asked.text:
            reached.set()
            go_on.wait(PATIENCE)
        return prepare_request(asked, *rest)

    monkeypatch.setattr(generate_module, "prepare_request", slowly)
    now = harness.now()
    monkeypatch.setattr(harness.engine._batching_window, "_clock", lambda: now)
    monkeypatch.setattr(engine, "most_seconds", lambda _: PATIENCE)
    second = harness.begin(generate("The code of the", max_tokens=6, stop=STOP))
    reached.wait(PATIENCE)
    first = harness.begin(request(apart(40, 1)))
    harness.until(lambda: harness.engine._runner.waiting == 1)
    for _ in range(5):
        harness.step()
    assert harness.engine._runner.waiting == 1
    step = harness.engine._runner.usual_step_awaited
    assert step > 0
    assert harness.engine.pause == pytest.approx(most_seconds(step))
    passes.clear()
    go_on.set()
    harness.until(lambda: harness.engine._runner.waiting == 2)
    now += LINGER_SECONDS + step
    for call in (first, second):
        harness.finish(call)
    assert passes == [2]


def arrive(harness: Harness, requests: list[pb.GenerateRequest]) -> list[int]:
    """Open calls, and step until all of them have a slot and none has been computed any further."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PrefillQueue, "step", lambda _, decode: ())
        calls = [harness.begin(one) for one in requests]
        harness.until(lambda: harness.engine._runner.prefilling == len(calls))
    return calls


def run(harness: Harness, requests: list[pb.GenerateRequest]) -> list[Answer]:
    """Run requests that arrive at the same moment."""
    return [Answer(harness.finish(call)) for call in arrive(harness, requests)]


@pytest.mark.parametrize(
    "lengths", [[30, 31, 29, 33], [2, 17, 33], [65, 64, 40]], ids=["alike", "unlike", "the longest that are short"]
)
def test_short_prompts_share_one_prefill_pass(harness: Harness, passes: list[int], lengths: list[int]) -> None:
    """And each is answered as it is alone, to the last bit."""
    requests = [request(apart(length, seed)) for seed, length in enumerate(lengths)]
    answers = run(harness, requests)
    assert passes == [len(lengths)]
    assert [answer.content for answer in answers] == [alone(harness, asked).content for asked in requests]
    harness.settle()


def answered(harness: Harness) -> int:
    """Return how many answers have begun."""
    return len({event.call_id for event in harness.events if event.generate.HasField("delta")})


def test_first_tokens_leave_before_other_prompts_are_computed(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quick model's prompts share passes no longer than beside streams. Those of a pass decode before the next."""
    monkeypatch.setattr(harness.engine._runner._times, "_of", lambda _: StepTimes(_last=(64, AIM_SECONDS)))
    begun: list[int] = []
    compute = PrefillBatch.compute

    def noted(together: PrefillBatch) -> list[Any]:
        begun.append(answered(harness))
        return compute(together)

    monkeypatch.setattr(PrefillBatch, "compute", noted)
    requests = [request(apart(33, seed)) for seed in range(6)]
    answers = run(harness, requests)
    assert begun == [0, 2, 4]
    assert [answer.content for answer in answers] == [alone(harness, asked).content for asked in requests]
    harness.settle()


def test_first_token_of_a_prompt_alone_leaves_at_once(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Windows share no pass: the turn goes on with the next prompt, but not before the answer has begun."""
    window = str(random_model(tmp_path, "gemma3_text"))
    harness.run(request(apart(20, 0), model=window))
    harness.events.clear()
    begun: list[int] = []
    step = Prefill.step

    def noted(computed: Prefill, allowance: Allowance) -> int:
        begun.append(answered(harness))
        return step(computed, allowance)

    monkeypatch.setattr(Prefill, "step", noted)
    requests = [request(apart(20, seed), model=window) for seed in range(1, 4)]
    answers = run(harness, requests)
    assert begun == [0, 1, 2]
    assert [answer.ids for answer in answers] == [alone(harness, asked).ids for asked in requests]
    harness.settle()


def test_an_answer_of_one_token_ends_with_its_prompt(harness: Harness) -> None:
    """Its only token is known when its prompt is computed: no step of the decoder comes first."""
    asked = request(apart(20, 1), max_tokens=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "step", lambda decoder: ())
        answer = harness.run(asked)
    assert answer.finished.reason == pb.FINISH_REASON_LENGTH
    assert answer.content == alone(harness, asked).content
    harness.settle()


def test_second_turns_share_one_prefill_pass(harness: Harness, passes: list[int]) -> None:
    """Each goes on from the exact end of its own beginning; only what is new is computed, counted and stored."""
    beginnings = [apart(length, seed) for seed, length in enumerate([150, 160, 170])]
    for beginning in beginnings:
        harness.run(request(beginning))
    computed = harness.engine._runner.prompt_tokens
    requests = [request([*beginning, *apart(20 + 5 * seed, 50 + seed)]) for seed, beginning in enumerate(beginnings)]
    answers = run(harness, requests)
    assert passes == [3]
    assert [answer.cached for answer in answers] == [150, 160, 170]
    lengths = [len(asked.tokens.ids) - answer.cached for asked, answer in zip(requests, answers, strict=True)]
    assert harness.engine._runner.prompt_tokens - computed == sum(lengths)
    assert [answer.content for answer in answers] == [alone(harness, asked).content for asked in requests]
    again = run(harness, requests)
    assert all(answer.cached >= answer.started.prompt_tokens - 17 for answer in again)
    assert [answer.content for answer in again] == [answer.content for answer in answers]
    harness.settle()


def test_prefill_waits_for_the_one_with_its_prefix(harness: Harness, passes: list[int]) -> None:
    """Four short prompts with three blocks in common compute these once; what parts them is computed together."""
    common = apart(48, 1)
    requests = [request([*common, *apart(9, seed)]) for seed in range(2, 6)]
    answers = run(harness, requests)
    assert [answer.cached for answer in answers] == [0, 48, 48, 48]
    assert passes == [3]
    assert [answer.content for answer in answers] == [alone(harness, asked).content for asked in requests]


def test_rows_ending_together_leave_without_a_copy(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """They go at once; one that stays is copied once, and answers on."""
    filtered: list[list[int]] = []
    original = BatchKVCache.filter

    def counted(cache: BatchKVCache, keep: list[int]) -> None:
        filtered.append(keep)
        original(cache, keep)

    monkeypatch.setattr(BatchKVCache, "filter", counted)
    run(harness, [request(apart(30, seed)) for seed in range(4)])
    assert not filtered
    lasting = [request(apart(30, seed), max_tokens=6 + 6 * (seed < 7)) for seed in range(5, 10)]
    answers = run(harness, lasting)
    assert {tuple(keep) for keep in filtered} == {(0, 1)}
    assert [answer.content for answer in answers] == [alone(harness, asked).content for asked in lasting]


def test_salted_prompts_share_a_pass_but_no_prefix(harness: Harness, passes: list[int]) -> None:
    """The same prompt under two salts is computed twice, in one pass."""
    requests = [request(apart(40, 1), cache=pb.CacheOptions(salt=salt)) for salt in ("mine", "yours")]
    answers = run(harness, requests)
    assert passes == [2]
    assert [answer.cached for answer in answers] == [0, 0]
    assert answers[0].content == answers[1].content
    again = run(harness, requests)
    assert [answer.cached for answer in again] == [39, 39]


def test_unbatchable_prompts_are_prefilled_alone(harness: Harness, passes: list[int], tmp_path: Path) -> None:
    """A model with windows, a long prompt, one that would be padded too much, another model."""
    window = str(random_model(tmp_path, "gemma3_text"))
    other = str(random_model(tmp_path, "qwen3"))
    requests = [
        request(apart(20, 1), model=window),
        request(apart(20, 2), model=window),
        request(apart(200, 3)),
        request(apart(20, 4)),
        request(apart(20, 5), model=other),
    ]
    answers = run(harness, requests)
    assert not passes
    for asked, answer in zip(requests, answers, strict=True):
        assert answer.ids == alone(harness, asked).ids
    harness.settle()


def test_cancelled_prefill_leaves_its_batch_intact(harness: Harness, passes: list[int]) -> None:
    requests = [request(apart(30, seed)) for seed in range(3)]
    calls = arrive(harness, requests)
    harness.cancel(calls[1])
    answers = [Answer(harness.finish(calls[index])) for index in (0, 2)]
    assert passes == [2]
    assert [answer.content for answer in answers] == [alone(harness, requests[index]).content for index in (0, 2)]
    harness.settle()


def test_long_prefill_buffers_are_freed_after_the_pass(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the last pass, whether a prompt had it for itself or shared it."""
    monkeypatch.setattr(prefill, "LONG_PREFILL", 40)
    monkeypatch.setattr(harness.engine, "_sweep", lambda: None)  # which gives back too, once a second
    cleared: list[None] = []
    monkeypatch.setattr(mx, "clear_cache", lambda: cleared.append(None))
    run(harness, [request(apart(60, 1))])
    assert len(cleared) == 1
    run(harness, [request(apart(60, 2)), request(apart(60, 3)), request(apart(30, 4))])
    assert len(cleared) == 3


def test_batching_window_restarts_after_a_cancel(harness: Harness) -> None:
    window = harness.engine._batching_window
    assert window.remaining(2, 0) == pytest.approx(LINGER_SECONDS, abs=0.001)
    harness.clock_offset += 1
    assert window.remaining(2, 0) == 0
    harness.step()
    assert window.remaining(2, 0) == pytest.approx(LINGER_SECONDS, abs=0.001)


def test_waiting_requests_open_no_batching_window(harness: Harness) -> None:
    """A slot that becomes free is filled at once."""
    harness.run(request(apart(8, 0)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "_batching_wait", lambda _: 1.0)
        for seed in (1, 2):
            harness.begin(request(apart(30, seed)))
        harness.until(lambda: harness.engine._runner.waiting == 2)
        harness.clock_offset += 2 * MOST_SECONDS
        assert harness.engine._runner.fresh(MOST_SECONDS) == 0
    harness.settle()
