"""Neighbours: whatever else runs, each answer is the one that its request gets alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from daemon.kv.mlx import sharing
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import random_model
from tests.unit.engine.harness import Answer, Harness
from tests.unit.engine.shared_guesses import counting

FAMILIES = ("embedded", "qwen3", "gemma3_text", "mamba", "qwen3_next")
SAMPLINGS = (
    pb.Sampling(),
    pb.Sampling(temperature=0.9, seed=7),
    pb.Sampling(temperature=1.3, seed=8, top_p=0.9, top_k=40, min_p=0.01),
    pb.Sampling(temperature=0.7, seed=9, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.4),
    pb.Sampling(repetition_penalty=1.5, logit_bias={9: 3.0, 11: -100.0}),
)
REPEATS = pb.Sampling(temperature=1.5, seed=4, logit_bias={11: 100.0, 12: 100.0})
"""Only two tokens come, so that n-grams guess many of them, half of them wrongly."""
MODES = (pb.CACHE_MODE_UNSPECIFIED, pb.CACHE_MODE_READ_WRITE, pb.CACHE_MODE_READ_ONLY, pb.CACHE_MODE_BYPASS)
KINDS = 50
MOST_AT_ONCE = 5
EXACT = ("embedded", "qwen3", "mamba", "qwen3_next")
"""Families whose log-probabilities are equal too; a window's differ in their last bits with the split of a prefill."""


@dataclass(frozen=True)
class Alone:
    """A request, and what it gets when nothing else runs and nothing is cached."""

    request: pb.GenerateRequest
    answer: Answer
    exact: bool

    def equals(self, answer: Answer) -> bool:
        """Whether an answer is the same."""
        usage = (answer.finished.reason, answer.finished.usage.completion_tokens)
        same = usage == (self.answer.finished.reason, self.answer.finished.usage.completion_tokens)
        if self.exact:
            return same and answer.content == self.answer.content
        return same and (answer.text, answer.ids) == (self.answer.text, self.answer.ids)


def some_request(source: random.Random, models: dict[str, str], family: str) -> pb.GenerateRequest:
    """Return a request whose prompt begins like that of others and ends in its own way."""
    beginning = [5 + (i * i + 3 * i) % 700 for i in range(source.choice([0, 16, 40, 64]))]
    prompt = beginning + [source.randrange(5, 700) for _ in range(source.randint(1, 30))]
    guessing = source.random() < 0.4
    return pb.GenerateRequest(
        model=models[family],
        tokens=pb.TokenIds(ids=prompt + [11, 12] * (2 * guessing)),
        max_tokens=source.randint(1, 16 if guessing else 6),
        sampling=REPEATS if guessing else source.choice(SAMPLINGS),
        speculation=pb.SPECULATION_NGRAM if guessing else source.choice([pb.SPECULATION_AUTO, pb.SPECULATION_OFF]),
        stop=pb.Stop(ignore_eos=source.random() < 0.8),
        top_logprobs=source.choice([0, 2]),
        priority=source.choice([-1, 0, 0, 2]),
        cache=pb.CacheOptions(mode=source.choice(MODES), salt=source.choice(["", "", "s"])),
    )


@pytest.fixture(name="kinds", scope="module")
def _kinds(tmp_path_factory: pytest.TempPathFactory) -> list[Alone]:
    """Return requests of all kinds, each with what it gets alone."""
    source, folder = random.Random(1), tmp_path_factory.mktemp("models")
    models = {family: str(random_model(folder, family)) for family in FAMILIES[1:]} | {"embedded": "embedded"}
    solo = Harness(state_dir=folder / "state", max_models=len(FAMILIES))
    kinds = []
    for number in range(KINDS):
        family = FAMILIES[number % len(FAMILIES)]
        request = some_request(source, models, family)
        cold = pb.GenerateRequest()
        cold.CopyFrom(request)
        cold.cache.mode = pb.CACHE_MODE_BYPASS
        cold.speculation = pb.SPECULATION_OFF
        kinds.append(Alone(request, solo.run(cold), family in EXACT))
    solo.close()
    return kinds


@pytest.fixture(name="shared_guesses")
def _shared_guesses(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return what passes found out that several rows share: guesses that were right and wrong, and tokens fed again."""
    return counting(monkeypatch)


def run_schedule(harness: Harness, kinds: list[Alone], seed: int) -> None:
    """
    Run some requests in a random order of arrival; some are cancelled, and now and then prefixes are dropped.

    Half of the time they are of one model, so that they share passes.
    """
    source = random.Random(seed)
    if source.random() < 0.5:
        model = source.choice(kinds).request.model
        kinds = [one for one in kinds if one.request.model == model]
    running: list[tuple[int, Alone]] = []
    cancelled: list[int] = []
    for one in source.choices(kinds, k=source.randint(2, MOST_AT_ONCE)):
        running.append((harness.begin(one.request), one))
        for _ in range(source.randint(0, 3)):
            harness.step()
        if source.random() < 0.15:
            call, _ = running.pop(source.randrange(len(running)))
            harness.cancel(call)
            cancelled.append(call)
    if source.random() < 0.02:
        harness.begin(pb.InvalidateRequest(all=pb.AllTarget(prefixes=True)))
    for call, one in running:
        answer = Answer(harness.finish(call))
        assert not answer.failure.reason, answer.failure
        assert one.equals(answer), f"seed {seed}: {one.request}\nalone {one.answer.ids}, beside others {answer.ids}"
    harness.events.clear()


@pytest.mark.parametrize("schedules", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_answer_beside_others_equals_the_answer_alone(
    engine: Callable[..., Harness], kinds: list[Alone], shared_guesses: Counter[str], schedules: int
) -> None:
    """Models, seeds, penalties, guesses, prefix hits, priorities, cancels and orders of arrival mixed at random."""
    first = random.randrange(2**32)
    harness = engine(max_batch=4, max_models=len(FAMILIES), guesses=True)
    for number in range(schedules):
        run_schedule(harness, kinds, first + number)
    harness.settle()
    assert harness.figures.prefix_cache.tokens_reused > 100 * schedules / 10
    assert sum(one.accepted for one in harness.figures.engine.guesses) > schedules / 10
    assert shared_guesses["right"]
    assert shared_guesses["wrong"]


@pytest.mark.parametrize("schedules", [100, pytest.param(3000, marks=pytest.mark.slow)])
def test_answer_of_a_reader_equals_the_answer_alone(
    engine: Callable[..., Harness],
    kinds: list[Alone],
    shared_guesses: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
    schedules: int,
) -> None:
    """The same, with shared prefixes from one block on: they are made, cut and left all the time."""
    monkeypatch.setattr(sharing, "LEAST_SHARED", 16)
    first = random.randrange(2**32)
    harness = engine(max_batch=4, max_models=len(FAMILIES), guesses=True)
    for number in range(schedules):
        run_schedule(harness, kinds, first + number)
    harness.settle()
    assert harness.figures.prefix_cache.tokens_shared
    assert not harness.engine._runner.readers.prefixes()
    assert shared_guesses["right"]
