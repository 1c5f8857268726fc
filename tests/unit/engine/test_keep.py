"""`cache.keep`: the prompt's prefix stays, whatever comes after it, and what it restores is exact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from structlog.testing import capture_logs

from daemon.engine.memory.memory_budget import MemoryBudget
from daemon.engine.memory.prefix_budget import PrefixBudget
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.families import CHECKPOINTS, Family, write
from tests.unit.engine.harness import Harness
from tests.unit.engine.prompts import ids

HOUR = pb.CacheOptions(keep=Duration(seconds=3600))
BYPASS = pb.CacheOptions(mode=pb.CACHE_MODE_BYPASS)


def request(model: str, tokens: list[int], cache: pb.CacheOptions | None = None) -> pb.GenerateRequest:
    """Return a request with a prompt of token ids."""
    return pb.GenerateRequest(model=model, tokens=pb.TokenIds(ids=tokens), max_tokens=3, top_logprobs=0, cache=cache)


def flood(harness: Harness, model: str) -> None:
    """Run prompts that fill the prefix cache several times over."""
    for salt in range(20, 28):
        harness.run(request(model, ids(200, salt)))


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "mamba2", "qwen3_next"])
def test_kept_prompt_survives_a_flood_exactly(engine: Callable[..., Harness], tmp_path: Path, family: str) -> None:
    """With full attention, windows, states, and a mixture; another prompt of the same time is gone."""
    harness, path = engine(max_cache_blocks=40), str(write(tmp_path, Family(family)))
    harness.run(request(path, ids(100, 1)))
    harness.run(request(path, ids(100, 2), HOUR))
    flood(harness, path)

    again = [*ids(100, 2), 5, 6, 7]
    warm, cold = harness.run(request(path, again)), harness.run(request(path, again, BYPASS))

    assert warm.cached == 96
    assert warm.ids == cold.ids
    difference = [abs(a.logprob - b.logprob) for a, b in zip(warm.logprobs, cold.logprobs, strict=True)]
    assert max(difference) <= (2e-3 if family in CHECKPOINTS else 0)
    assert harness.run(request(path, ids(100, 1))).cached < 96
    harness.settle()


def test_kept_prompt_is_listed_until_its_time_is_over(harness: Harness) -> None:
    harness.run(request("embedded", ids(100), HOUR))
    harness.clock_offset += 600

    harness.run(request("embedded", ids(40, 3)))

    stats = harness.figures.prefix_cache
    (kept,) = stats.kept
    assert kept.namespace == stats.namespaces[0].namespace
    assert (kept.tokens, stats.total_kept) == (96, 1)
    assert 2900 < kept.expires_in.ToSeconds() <= 3000
    tokens = 100 + 2 + 40 + 2  # of both prompts and answers
    assert kept.bytes == stats.kept_bytes == 96 * stats.bytes // tokens
    assert stats.kept_budget_bytes == stats.budget_bytes // 2
    harness.slept += 3000  # the machine's sleep counts
    harness.run(request("embedded", ids(40, 4)))
    assert not harness.figures.prefix_cache.kept
    assert harness.figures.prefix_cache.kept_yielded == 0


def test_figures_end_no_keep(harness: Harness) -> None:
    """Each rank of a group reads a clock of its own for them, and all have to keep the same."""
    harness.run(request("embedded", ids(100), HOUR))
    harness.slept += 4000  # of a machine that has run for longer
    harness.engine._outbox.publish()
    harness.slept -= 4000
    assert len(harness.engine._memory._prefixes.keeps) == 1


def test_kept_prompt_is_kept_from_its_first_token(harness: Harness) -> None:
    """Before the answer ends: a long answer does not leave its prompt to eviction."""
    call = harness.begin(request("embedded", ids(100), HOUR))
    harness.until(lambda: len(harness.engine._memory._prefixes.keeps) == 1)
    assert not any(event.generate.HasField("finished") for event in harness.of(call))
    harness.cancel(call)
    assert len(harness.engine._memory._prefixes.keeps) == 1


def test_cached_prompt_can_be_kept_later(harness: Harness) -> None:
    """All of it is restored then, and nothing but its last token computed."""
    harness.run(request("embedded", ids(97)))
    answer = harness.run(request("embedded", ids(97), HOUR))

    assert answer.cached == 96
    assert [kept.tokens for kept in harness.figures.prefix_cache.kept] == [96]


@pytest.mark.parametrize("left", [0.0, 0.5, 1.0])
def test_kept_prompts_that_fill_a_smaller_limit_hold_up_no_request(engine: Callable[..., Harness], left: float) -> None:
    """The limit shrinks while they are kept. They yield with a line each, and what has no room is not stored."""
    harness = engine()
    others = [request("embedded", ids(100, salt)) for salt in range(10, 14)]
    cold = [harness.run(request("embedded", ids(100, salt), BYPASS)).content for salt in range(10, 14)]
    for salt in range(3):
        harness.run(request("embedded", ids(100, salt), HOUR))
    memory = harness.engine._memory
    before, prefixes = memory.prefix_budget, memory._prefixes
    memory.prefix_budget = PrefixBudget(int(left * prefixes.keeps.nbytes), memory.budget)
    with capture_logs() as logs:
        assert [harness.run(each).content for each in others] == cold
        harness.run(request("embedded", ids(100, 20), HOUR))
        harness.settle()
    told = Counter(line["event"] for line in logs)
    assert told.keys() <= {"kept_prefix_evicted", "prefix_not_kept"}
    assert 0 < told["kept_prefix_evicted"] <= 4
    assert told["prefix_not_kept"] == (not left)
    assert prefixes.memory_usage() <= memory.prefix_budget.most

    memory.prefix_budget = before
    harness.run(others[0])
    assert harness.run(others[0]).cached >= 96
    harness.settle()


def test_ordinary_requests_end_no_keep_where_kept_prompts_take_all_that_is_left(engine: Callable[..., Harness]) -> None:
    """Nor does the answer of a kept prompt. The requests are answered, and what they computed is not stored."""
    harness = engine()
    cold = [harness.run(request("embedded", ids(100, salt), BYPASS)).content for salt in range(10, 14)]
    for salt in range(3):
        harness.run(request("embedded", ids(100, salt), HOUR))
    memory = harness.engine._memory
    prefixes = memory._prefixes
    prefixes.shed(prefixes.evictable_bytes() - prefixes.keeps.nbytes)
    memory.prefix_budget = PrefixBudget(prefixes.memory_usage(), memory.budget)
    kept = [keep.tokens for keep in prefixes.keeps]

    assert [harness.run(request("embedded", ids(100, salt))).content for salt in range(10, 14)] == cold
    harness.run(request("embedded", ids(100), HOUR))

    assert len(kept) == 3
    assert [keep.tokens for keep in prefixes.keeps] == kept
    assert prefixes.keeps.yielded == 0
    assert [harness.run(request("embedded", ids(100, salt))).cached for salt in range(3)] == [96] * 3
    harness.settle()


def test_kept_prompts_make_room_for_a_request_that_needs_their_memory(engine: Callable[..., Harness]) -> None:
    """All memory is taken by weights and kept prompts."""
    harness = engine()
    cold = harness.run(request("embedded", ids(300, 9), BYPASS)).content
    for salt in range(5):
        harness.run(request("embedded", ids(320, salt), HOUR))
    memory = harness.engine._memory
    kept = len(memory._prefixes.keeps)
    memory.budget = MemoryBudget(memory.use().total)
    memory.prefix_budget = PrefixBudget(memory.budget.limit, memory.budget)
    with capture_logs() as logs:
        assert harness.run(request("embedded", ids(300, 9))).content == cold
    assert len(memory._prefixes.keeps) < kept
    assert len([line for line in logs if line["event"] == "kept_prefix_evicted"]) == kept - len(memory._prefixes.keeps)
    harness.settle()


def test_invalidate_drops_kept_prompts(harness: Harness) -> None:
    harness.run(request("embedded", ids(100), HOUR))
    harness.run(pb.InvalidateRequest(all=pb.AllTarget(prefixes=True)))

    assert harness.run(request("embedded", ids(100))).cached == 0
    assert not harness.figures.prefix_cache.kept


def test_keep_without_a_prefix_cache_is_refused(engine: Callable[..., Harness]) -> None:
    failure = engine(kv_cache_mb=0).run(request("embedded", ids(50), HOUR)).failure

    assert (failure.reason, failure.field) == ("INVALID_ARGUMENT", "cache.keep")
