"""Fairness, counted in tokens and turns of the loop: nobody's work holds up another's for longer than a piece of it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from daemon.engine.scheduling import policy
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import copy_of_embedded, random_model
from tests.unit.engine.harness import Answer, Harness, generate

ENDLESS = pb.Stop(ignore_eos=True)


def ids(count: int, seed: int = 0) -> pb.TokenIds:
    """Return a prompt of so many tokens; another seed shares nothing with it."""
    return pb.TokenIds(ids=[5 + (i * i + 3 * i + i // 7 + 101 * seed) % 700 for i in range(count)])


def tokens(harness: Harness, call: int) -> int:
    """Return how many tokens a call has been sent."""
    return sum(len(event.generate.delta.token_ids) for event in harness.of(call))


def chunks(harness: Harness, call: int) -> int:
    """Return how many chunks of a prompt were computed, the last one not counted."""
    return sum(event.generate.HasField("prefill") for event in harness.of(call))


@pytest.fixture(name="long_context")
def _long_context(tmp_path: Path) -> str:
    """Return the embedded model with room for prompts of 8,000 tokens."""
    return str(copy_of_embedded(tmp_path, "long", tested=True, max_position_embeddings=16384))


@pytest.mark.parametrize("length", [2000, pytest.param(8000, marks=pytest.mark.slow)])
def test_streams_get_a_token_per_chunk_of_long_prefill(
    harness: Harness, long_context: str, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """Streams of the same model and of another."""
    monkeypatch.setattr(policy, "MAX_CHUNK", 128)
    monkeypatch.setattr(policy, "_FIRST_CHUNK", 128)
    streams = [
        harness.begin(generate("The", max_tokens=1000, stop=ENDLESS, model=model))
        for model in ("embedded", long_context, long_context)
    ]
    harness.until(lambda: all(harness.decoding(call) for call in streams))
    prompt = harness.begin(pb.GenerateRequest(model=long_context, tokens=ids(length), max_tokens=1))
    harness.until(lambda: chunks(harness, prompt) > 0)
    seen = [[tokens(harness, call) for call in streams]]
    while not harness.of(prompt)[-1].generate.HasField("finished"):
        before = chunks(harness, prompt)
        harness.step()
        if chunks(harness, prompt) > before:
            seen.append([tokens(harness, call) for call in streams])
    assert len(seen) >= 10
    for earlier, later in pairwise(seen):
        assert all(after > before for before, after in zip(earlier, later, strict=True))
    for call in streams:
        harness.cancel(call)
    harness.settle()


@pytest.mark.parametrize("other", ["model", "salt", "program"])
def test_short_prompt_does_not_wait_for_a_long_one(
    harness: Harness, long_context: str, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """They take turns, chunk by chunk: its first token comes while most of the long prompt is still to be computed."""
    monkeypatch.setattr(policy, "MAX_CHUNK", 256)
    harness.run(generate("The", max_tokens=1))
    long = harness.begin(pb.GenerateRequest(model=long_context, tokens=ids(8000), max_tokens=1))
    harness.until(lambda: chunks(harness, long) > 0)
    request = generate("The", max_tokens=1)
    if other != "model":
        request.model = long_context
    if other == "salt":
        request.cache.salt = "mine"
    short = harness.begin(request, "another" if other == "program" else "")
    harness.finish(short)
    assert chunks(harness, long) <= 6
    assert not harness.of(long)[-1].generate.HasField("finished")
    harness.cancel(long)
    harness.settle()


def test_request_for_another_model_stops_no_stream(harness: Harness, tmp_path: Path) -> None:
    """It gets a token in each turn of the loop while the other model is found, loaded, warmed up and run."""
    stream = harness.begin(generate("The", max_tokens=3000, stop=ENDLESS))
    harness.until(lambda: harness.decoding(stream))
    resident = next(one for one in harness.engine._runner.sequences() if one.call_id == stream)
    harness.until(lambda: len(resident.generated) > 1)  # the first step only begins the next token
    other = harness.begin(generate("The", max_tokens=20, stop=ENDLESS, model=str(random_model(tmp_path, "qwen3"))))
    seen = [len(resident.generated)]
    while not (harness.of(other) and harness.of(other)[-1].generate.HasField("finished")):
        harness.step()
        seen.append(len(resident.generated))
    assert min(after - before for before, after in pairwise(seen)) >= 1
    harness.cancel(stream)
    harness.settle()


def test_two_models_decode_in_every_turn(harness: Harness, tmp_path: Path) -> None:
    """Alone, a model gets a token in each turn; beside another it still does, so that neither waits for the other."""
    models = ["embedded", str(random_model(tmp_path, "qwen3"))]
    for model in models:
        harness.run(generate("The", max_tokens=1, model=model))
    calls = [harness.begin(generate("The", max_tokens=100, stop=ENDLESS, model=model)) for model in models]
    harness.until(lambda: all(harness.decoding(call) for call in calls))
    before = [tokens(harness, call) for call in calls]
    for _ in range(50):
        harness.step()
    gained = [tokens(harness, call) - count for call, count in zip(calls, before, strict=True)]
    assert min(gained) >= 48  # a delta may hold a character back
    for call in calls:
        harness.finish(call)


def test_high_priority_request_starts_first(harness: Harness) -> None:
    """Of three that wait for the one slot, the one that came last."""
    harness.engine._runner.max_batch = 1
    blocker = harness.begin(generate("The", max_tokens=1000, stop=ENDLESS))
    harness.until(lambda: harness.decoding(blocker))
    calls = [harness.begin(generate("The", max_tokens=1, priority=priority)) for priority in (-1, 0, 2)]
    harness.until(lambda: harness.engine._runner.waiting == 3)
    harness.cancel(blocker)
    for call in calls:
        harness.finish(call)
    ends = [event.call_id for event in harness.events if event.generate.HasField("finished")]
    assert ends == calls[::-1]


def test_six_clients_compute_a_cold_prefix_once(harness: Harness) -> None:
    """In all, no more prompt tokens than the beginning, the ends, and a block for each."""
    shared, ends = list(ids(1400).ids), [list(ids(30, seed).ids) for seed in range(1, 7)]
    harness.run(pb.GetOrLoadRequest(model="embedded"))
    before = harness.figures.engine.prompt_tokens
    calls = [
        harness.begin(pb.GenerateRequest(model="embedded", tokens=pb.TokenIds(ids=shared + end), max_tokens=4))
        for end in ends
    ]
    answers = [Answer(harness.finish(call)) for call in calls]
    computed = harness.figures.engine.prompt_tokens - before
    assert computed <= 1400 + sum(map(len, ends)) + 6 * 16
    assert computed == sum(a.finished.usage.prompt_tokens - a.cached for a in answers)
    harness.settle()
