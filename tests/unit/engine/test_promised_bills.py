"""Bills of prompts whose beginning another one is still to compute: once for all, and checked when they begin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.engine.execution.bill import _prompt, _prompts, bill
from daemon.engine.execution.join_bills import _most_together
from daemon.engine.execution.prefill_queue import Begun, Postponed, Prefilled, PrefillQueue
from daemon.engine.execution.runner import Runner
from daemon.engine.execution.sequence import Sequence
from daemon.engine.scheduling.prefill_plan import PASS_TOKENS
from daemon.kv.mlx import sharing
from daemon.kv.prefix_cache import PrefixCache
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.families import Family, write
from tests.unit.engine.harness import Answer, Harness, greedy
from tests.unit.engine.prompts import ids
from tests.unit.engine.reader_case import Case, frozen

LONG = ids(400)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share short prefixes as well: the lengths do not matter to what is tested."""
    monkeypatch.setattr(sharing, "LEAST_SHARED", 32)


@pytest.mark.parametrize("family", ["qwen3", "gpt_oss", "qwen3_next"])
def test_cold_prompts_that_start_together_are_billed_once(
    engine: Callable[..., Harness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Nothing is stored yet: the first computes the beginning, and the others are billed what is theirs alone."""
    case = Case(engine(), write(tmp_path, Family(family)))
    case.harness.run(pb.GetOrLoadRequest(model=case.path))
    runner = case.harness.engine._runner
    with monkeypatch.context() as held:
        held.setattr(PrefillQueue, "step", lambda queue, decode: iter(()))
        calls = [case.harness.begin(greedy(case.path, [*LONG, number, *ids(20, number)], 4)) for number in (6, 7, 8)]
        case.harness.until(lambda: runner.prefilling == 3)
        prompts = list(runner._prefills)
        expected = [sequence.kv.outlook.tokens for sequence in prompts]
        billed = runner._bill().kv
        for sequence in prompts:
            sequence.kv.outlook.tokens = 0
        full = runner._bill().kv
        runner.readers.outlooks.renew()
        assert runner._bill().kv == billed
    assert expected == [0, 400, 400]
    assert billed < full
    with frozen():
        case.harness.until(lambda: runner.decoding == 3)
        assert case.spans == {(0, 400): 3}
        assert runner._bill().kv <= billed + full // 3
    for call in calls:
        assert not Answer(case.harness.finish(call)).failure.message
    case.harness.settle()


@pytest.mark.parametrize("family", ["qwen3", "gpt_oss"])
def test_wide_pass_of_the_first_is_billed_without_those_that_wait(
    engine: Callable[..., Harness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """They hold nothing before it comes to where they part, and all that they are billed behind that."""
    case = Case(engine(), write(tmp_path, Family(family)))
    case.harness.run(pb.GetOrLoadRequest(model=case.path))
    runner = case.harness.engine._runner
    monkeypatch.setattr(PrefillQueue, "step", lambda queue, decode: iter(()))
    calls = [case.harness.begin(greedy(case.path, [*LONG, number, *ids(20, number)], 4)) for number in (6, 7, 8)]
    case.harness.until(lambda: runner.prefilling == 3)
    prompts = list(runner._prefills)
    first, tails = prompts[0], sum(_prompt(prompt, 256).kv for prompt in prompts[1:])
    apart, beside = _prompts(prompts, 256)[0], _prompt(first, 256)
    first.kv.held = 400  # where they part
    behind, alone = _prompts(prompts, 256)[0], _prompt(first, 256)
    first.kv.held = 0
    for call in calls:
        case.harness.cancel(call)
    assert apart.kv == beside.kv
    assert beside.work - tails <= apart.work < beside.work
    assert behind == alone
    case.harness.settle()


def test_what_the_first_has_stored_counts_for_all_that_wait(
    engine: Callable[..., Harness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They looked for it when nothing was stored; a model with windows reads what is stored alone."""
    case = Case(engine(), write(tmp_path, Family("gpt_oss")))
    case.harness.run(pb.GetOrLoadRequest(model=case.path))
    runner, expected = case.harness.engine._runner, list[int]()
    prefilled = Runner._prefilled

    def seen(self: Runner, outcome: Prefilled) -> None:
        prefilled(self, outcome)
        expected.extend(sequence.kv.outlook.tokens for sequence in list(self._prefills)[1:] if not sequence.kv.begun)

    monkeypatch.setattr(Runner, "_prefilled", seen)
    with frozen():
        calls = [
            case.harness.begin(greedy(case.path, [*LONG, number, *ids(20, number)], 40)) for number in (6, 7, 8, 9)
        ]
        case.harness.until(lambda: runner.decoding == 4)
    assert set(expected) == {400}
    for call in calls:
        case.harness.cancel(call)
    case.harness.settle()


@pytest.mark.parametrize("fault", ["nothing is stored", "the first is invalidated"])
def test_prompt_waits_again_if_others_fell_short(
    engine: Callable[..., Harness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """What it was billed for is not there, and all of it does not fit now: it is answered once the others end."""
    case = Case(engine(kv_cache_mb=64), write(tmp_path, Family("qwen3")))
    harness, prompts = case.harness, [[*LONG, number] for number in (6, 7, 8)]
    alone = [harness.run(greedy(case.path, prompt, 8, pb.CACHE_MODE_BYPASS)).ids for prompt in prompts]
    runner, memory = harness.engine._runner, harness.engine._memory
    outcomes: list[Prefilled] = []
    prefilled, add = Runner._prefilled, PrefillQueue.add

    def seen(self: Runner, outcome: Prefilled) -> None:
        prefilled(self, outcome)
        outcomes.append(outcome)
        groups = [rows for decoder in self._decoders.values() for rows in decoder.groups]
        taken = bill([sequence for sequence in self._prefills if sequence.kv.begun], groups).total
        assert memory.use().weights + taken <= memory.budget.limit

    def limited(self: PrefillQueue, sequence: Sequence) -> None:
        """Let memory be what the prompts are billed as long as they count on each other."""
        add(self, sequence)
        if len(self) == len(prompts) and not outcomes:
            used = memory.use()
            memory.budget = replace(memory.budget, limit=used.weights + bill(list(self), ()).total)
            if fault == "the first is invalidated":
                next(iter(self)).kv.writes = False
                runner.readers.outlooks.renew()

    monkeypatch.setattr(Runner, "_prefilled", seen)
    monkeypatch.setattr(PrefillQueue, "add", limited)
    if fault == "nothing is stored":
        monkeypatch.setattr(PrefixCache, "store", lambda *_, **__: 0)
    with monkeypatch.context() as held:  # nothing is computed before all of them count on each other
        held.setattr(PrefillQueue, "step", lambda queue, decode: iter(()))
        calls = [harness.begin(greedy(case.path, prompt, 8)) for prompt in prompts]
        harness.until(lambda: harness.engine._runner.prefilling == len(prompts))
    answers = [Answer(harness.finish(call)) for call in calls]
    assert [answer.ids for answer in answers] == alone
    postponed = [outcome.sequence for outcome in outcomes if isinstance(outcome, Postponed)]
    begun = [outcome.sequence for outcome in outcomes if isinstance(outcome, Begun)]
    assert len(postponed) == len(set(postponed)) >= 1
    assert set(postponed) <= set(begun)
    assert len(begun) == len(prompts)
    assert not runner.waiting
    harness.settle()


@given(st.lists(st.integers(0, 128), min_size=1, max_size=6), st.integers(16, 256))
def test_padding_of_a_shared_pass_is_billed(lengths: list[int], most: int) -> None:
    groups = [group for count in range(1, len(lengths) + 1) for group in combinations(lengths, count)]
    padded = [
        len(group) * max(group)
        for group in groups
        if sum(group) <= most and len(group) * max(group) - sum(group) <= PASS_TOKENS * len(group)
    ]
    assert _most_together(lengths, most) >= max(padded, default=0)


def test_prompts_of_equal_length_bill_no_part_of_one() -> None:
    """A pass takes whole prompts; short rows beside a longer one are padded beyond the tokens of the pass."""
    assert _most_together([99] * 4, 256) == 198
    assert _most_together([32] + [1] * 16, 64) == 17 * 32
