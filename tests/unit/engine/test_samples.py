"""Samples: several answers to one prompt, which is computed once; each is that of a request of its own."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from daemon.cache.resolver import Resolver, Wanted
from daemon.engine.calls.options import SEED_STEP
from daemon.engine.execution.batch import Batch
from daemon.engine.execution.row import Row
from daemon.engine.memory.memory_budget import MemoryBudget
from daemon.engine.structured_output.matcher import GrammarMatcher
from daemon.shared.errors import invalid
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import TINY, marked_model, random_model
from tests.unit.engine.cold_runs import CLOSE
from tests.unit.engine.families import EXACT
from tests.unit.engine.harness import Answer, Harness, generate
from tests.unit.engine.marked_calls import HERMES
from tools.embedded import corpus

PROMPT = next(corpus.held_out(seed=70, tokens_hint=150)).completion()
EMBEDDED = Resolver([]).resolve(Wanted("embedded"))
BYPASS = pb.CacheOptions(mode=pb.CACHE_MODE_BYPASS)


def request(samples: int, text: str = PROMPT, seed: int = 5, **fields: Any) -> pb.GenerateRequest:
    """Return a request for several samples."""
    sampling = pb.Sampling(temperature=3.0, seed=seed)
    return generate(text, **{"samples": samples, "sampling": sampling, "max_tokens": 20, "top_logprobs": 2, **fields})


class Sample:
    """One sample of a call's events."""

    def __init__(self, events: list[ipc.Event], index: int) -> None:
        answers = [event.generate for event in events]
        deltas = [answer.delta for answer in answers if answer.HasField("delta") and answer.delta.index == index]
        ends = [answer.finished for answer in answers if answer.HasField("finished")]
        self.text = "".join(delta.text for delta in deltas)
        self.ids = [token for delta in deltas for token in delta.token_ids]
        self.logprobs = [entry for delta in deltas for entry in delta.logprobs]
        (self.finished,) = [end for end in ends if end.index == index]

    @property
    def content(self) -> tuple[object, ...]:
        """What depends neither on time nor on rounding."""
        end = self.finished
        return self.text, self.ids, end.seed, end.reason, end.stop_match, end.usage.completion_tokens


def samples_of(harness: Harness, asked: pb.GenerateRequest) -> list[Sample]:
    """Run a request and return its samples."""
    events = harness.finish(harness.begin(asked))
    return [Sample(events, index) for index in range(asked.samples or 1)]


def alone(harness: Harness, asked: pb.GenerateRequest, seed: int) -> Sample:
    """Run a request for a single answer with a seed, without reuse."""
    single = pb.GenerateRequest()
    single.CopyFrom(asked)
    single.ClearField("samples")
    single.sampling.seed = seed
    single.cache.CopyFrom(BYPASS)
    return samples_of(harness, single)[0]


def assert_each_is_that_of_its_seed(
    harness: Harness, asked: pb.GenerateRequest, tolerance: float = 0.0
) -> list[Sample]:
    """Compare the samples of a request with requests of their own, cold; a tolerance is for log-probabilities."""
    samples = samples_of(harness, asked)
    for sample in samples:
        single = alone(harness, asked, sample.finished.seed)
        assert sample.content == single.content
        pairs = zip(sample.logprobs, single.logprobs, strict=True)
        assert all(abs(own.logprob - other.logprob) <= tolerance for own, other in pairs)
    harness.settle()
    return samples


@pytest.mark.parametrize("text", [PROMPT, PROMPT[:40], "a"], ids=["long", "short", "token"])
def test_each_sample_is_the_answer_of_its_seed(harness: Harness, text: str) -> None:
    """Cold and warm; the prompt is computed once."""
    before = harness.figures.engine.prompt_tokens
    samples = samples_of(harness, request(4, text))
    usage = samples[0].finished.usage
    assert harness.figures.engine.prompt_tokens - before == usage.prompt_tokens - usage.cached_tokens
    assert [sample.finished.seed for sample in samples] == [(5 + i * SEED_STEP) % 2**64 for i in range(4)]
    assert len({tuple(sample.ids) for sample in samples}) == 4
    warm = assert_each_is_that_of_its_seed(harness, request(4, text))
    assert [sample.content for sample in warm] == [sample.content for sample in samples]
    assert warm[0].finished.usage.cached_tokens == (usage.prompt_tokens - 1 if usage.prompt_tokens > 16 else 0)


@pytest.mark.parametrize("family", list(TINY))
def test_samples_are_exact_with_every_cache(harness: Harness, tmp_path: Path, family: str) -> None:
    """Windows, states, latents: all are copied for each sample. Rounding depends on the number of rows in some."""
    path = str(random_model(tmp_path, family))
    tolerance = 0.0 if family in EXACT else CLOSE
    assert_each_is_that_of_its_seed(harness, request(3, model=path, max_tokens=12), tolerance)


def test_samples_are_exact_without_batches(harness: Harness) -> None:
    """A model whose caches cannot be batched: each sample decodes alone, from a copy."""
    harness.run(pb.GetOrLoadRequest(model="embedded"))
    (entry,) = harness.engine._models.entries()
    object.__setattr__(entry.model, "joinable", False)
    assert_each_is_that_of_its_seed(harness, request(3))


def test_samples_beside_other_requests(harness: Harness) -> None:
    """Neither changes the other; the samples leave the batch one by one."""
    single = generate("Once", max_tokens=30, top_logprobs=0)
    expected = harness.run(single).content
    calls = [harness.begin(single), harness.begin(request(4)), harness.begin(single)]
    events = [harness.finish(call) for call in calls]
    assert [Answer(events[0]).content, Answer(events[2]).content] == [expected] * 2
    for index in range(4):
        sample = Sample(events[1], index)
        assert sample.content == alone(harness, request(4), sample.finished.seed).content
    harness.settle()


def test_one_of_several_samples_has_a_random_seed(harness: Harness) -> None:
    """It is told, and repeats the sample."""
    asked = request(2)
    asked.sampling.ClearField("seed")
    assert_each_is_that_of_its_seed(harness, asked)


def test_greedy_answer_has_no_seed(harness: Harness) -> None:
    """Nothing is drawn."""
    assert not harness.run(generate("Once")).finished.HasField("seed")


def test_cancelled_samples_all_end(engine: Callable[..., Harness]) -> None:
    """While they decode, and before their prompt is computed."""
    harness = engine(max_batch=4)
    call = harness.begin(request(4, max_tokens=200, stop=pb.Stop(ignore_eos=True)))
    harness.until(lambda: harness.engine._runner.decoding == 4)
    waiting = harness.begin(request(4))
    harness.until(lambda: harness.engine._runner.waiting == 1)
    harness.cancel(waiting)
    harness.cancel(call)
    harness.settle()


def test_held_samples_wait_and_go_on(harness: Harness) -> None:
    """All of them."""
    expected = [sample.content for sample in samples_of(harness, request(3))]
    call = harness.begin(request(3))
    harness.until(lambda: harness.decoding(call))
    harness.engine.handle(ipc.Command(call_id=call, hold=ipc.Hold(held=True)))
    sent = len(harness.of(call))
    for _ in range(3):
        harness.step()
    assert len(harness.of(call)) == sent
    assert not harness.engine.busy
    harness.engine.handle(ipc.Command(call_id=call, hold=ipc.Hold(held=False)))
    events = harness.finish(call)
    assert [Sample(events, index).content for index in range(3)] == expected
    harness.settle()


def test_held_samples_leave_their_batch_at_once(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time that rows leave, the KV of those that stay is copied."""
    left, leave = list[int](), Batch.leave

    def counted(batch: Batch, leaving: Collection[Row]) -> None:
        left.append(len(leaving))
        leave(batch, leaving)

    monkeypatch.setattr(Batch, "leave", counted)
    endless = pb.Stop(ignore_eos=True)
    calls = [harness.begin(request(samples, max_tokens=200, stop=endless)) for samples in (3, 1)]
    harness.until(lambda: harness.engine._runner.decoding == 4)
    (decoder,) = harness.engine._runner._decoders.values()
    assert [len(group) for group in decoder.groups] == [4]
    harness.engine._runner.hold(calls[0], held=True)
    assert left == [3]
    for call in calls:
        harness.cancel(call)
    harness.settle()


def test_failed_sample_ends_the_call_once(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others have no end of their own then, even if they end with the same step."""
    take, taken = GrammarMatcher.take, Counter[GrammarMatcher]()

    def failing(self: GrammarMatcher, token: int) -> None:
        taken[self] += 1
        if taken[self] == 5 and self is list(taken)[1]:
            raise invalid("response_format", "takes too much work")
        take(self, token)

    monkeypatch.setattr(GrammarMatcher, "take", failing)
    for tokens in (6, 60):
        taken.clear()
        call = harness.begin(request(3, response_format=pb.ResponseFormat(regex="[a-z ]{60}"), max_tokens=tokens))
        events = harness.finish(call)
        assert events[-1].failure.field == "response_format"
        assert not any(event.generate.HasField("finished") for event in events)
        harness.settle()


def test_each_sample_keeps_to_its_form(harness: Harness) -> None:
    """Each has a matcher of its own."""
    form = pb.ResponseFormat(regex="(red|green|blue|white), [0-9]{3}")
    asked = request(4, response_format=form, max_tokens=40)
    samples = assert_each_is_that_of_its_seed(harness, asked)
    assert len({sample.text for sample in samples}) > 1
    assert all(re.fullmatch(form.regex, sample.text) for sample in samples)


def test_each_sample_makes_its_own_required_calls(harness: Harness, tmp_path: Path) -> None:
    """With a parser and a grammar each, which begin anew."""
    marks, known_by = HERMES
    path = marked_model(tmp_path, marks, f"{{# {known_by} #}}")
    schema = json.dumps({"enum": [{"n": number} for number in range(10, 40)]})
    chat = pb.Chat(
        messages=[pb.ChatMessage(role="user", content="Hi")],
        tools=[pb.Tool(name="t", parameters_json=schema)],
        tool_choice=pb.TOOL_CHOICE_REQUIRED,
        required_tool="t",
    )
    sampling = pb.Sampling(temperature=2.0, seed=9)
    events = harness.finish(
        harness.begin(pb.GenerateRequest(model=str(path), chat=chat, max_tokens=400, sampling=sampling, samples=4))
    )
    calls: list[str] = []
    for index in range(4):
        deltas = [event.generate.delta for event in events if event.generate.HasField("delta")]
        (call,) = [call for delta in deltas if delta.index == index for call in delta.tool_calls]
        calls.append(call.arguments_json)
        assert Sample(events, index).finished.reason == pb.FINISH_REASON_TOOL_CALLS
    assert len(set(calls)) > 1
    harness.settle()


def test_invalidated_samples_store_nothing(engine: Callable[..., Harness]) -> None:
    """Before they begin and while they decode."""
    harness = engine(max_batch=3)
    everything = pb.InvalidateRequest(all=pb.AllTarget(prefixes=True))
    endless = harness.begin(generate("Once", max_tokens=2000, stop=pb.Stop(ignore_eos=True), cache=BYPASS))
    harness.until(lambda: harness.decoding(endless))
    waiting = harness.begin(request(3, max_tokens=40, stop=pb.Stop(ignore_eos=True)))
    harness.until(lambda: harness.engine._runner.waiting == 1)
    harness.run(everything)
    harness.cancel(endless)
    harness.finish(waiting)
    assert harness.figures.prefix_cache.blocks == 0
    call = harness.begin(request(3, max_tokens=40, stop=pb.Stop(ignore_eos=True)))
    harness.until(lambda: harness.decoding(call))
    harness.run(everything)
    harness.finish(call)
    harness.settle()
    assert harness.figures.prefix_cache.blocks == 0


def test_finished_samples_store_their_answers(harness: Harness) -> None:
    """A prompt that goes on after any of them reuses it."""
    asked = request(3, max_tokens=40, stop=pb.Stop(ignore_eos=True))
    for sample in samples_of(harness, asked):
        prompt = [*harness.engine._services.tokenizers.get(EMBEDDED).encode_prompt(PROMPT), *sample.ids]
        longer = pb.GenerateRequest(model="embedded", tokens=pb.TokenIds(ids=prompt), max_tokens=1)
        assert harness.run(longer).cached >= (len(prompt) - 1) // 16 * 16 - 16
    harness.settle()


def test_samples_need_as_many_slots(engine: Callable[..., Harness]) -> None:
    """They wait until all are free, and are refused if there are never enough."""
    harness = engine(max_batch=3)
    refused = harness.run(request(4)).failure
    assert (refused.reason, refused.field) == ("INVALID_ARGUMENT", "samples")
    endless = harness.begin(generate("Once", max_tokens=200, stop=pb.Stop(ignore_eos=True)))
    harness.until(lambda: harness.decoding(endless))
    samples = harness.begin(request(3))
    harness.until(lambda: harness.engine._runner.waiting == 1)
    harness.step()
    assert not harness.of(samples)[1:]
    harness.cancel(endless)
    harness.finish(samples)
    harness.settle()


def test_memory_is_reserved_for_each_sample(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the start; and a request whose samples can never fit is refused."""
    asked: list[int] = []
    make_room = harness.engine._runner._make_room

    def noted(need: int, billed: int) -> bool:
        asked.append(need)
        return make_room(need, billed)

    monkeypatch.setattr(harness.engine._runner, "_make_room", noted)
    harness.run(generate(PROMPT, max_tokens=20))
    harness.finish(harness.begin(request(4)))
    single, several = asked
    layout = harness.engine._models.entries()[0].model.layout
    assert 4 * layout.live_bytes(1, 1) <= several <= 4 * single  # they share what a pass takes
    limit = harness.figures.memory.weights_bytes + several - 1
    monkeypatch.setattr(MemoryBudget, "limit", limit)
    assert harness.run(request(4)).failure.reason == "REQUEST_EXCEEDS_MEMORY"
    harness.settle()
