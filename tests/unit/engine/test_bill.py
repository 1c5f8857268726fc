"""Bills of requests: what each holds, and once what all take for a moment; passes are as wide as memory allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from daemon.engine.execution import bill as bills
from daemon.engine.execution.bill import bill, widest
from daemon.engine.execution.prefill import Prefill
from daemon.engine.execution.prefill_queue import Prefilled, PrefillQueue
from daemon.engine.execution.row_bills import LEAST_WIDTH, Bill, BilledRow, prompt_bill
from daemon.engine.execution.runner import Runner
from daemon.engine.memory.memory_budget import DECODE_ROOM, MemoryBudget
from daemon.engine.scheduling.policy import MAX_CHUNK, MIN_CHUNK
from daemon.kv.mlx import peak
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.heads import model_with_head
from tests.support.models import TINY, embedding_model, write_random
from tests.unit.engine.families import Family, write
from tests.unit.engine.harness import Answer, Harness, greedy
from tests.unit.engine.prompts import ids
from tests.unit.engine.reader_case import Case, frozen

LENGTH = 700


def model_of(folder: Path, seed: int = 7) -> str:
    """Write a model with wide KV and several layers."""
    return str(write_random(folder / f"m{seed}", {**TINY["llama"], "head_dim": 64, "num_hidden_layers": 6}, seed))


def asked(path: str, number: int = 0, length: int = LENGTH, answer: int = 4) -> pb.GenerateRequest:
    """Return a request with a prompt of its own."""
    ids = [5 + (7 * index + 31 * number) % 700 for index in range(length)]
    return pb.GenerateRequest(model=path, tokens=pb.TokenIds(ids=ids), max_tokens=answer)


@pytest.mark.parametrize("batch", [1, 4])
def test_peak_of_requests_is_within_their_bills(engine: Callable[..., Harness], tmp_path: Path, batch: int) -> None:
    """From the first chunk to the last token, joins and leaves included."""
    harness, path = engine(kv_cache_mb=0), model_of(tmp_path)
    harness.run(pb.GetOrLoadRequest(model=path))
    harness.settle()
    mx.clear_cache()
    peak.reset()
    before = mx.get_active_memory()
    model = harness.engine._models.entries()[0].model
    calls = [harness.begin(asked(path, number)) for number in range(batch)]
    for call in calls:
        harness.finish(call)
    mx.synchronize()
    bills = [prompt_bill([model], BilledRow(LENGTH, 4), width=MAX_CHUNK) for _ in calls]
    assert mx.get_peak_memory() - before <= sum(one.kv for one in bills) + bills[0].work


def test_passes_get_narrower_where_memory_is_short(engine: Callable[..., Harness], tmp_path: Path) -> None:
    """A prompt that fits is computed, in smaller pieces; one token more than fits is refused with the length."""
    harness, path = engine(kv_cache_mb=0), model_of(tmp_path)
    harness.run(pb.GetOrLoadRequest(model=path))
    model = harness.engine._models.entries()[0].model
    wide = harness.run(asked(path))
    least, full = (prompt_bill([model], BilledRow(LENGTH, 4), width=width).total for width in (LEAST_WIDTH, 256))
    assert least < full
    limit = model.nbytes + least
    budget = replace(harness.engine._services.budget, limit=limit)
    harness.engine._services = replace(harness.engine._services, budget=budget)
    harness.engine._memory.budget = budget
    limits: list[int] = []
    sizer = harness.engine._runner._times
    original = sizer.limit
    sizer.limit = lambda model, tokens: (limits.append(tokens), original(model, tokens))[1]  # type: ignore[func-returns-value, method-assign]
    narrow = harness.run(asked(path))
    assert narrow.ids == wide.ids
    assert LEAST_WIDTH in limits
    refused = harness.run(asked(path, length=2 * LENGTH)).failure
    longest = int(refused.metadata["longest_prompt_tokens"])
    assert refused.reason == "REQUEST_EXCEEDS_MEMORY"
    assert LENGTH <= longest < 2 * LENGTH
    assert harness.run(asked(path, length=longest)).failure.reason == ""
    harness.settle()


@pytest.mark.parametrize("how", ["drafted", "scored"])
def test_passes_of_drafts_and_scores_get_narrower(
    engine: Callable[..., Harness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A draft model has what both models are billed, but for the KV of the other; scores are as any other prompt."""
    harness, path, draft = engine(kv_cache_mb=0), model_of(tmp_path), model_of(tmp_path, 8)
    ask, runner, passes = asked(path), harness.engine._runner, list[tuple[str, int]]()
    for model in (path, draft):
        harness.run(pb.GetOrLoadRequest(model=model))
    ask.stop.ignore_eos = True
    if how == "drafted":
        ask.draft_model = draft
    else:
        ask.prompt_logprobs = 0
    compute = Prefill._compute

    def noted(self: Prefill, tokens: int, *, logits: bool) -> None:
        passes.append((self._kv.loaded.source.name, tokens))
        compute(self, tokens, logits=logits)

    monkeypatch.setattr(Prefill, "_compute", noted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "step", lambda _: None)
        call = harness.begin(ask)
        harness.until(lambda: runner.waiting == 1)
    (sequence,) = runner.sequences()
    least, row, models = bill([sequence], ()).total, bills._row(sequence), [kv.loaded for kv in sequence.kvs]
    harness.engine._memory.budget = MemoryBudget(harness.engine._memory.use().weights + least)
    assert Answer(harness.finish(call)).finished.usage.completion_tokens == 4
    assert max(tokens for name, tokens in passes if name == path) <= LEAST_WIDTH + 1
    if how == "drafted":
        widest_pass = max(tokens for name, tokens in passes if name == draft)
        width = widest_pass - MIN_CHUNK  # a rest below that is taken along
        taken = prompt_bill(models[1:], row, width=width).total + prompt_bill(models[:1], row).kv
        assert widest_pass >= LEAST_WIDTH
        assert taken <= least
    harness.settle()


def test_model_that_drafts_for_itself_counts_once(engine: Callable[..., Harness], tmp_path: Path) -> None:
    """Its weights are in memory once: a request that fits beside them is served."""
    harness, path = engine(kv_cache_mb=0), model_of(tmp_path)
    harness.run(pb.GetOrLoadRequest(model=path))
    (weights,) = (entry.model.nbytes for entry in harness.engine._models.entries())
    ask = asked(path)
    ask.draft_model, ask.stop.ignore_eos = path, True

    def answered(room: int) -> Answer:
        budget = replace(harness.engine._services.budget, limit=weights + room)
        harness.engine._services = replace(harness.engine._services, budget=budget)
        harness.engine._memory.budget = budget
        return harness.run(ask)

    needed = int(answered(1).failure.metadata["needed_bytes"])
    assert answered(needed - 1).failure.reason == "REQUEST_EXCEEDS_MEMORY"
    assert answered(needed).finished.usage.completion_tokens == 4
    harness.settle()


def test_load_tells_how_long_a_request_can_be(engine: Callable[..., Harness], tmp_path: Path) -> None:
    """Of a request with so many tokens the prompt is admitted; a longer one is refused."""
    harness, path = engine(kv_cache_mb=0), model_of(tmp_path)
    load = pb.GetOrLoadRequest(model=path)
    ready = harness.run(load).events[-1].load.ready
    assert ready.max_request_tokens == ready.context_length
    budget = replace(harness.engine._services.budget, limit=ready.size_bytes + (8 << 20))
    harness.engine._services = replace(harness.engine._services, budget=budget)
    harness.engine._memory.budget = budget
    most = harness.run(load).events[-1].load.ready.max_request_tokens
    assert DECODE_ROOM < most < ready.context_length
    served = harness.begin(asked(path, length=most - DECODE_ROOM, answer=DECODE_ROOM))
    harness.until(lambda: any(event.generate.HasField("started") for event in harness.of(served)))
    harness.cancel(served)
    refused = harness.run(asked(path, length=most - DECODE_ROOM + 1, answer=DECODE_ROOM)).failure
    assert refused.reason == "REQUEST_EXCEEDS_MEMORY"
    assert (
        harness.run(pb.GetOrLoadRequest(model=path, estimate_only=True)).events[-1].load.ready.max_request_tokens == 0
    )
    harness.settle()


def test_told_length_counts_the_mtp_head(engine: Callable[..., Harness], tmp_path: Path) -> None:
    """A request has it unless it asks for something else, so its KV is billed."""
    harness, path = engine(kv_cache_mb=0), str(model_with_head(tmp_path, "mimo"))
    load = pb.GetOrLoadRequest(model=path)
    harness.run(load)
    model = harness.engine._models.entries()[0].model
    budget = MemoryBudget(model.nbytes + prompt_bill([model], BilledRow(2000, DECODE_ROOM, fed=9)).total)
    harness.engine._services = replace(harness.engine._services, budget=budget)
    harness.engine._memory.budget = budget
    most = harness.run(load).events[-1].load.ready.max_request_tokens
    assert DECODE_ROOM < most < 2000 + DECODE_ROOM
    for more, reason in ((0, ""), (1, "REQUEST_EXCEEDS_MEMORY")):
        answer = harness.run(asked(path, length=most - DECODE_ROOM + more, answer=DECODE_ROOM))
        assert answer.failure.reason == reason
    harness.settle()


def test_samples_behind_a_prefix_are_billed(
    engine: Callable[..., Harness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While their prompt is computed: it and their ends take memory of their own, and the prefix counts once."""
    case = Case(engine(), write(tmp_path, Family("qwen3")))
    runner, kvs = case.harness.engine._runner, list[int]()
    long = ids(1500)
    case.harness.finish(case.begin([*long, 5], 1))
    case.begin([*long, 6], 60)
    ask = greedy(case.path, [*long, *ids(700, 5)], 60)
    ask.samples, ask.sampling.temperature = 4, 1.0
    prefilled = Runner._prefilled

    def billed(self: Runner, outcome: Prefilled) -> None:
        shared = sum(prefix.memory.nbytes for prefix in self.readers.prefixes())
        kvs.extend(bill([prompt], ()).kv - shared for prompt in self._prefills)
        prefilled(self, outcome)

    monkeypatch.setattr(Runner, "_prefilled", billed)
    with frozen():
        case.harness.begin(ask)
        case.harness.until(lambda: runner.decoding == 5)
    layout = case.harness.engine._models.entries()[0].model.layout
    assert kvs
    assert min(kvs) >= 4 * layout.full_bytes(700 + 12)


def test_prompts_that_start_together_are_billed_once(
    engine: Callable[..., Harness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of them in full, whichever that is: also when it ends before the others were looked up."""
    case, long = Case(engine(), write(tmp_path, Family("qwen3"))), ids(1500)
    case.harness.finish(case.begin([*long, 5], 1))
    runner = case.harness.engine._runner
    lookups = case.stats.lookups
    monkeypatch.setattr(PrefillQueue, "step", lambda queue, decode: iter(()))
    calls = [case.harness.begin(greedy(case.path, [*long, number], 4)) for number in (6, 7, 8)]
    case.harness.until(lambda: runner.prefilling == 3)
    expected = [sequence.kv.outlook.tokens for sequence in runner._prefills]
    billed = runner._bill().kv
    assert bill(list(runner._prefills), (), MAX_CHUNK) == bill(list(runner._prefills), ())  # little is left of each
    case.harness.cancel(calls[0])
    after = [sequence.kv.outlook.tokens for sequence in runner._prefills]
    layout = case.harness.engine._models.entries()[0].model.layout
    assert (expected, after) == ([0, 1488, 1488], [0, 1488])
    assert layout.full_bytes(1536) <= billed <= layout.full_bytes(1536 + 2 * 512)
    assert case.stats.lookups == lookups
    monkeypatch.undo()
    with frozen():
        case.harness.until(lambda: runner.decoding == 2)
    assert case.spans == {(0, 1488): 2}
    for call in calls[1:]:
        assert not Answer(case.harness.finish(call)).failure.message
    case.harness.settle()


def test_short_stretch_behind_a_shared_prefix_is_billed(
    engine: Callable[..., Harness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader of 992 tokens is no longer one for 400 tokens more, so a third prompt has a copy of those."""
    case, long = Case(engine(), write(tmp_path, Family("qwen3"))), ids(1500)
    case.harness.finish(case.begin([*long, 5], 1))
    runner = case.harness.engine._runner
    calls = [case.harness.begin(greedy(case.path, [*long[:end], 6, *long[:20]], 400)) for end in (1500, 1000)]
    case.harness.until(lambda: runner.decoding == 2)
    with monkeypatch.context() as held:
        held.setattr(PrefillQueue, "step", lambda queue, decode: iter(()))
        calls.append(case.harness.begin(greedy(case.path, [*long[:1400], 7, *long[:20]], 400)))
        case.harness.until(lambda: runner.prefilling == 1)
        expected = [sequence.kv.outlook.tokens for sequence in runner._prefills]
    case.harness.until(lambda: runner.decoding == 3)
    assert case.spans == {(0, 992): 3}
    assert expected == [992]
    for call in calls:
        case.harness.cancel(call)
    case.harness.settle()


def test_paused_row_is_billed_the_room_of_its_batch(engine: Callable[..., Harness], tmp_path: Path) -> None:
    """It joins the batch again when it goes on, and nothing asks for room then."""
    case = Case(engine(), write(tmp_path, Family("qwen3")))
    runner = case.harness.engine._runner
    calls = [case.harness.begin(greedy(case.path, ids(200, seed), answer)) for seed, answer in ((5, 20), (6, 400))]
    case.harness.until(lambda: runner.decoding == 2)
    (decoder,) = runner._decoders.values()
    assert len(decoder.groups) == 1
    together = runner._bill().kv
    runner.hold(calls[0], held=True)
    assert len(decoder.groups) == 2
    assert runner._bill().kv >= together
    for call in calls:
        case.harness.cancel(call)
    case.harness.settle()


@pytest.mark.parametrize(("free", "made"), [(10_000, 2), (1_000, 5)])
def test_turn_makes_few_bills(monkeypatch: pytest.MonkeyPatch, free: int, made: int) -> None:
    """Each turn of prefill asks for the widest pass: one bill for it and one for the least, if memory suffices."""
    widths: list[int] = []

    def counted(_prompts: object, _groups: object, width: int = LEAST_WIDTH) -> Bill:
        widths.append(width)
        return Bill(0, width)

    monkeypatch.setattr(bills, "bill", counted)
    assert widest([], MAX_CHUNK, lambda _: free) - LEAST_WIDTH <= free
    assert len(widths) == made


def test_text_to_embed_is_billed_no_guesses(engine: Callable[..., Harness], tmp_path: Path) -> None:
    """It decodes nothing. A longer bill than the one by which it is refused would be BUDGET_IN_USE for ever."""
    harness, path = engine(), str(embedding_model(tmp_path / "m"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "step", lambda _: None)
        call = harness.begin(pb.EmbedRequest(model=path, texts=["a b c"]))
        harness.until(lambda: harness.engine._runner.waiting == 1)
    (sequence,) = harness.engine._runner.sequences()
    assert bills._row(sequence) == BilledRow(len(sequence.prompt), 0)
    harness.finish(call)
    harness.settle()
