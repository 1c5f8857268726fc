"""Readers of one prefix: running requests share one copy of its KV, and each is answered as it is alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from daemon.kv.mlx import sharing
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.families import EXACT, Family, write
from tests.unit.engine.harness import Answer, Harness, greedy
from tests.unit.engine.prompts import ids
from tests.unit.engine.reader_case import ROUNDED, Case, frozen

LEAST = 32
CLOSE = 1e-4
"""Of log-probabilities, where windows turn and latents are expanded."""


KINDS = (
    *("llama", "qwen3/bfloat16", "deepseek_v3", "gemma3_text", "gpt_oss"),
    *("qwen3_next", "mamba2", "falcon_h1", "baichuan_m1", "recurrent_gemma"),
)
"""One family of each kind of layers."""

NOT_SHARED = ("mamba2", "recurrent_gemma")
"""Models without full attention."""


COMMON = ids(96)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share short prefixes as well: the lengths do not matter to what is tested."""
    monkeypatch.setattr(sharing, "LEAST_SHARED", LEAST)


@pytest.fixture(name="case")
def _case(engine: Callable[..., Harness], tmp_path: Path) -> Case:
    return Case(engine(), write(tmp_path, Family("qwen3")))


@pytest.mark.parametrize("family", KINDS)
def test_readers_of_a_prefix_answer_as_alone(engine: Callable[..., Harness], tmp_path: Path, family: str) -> None:
    """Three requests behind one beginning, of any kind of cache, with ends that attend in parts and as a whole."""
    case = Case(engine(), write(tmp_path, Family(family)))
    prompts = [[*COMMON, *ids(length, length)] for length in (3, 9, 30)]
    case.harness.finish(case.begin([*COMMON, 5], 1))
    calls = [case.begin(prompt) for prompt in prompts]
    shared = family.partition("/")[0] not in NOT_SHARED
    assert list(case.spans.values()) == [3] * shared
    bound = ROUNDED if family.endswith("bfloat16") else 0.0 if family in EXACT else CLOSE
    for call, prompt in zip(calls, prompts, strict=True):
        case.assert_as_alone(call, prompt, bound=bound)
    case.harness.settle()
    assert not case.spans


def test_later_readers_copy_nothing(case: Case) -> None:
    """The first restored its prefix; its own arrays are what the others read."""
    case.harness.finish(case.begin([*COMMON, 5], 1))
    first = case.begin([*COMMON, 6, 7])
    before = case.stats.tokens_shared
    others = [case.begin([*COMMON, 8, number]) for number in range(3)]
    assert case.spans == {(0, 96): 4}
    assert case.stats.tokens_shared - before == 3 * 96
    assert case.stats.shared_copied_tokens == 0
    assert (case.stats.shared_prefixes, case.stats.shared_readers) == (1, 4)
    assert case.stats.shared_bytes == 96 * case.harness.engine._models.entries()[0].model.layout.bytes_per_token
    case.harness.cancel(first)
    case.harness.cancel(others[1])
    assert case.spans == {(0, 96): 2}
    case.assert_as_alone(others[0], [*COMMON, 8, 0])
    case.assert_as_alone(others[2], [*COMMON, 8, 2])
    assert case.stats.shared_copied_tokens == 0
    case.harness.settle()


def test_readers_of_a_longer_prefix_share_its_beginning(case: Case) -> None:
    """A prefix is cut where a reader leaves it; one that goes on beyond it reads both parts."""
    long = [*COMMON, *ids(64, 3)]
    case.harness.finish(case.begin([*long, 5], 1))
    prompts = [[*long, 6], [*long, 7], [*COMMON, 9, 9, 9], [*long, 8], [*COMMON[:48], 4, 4]]
    calls = [case.begin(prompt) for prompt in prompts[:2]]
    assert case.spans == {(0, 160): 2}
    calls.append(case.begin(prompts[2]))
    assert case.spans == {(0, 96): 3, (96, 160): 2}
    calls.append(case.begin(prompts[3]))
    assert case.spans == {(0, 96): 4, (96, 160): 3}
    calls.append(case.begin(prompts[4]))
    assert case.spans == {(0, 48): 5, (48, 96): 4, (96, 160): 3}
    assert len(case.harness.engine._runner._decoders[next(iter(case.harness.engine._runner._decoders))].groups) == 1
    for call, prompt in zip(calls, prompts, strict=True):
        case.assert_as_alone(call, prompt)
    assert case.stats.shared_copied_tokens == 0
    case.harness.settle()


def test_reader_of_a_tail_shares_what_is_behind(case: Case) -> None:
    """What two of several readers have in common behind the prefix becomes a prefix of its own."""
    more = [*COMMON, *ids(48, 4)]
    prompts = [[*COMMON, 6], [*more, 7], [*more, 8]]
    case.harness.finish(case.begin([*COMMON, 5], 1))
    calls = [case.begin(prompt) for prompt in prompts]
    assert case.spans == {(0, 96): 3, (96, 144): 2}
    for call, prompt in zip(calls, prompts, strict=True):
        case.assert_as_alone(call, prompt)
    case.harness.settle()


def test_row_of_a_batch_is_copied_out_once(case: Case) -> None:
    """Its arrays belong to its neighbours as well. Further readers copy nothing."""
    prompt = [*COMMON, 5]
    neighbour = case.begin(ids(97, 9))
    first = case.begin(prompt)
    assert not case.spans
    others = [case.begin([*COMMON, 6, number]) for number in range(2)]
    assert case.stats.shared_copied_tokens == 96
    case.assert_as_alone(neighbour, ids(97, 9))
    case.assert_as_alone(first, prompt)
    for number, call in enumerate(others):
        case.assert_as_alone(call, [*COMMON, 6, number])
    case.harness.settle()


def test_requests_that_come_together_share_their_beginning(case: Case) -> None:
    """The first computes it, and is not done with its own end when the others come to read it."""
    prompts = [[*COMMON, *ids(20 + number, number)] for number in range(4)]
    with frozen():
        calls = [case.harness.begin(greedy(case.path, prompt, 8)) for prompt in prompts]
        case.harness.until(lambda: case.harness.engine._runner.decoding == len(calls))
    for call, prompt in zip(calls, prompts, strict=True):
        case.assert_as_alone(call, prompt, 8)
    assert case.stats.tokens_shared >= 3 * 96
    assert case.harness.engine._runner.prompt_tokens < sum(map(len, prompts)) * 2 - 3 * 96 + 1
    case.harness.settle()


def test_invalidated_prefix_is_lent_to_no_later_reader(case: Case) -> None:
    """A request that reused it runs on; what is computed anew since is read, and not the copy of that request."""
    case.harness.finish(case.begin([*COMMON, 5], 1))
    before = case.begin([*COMMON, 6], 200)
    assert not case.harness.run(pb.InvalidateRequest(all=pb.AllTarget(prefixes=True))).failure.message
    after = case.begin([*COMMON, 7])
    reader = case.begin([*COMMON, 8])
    sequences = {sequence.call_id: sequence for sequence in case.harness.engine._runner.sequences()}
    assert sequences[before].kv.common is None
    assert sequences[reader].kv.common is sequences[after].kv.common is not None
    case.assert_as_alone(before, [*COMMON, 6], 200)
    case.assert_as_alone(after, [*COMMON, 7])
    case.assert_as_alone(reader, [*COMMON, 8])
    case.harness.settle()


@pytest.mark.parametrize("batch", [False, True])
def test_fault_in_sharing_costs_only_time(case: Case, monkeypatch: pytest.MonkeyPatch, batch: bool) -> None:
    """The request that holds the prefix goes on, and the other one computes its own."""
    case.harness.finish(case.begin([*COMMON, 5], 1))
    neighbours = [case.begin(ids(97, 9))] * batch
    first = case.begin([*COMMON, 6])

    def failing(*_: object, **__: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(sharing, "share", failing)
    second = case.begin([*COMMON, 7])
    assert not case.spans
    case.assert_as_alone(first, [*COMMON, 6])
    case.assert_as_alone(second, [*COMMON, 7])
    for call in neighbours:
        case.assert_as_alone(call, ids(97, 9))
    case.harness.settle()


def test_samples_of_a_prompt_share_it(case: Case) -> None:
    """Each of them is what it is as a row that has the prompt for itself."""
    ask = pb.GenerateRequest(
        model=case.path,
        tokens=pb.TokenIds(ids=[*COMMON, 5, 6]),
        max_tokens=12,
        samples=3,
        sampling=pb.Sampling(temperature=1.0, seed=4),
        stop=pb.Stop(ignore_eos=True),
        cache=pb.CacheOptions(mode=pb.CACHE_MODE_BYPASS),
    )
    with frozen():
        call = case.harness.begin(ask)
        case.harness.until(lambda: case.harness.engine._runner.decoding == 3)
    assert case.spans == {(0, 96): 3}
    together = case.harness.finish(call)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharing, "LEAST_SHARED", 10_000)
        apart = case.harness.finish(case.harness.begin(ask))
    assert sampled(together) == sampled(apart)
    case.harness.settle()


def sampled(events: list[ipc.Event]) -> dict[int, list[int]]:
    """Return the tokens of each sample."""
    tokens: dict[int, list[int]] = {}
    for event in events:
        tokens.setdefault(event.generate.delta.index, []).extend(event.generate.delta.token_ids)
    return tokens


@pytest.mark.parametrize("family", ["qwen3", "deepseek_v3"])
def test_wrong_value_in_a_shared_prefix_is_seen(engine: Callable[..., Harness], tmp_path: Path, family: str) -> None:
    """Readers do read it: what they compute depends on each of its values."""
    case = Case(engine(), write(tmp_path, Family(family)))
    case.harness.finish(case.begin([*COMMON, 5], 1))
    calls = [case.begin([*COMMON, 6, number]) for number in range(2)]
    (prefix,) = case.harness.engine._runner.readers.prefixes()
    keys, values = map(mx.array, prefix.layers[0])
    changed = keys if family == "deepseek_v3" else values  # latents are their own values
    changed[0, 0, 50, 0] = 1000.0
    prefix.layers[0] = (keys, values)
    answer = Answer(case.harness.finish(calls[0]))
    alone = Answer(case.harness.finish(case.begin([*COMMON, 6, 0], 40, pb.CACHE_MODE_BYPASS)))
    assert [one.logprob for one in answer.logprobs[5:]] != pytest.approx([one.logprob for one in alone.logprobs[5:]])


def test_readers_take_the_memory_of_one(case: Case) -> None:
    """Their bill has the prefix once, and their own ends."""
    runner = case.harness.engine._runner
    long = ids(1500)
    case.harness.finish(case.begin([*long, 5], 1))
    calls = [case.begin([*long, 6], 60)]
    one = runner._bill().kv
    calls += [case.begin([*long, 7, number], 200) for number in range(7)]
    layout = case.harness.engine._models.entries()[0].model.layout
    assert runner._bill().kv <= one + 7 * layout.full_bytes(512)
    for call in calls:
        case.harness.finish(call)
    case.harness.settle()


def test_readers_fit_where_copies_would_not(engine: Callable[..., Harness], tmp_path: Path) -> None:
    """A waiting request is billed its end alone, if a running one has leased what it will read."""
    case = Case(engine(), write(tmp_path, Family("qwen3")))
    long = ids(1500)
    case.harness.finish(case.begin([*long, 5], 1))
    first = case.begin([*long, 6])
    runner, memory = case.harness.engine._runner, case.harness.engine._memory
    full = memory.budget
    memory.budget = replace(full, limit=memory.use().total)
    with frozen():
        second = case.harness.begin(greedy(case.path, [*long, 7], 4))
        case.harness.until(lambda: bool(runner.waiting))
    (waiting,) = runner._waiting
    needs = []
    for expected in (0, 1488):
        waiting.kv.outlook.tokens = expected
        needs.append(runner._bill(waiting).total - runner._bill().total)
    layout = case.harness.engine._models.entries()[0].model.layout
    # In steps of 256 tokens: room for 1536, or for an end of 256.
    assert needs[1] <= needs[0] - layout.full_bytes(1280) + layout.layer_bytes(1488)
    memory.budget = replace(full, limit=memory.use().total + needs[1])
    with frozen():
        case.harness.until(lambda: runner.decoding == 2)
    assert case.spans == {(0, 1488): 2}
    memory.budget = full
    for call in (first, second):
        assert not Answer(case.harness.finish(call)).failure.message
    case.harness.settle()


def test_other_salts_share_nothing(case: Case) -> None:
    """A prefix of one salt is not read under another."""
    with frozen():
        for salt in ("a", "b"):
            ask = greedy(case.path, [*COMMON, 5], 4)
            ask.cache.salt = salt
            case.harness.begin(ask)
        case.harness.until(lambda: case.harness.engine._runner.decoding == 2)
    assert not case.spans
