"""The engine in this process: whether warm answers and those of neighbours are the cold ones, and tokens per second."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load

from daemon.shared.last_events import ends_call
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine import harness

ANSWER_TOKENS = 64
RATE_TOKENS = 256
SHORT_PROMPT = 64
LARGEST_ID = 500
"""Largest token id in prompts; every shape's vocabulary has it."""
NEIGHBOURS = 3
"""Prompts behind one prefix that are asked alone, and then at the same time."""


@dataclass(frozen=True, slots=True)
class Exactness:
    """
    Cold and warm answers to one prompt.

    Attributes:
        cached: Prompt tokens that the warm run reused.
        same_cold: Whether two cold runs gave the same tokens.
        same_warm: Whether the warm run gave the tokens of the cold run.
        most_apart: The largest difference between cold and warm log-probabilities of equal tokens.
        cold_seconds, warm_seconds: Time to the first token.
    """

    cached: int
    same_cold: bool
    same_warm: bool
    most_apart: float
    cold_seconds: float
    warm_seconds: float


@dataclass(frozen=True, slots=True)
class Together:
    """
    Answers behind one prefix, asked at the same time, beside the same answers alone.

    Attributes:
        reused: The least number of prompt tokens that one of them reused.
        same: How many of them gave the tokens that they give alone.
        most_apart: The largest difference of a log-probability, up to the first token that differs.
        readers: How many of them read one copy of the prefix while all decoded.
    """

    reused: int
    same: int
    most_apart: float
    readers: int


def exactness(engine: harness.Harness, model: str, prompt_tokens: int) -> Exactness:
    """Compare cold and warm answers to the same prompt."""

    def ask(mode: pb.CacheMode) -> tuple[harness.Answer, float]:
        answer = engine.run(_request(model, _prompt(0, prompt_tokens), mode))
        return answer, answer.finished.timings.first_token.ToNanoseconds() / 1e9

    ask(pb.CACHE_MODE_BYPASS)  # kernels are compiled here
    (cold, cold_seconds), (again, _) = ask(pb.CACHE_MODE_BYPASS), ask(pb.CACHE_MODE_BYPASS)
    ask(pb.CACHE_MODE_READ_WRITE)
    ask(pb.CACHE_MODE_READ_WRITE)
    warm, warm_seconds = ask(pb.CACHE_MODE_READ_WRITE)
    apart = _apart(cold, warm)
    return Exactness(warm.cached, cold.ids == again.ids, cold.ids == warm.ids, apart, cold_seconds, warm_seconds)


def together(engine: harness.Harness, model: str, prefix_tokens: int) -> Together:
    """Compare answers behind one prefix that are asked at the same time with the same answers alone."""
    common = _prompt(NEIGHBOURS, prefix_tokens)
    prompts = [[*common, *_prompt(row, 7 + row)] for row in range(NEIGHBOURS)]
    alone = [engine.run(_request(model, prompt, pb.CACHE_MODE_BYPASS)) for prompt in prompts]
    engine.run(_request(model, [*common, 1], pb.CACHE_MODE_READ_WRITE, tokens=1))
    calls = [engine.begin(_request(model, prompt, pb.CACHE_MODE_READ_WRITE)) for prompt in prompts]
    engine.until(lambda: all(map(engine.decoding, calls)))
    readers = engine.engine._runner.readers.count
    answers = [harness.Answer(engine.finish(call)) for call in calls]
    pairs = [*zip(alone, answers, strict=True)]
    same = sum(one.ids == other.ids for one, other in pairs)
    apart = max(_apart(one, other) for one, other in pairs)
    return Together(min(answer.cached for answer in answers), same, apart, readers)


def rate(engine: harness.Harness, model: str, rows: int) -> float:
    """Return the throughput of concurrent requests in tokens per second, from the last request's first token on."""

    def once() -> float:
        engine.events.clear()
        for row in range(rows):
            prompt = _prompt(row, SHORT_PROMPT)
            engine.begin(_request(model, prompt, pb.CACHE_MODE_BYPASS, tokens=RATE_TOKENS))
        tokens, began, started, ended = 0, 0.0, set[int](), 0
        while ended < rows:
            engine.step()
            events, engine.events = engine.events, []
            if len(started) == rows:
                tokens += sum(len(event.generate.delta.token_ids) for event in events)
            else:
                started |= {event.call_id for event in events if event.generate.HasField("delta")}
                began = time.perf_counter()
            ended += sum(map(ends_call, events))
        return tokens / (time.perf_counter() - began)

    once()
    return once()


def plain_rate(path: Path) -> float:
    """Return the tokens per second of mlx-lm's model in a greedy loop."""
    model, _ = load(str(path))
    cache = make_prompt_cache(model)
    token = mx.argmax(model(mx.array([_prompt(0, SHORT_PROMPT)]), cache=cache)[:, -1], axis=-1)
    for count in range(RATE_TOKENS + 32):
        if count == 32:
            mx.eval(token)
            began = time.perf_counter()
        following = mx.argmax(model(token[:, None], cache=cache)[:, -1], axis=-1)
        mx.async_eval(following)
        token.item()
        token = following
    return RATE_TOKENS / (time.perf_counter() - began)


def _request(model: str, prompt: Sequence[int], mode: pb.CacheMode, tokens: int = ANSWER_TOKENS) -> pb.GenerateRequest:
    request = pb.GenerateRequest(model=model, tokens=pb.TokenIds(ids=prompt), max_tokens=tokens)
    if tokens == ANSWER_TOKENS:
        request.top_logprobs = 1
    request.stop.ignore_eos = True
    request.cache.mode = mode
    return request


def _prompt(salt: int, tokens: int) -> list[int]:
    return [1 + (salt * 7919 + index * 31) % LARGEST_ID for index in range(tokens)]


def _apart(one: harness.Answer, other: harness.Answer) -> float:
    """Return the largest difference of log-probabilities, up to the first token that differs."""
    most = 0.0
    for before, after in zip(one.logprobs, other.logprobs, strict=True):
        if before.token_id != after.token_id:
            break
        most = max(most, abs(before.logprob - after.logprob))
    return most
