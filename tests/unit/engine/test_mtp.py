"""An MTP head's guesses change when tokens come and nothing else, and what it knows of a sequence is right."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from daemon.cache.mlx.module_size import arrays, nbytes
from daemon.cache.mlx.mtp import MtpHead
from daemon.engine.execution import head_kv
from daemon.engine.execution.head_kv import HeadKV
from daemon.kv.mlx.guess_passes import Undo
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.heads import CONFIGS, add_head, model_with_head
from tests.support.models import marked_model, random_model
from tests.unit.engine import marked_calls, shared_guesses
from tests.unit.engine.harness import Answer, Harness

MTP, OFF, AUTO, NGRAM = pb.SPECULATION_MTP, pb.SPECULATION_OFF, pb.SPECULATION_AUTO, pb.SPECULATION_NGRAM
SEEDED = pb.Sampling(temperature=1.0, seed=11)
"""So warm that a third of the guesses of a head that knows the likeliest token are wrong."""
CLOSE = 1e-3
"""Passes of other widths have other last bits: of two guesses that are as likely, either may come."""
PENALISED = pb.Sampling(temperature=1.0, seed=4, presence_penalty=0.1, repetition_penalty=1.1)
LATENT = ("deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa")
"""Latent attention over several tokens has other last bits than over one."""
asked = partial(shared_guesses.asked, max_tokens=40)


def guesses(answer: Answer, source: pb.Speculation = MTP) -> tuple[int, int]:
    """Return how many tokens were guessed for an answer by a source, and how many of them were right."""
    counts = {one.source: (one.guessed, one.accepted) for one in answer.finished.usage.guesses}
    return counts.get(source, (0, 0))


def loaded(harness: Harness, path: str) -> Any:
    """Return a model in memory."""
    return next(entry for entry in harness.engine._models.entries() if path in entry.names).model


@pytest.mark.parametrize("family", CONFIGS)
def test_answer_with_a_head_equals_the_plain_answer(harness: Harness, tmp_path: Path, family: str) -> None:
    """With a head that knows the likeliest token, of which some are drawn."""
    path = str(model_with_head(tmp_path, family, right=True))
    for sampling in (SEEDED, PENALISED):
        plain = harness.run(asked(path, OFF, sampling=sampling))
        answer = harness.run(asked(path, MTP, sampling=sampling))
        guessed, accepted = guesses(answer)
        assert answer.content == plain.content if family not in LATENT else answer.ids == plain.ids
        assert guesses(plain) == (0, 0)
        assert 5 < accepted < guessed
    harness.settle()


@pytest.mark.parametrize("family", ["qwen3_5_moe"])
def test_wrong_guesses_of_a_head_change_nothing(harness: Harness, tmp_path: Path, family: str) -> None:
    """Tokens fed again leave room for fewer guesses: 4, 3, 2, 1, 0, 4. Measured times may leave only one."""
    path = str(model_with_head(tmp_path, family))
    answer = harness.run(asked(path, MTP))
    assert answer.content == harness.run(asked(path, OFF)).content
    guessed, accepted = guesses(answer)
    assert guessed - accepted >= 20
    harness.settle()


@pytest.mark.parametrize("family", ["mimo", "qwen3_next"])
def test_right_guesses_give_several_tokens_a_pass(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    path = str(model_with_head(tmp_path, family, right=True))
    harness.run(asked(path, OFF, max_tokens=1))
    trunk, passes = type(loaded(harness, path).mtp.trunk), list[int]()
    whole = trunk.__call__

    def counted(self: Any, tokens: mx.array, *given: Any, **named: Any) -> Any:
        passes.append(tokens.shape[1])
        return whole(self, tokens, *given, **named)

    monkeypatch.setattr(trunk, "__call__", counted)
    answer = harness.run(asked(path, MTP))
    assert answer.ids == list(range(30, 70))
    assert guesses(answer)[0] == guesses(answer)[1] >= 28
    assert len(passes) <= 13


def test_first_guess_is_made_without_being_asked_for(engine: Callable[..., Harness], tmp_path: Path) -> None:
    """AUTO lets the head guess where passes are exact, and Stats count its guesses apart."""
    harness = engine(guesses=True)
    for family, automatic in (("mimo", True), ("deepseek_v3", False)):
        path = str(model_with_head(tmp_path, family))
        plain = harness.run(asked(path, OFF))
        answers = [harness.run(asked(path, AUTO)) for _ in range(2)]
        assert all(answer.content == plain.content for answer in answers)
        assert any(guesses(answer)[0] for answer in answers) == automatic
    harness.settle()
    assert {one.source for one in harness.figures.engine.guesses} >= {MTP}


@pytest.mark.parametrize("family", ["glm4_moe", "qwen3_5"])
def test_next_turn_reuses_an_answer_of_a_head(harness: Harness, tmp_path: Path, family: str) -> None:
    """What is stored of it is what was accepted; the head begins behind what was reused."""
    path = str(model_with_head(tmp_path, family, right=True))
    first = harness.run(asked(path, MTP, sampling=SEEDED, cache=pb.CacheOptions()))
    turn = pb.TokenIds(ids=[*range(20, 30), *first.ids, 50, 51])
    warm = harness.run(asked(path, MTP, tokens=turn, sampling=SEEDED, cache=pb.CacheOptions()))
    cold = harness.run(asked(path, OFF, tokens=turn, sampling=SEEDED))
    assert warm.cached >= 32
    assert warm.content == cold.content
    assert guesses(warm)[1] > 0
    harness.settle()


def test_form_holds_for_tokens_that_a_head_guesses(harness: Harness, tmp_path: Path) -> None:
    path = str(model_with_head(tmp_path, "qwen3_next", right=True))
    form = pb.ResponseFormat(regex=r'(\{"name": "(a|b)", "size": [0-9]\},\n){3}')
    fields = {"response_format": form, "max_tokens": 60, "sampling": SEEDED, "stop": pb.Stop()}
    plain = harness.run(asked(path, OFF, **fields))
    answer = harness.run(asked(path, MTP, **fields))
    assert answer.content == plain.content
    assert answer.finished.reason == plain.finished.reason
    assert guesses(answer)[0] > 25


def test_calls_keep_to_their_grammar_when_a_head_guesses(harness: Harness, tmp_path: Path) -> None:
    marks, known_by = marked_calls.MARKS["Hermes"]
    template = f"{{# {known_by} #}}{marked_calls.SWITCH}"
    path = marked_model(tmp_path, dict.fromkeys(marks, True), template, CONFIGS["qwen3_next"])
    add_head(path, "qwen3_next", right=True)
    wanted = {"logit_bias": {marked_calls.FIRST: 80.0}, "temperature": 0.5, "seed": 2}
    plain = harness.run(marked_calls.request(str(path), sampling=wanted, speculation=OFF))
    answer = harness.run(marked_calls.request(str(path), sampling=wanted, speculation=MTP))
    assert answer.ids == plain.ids
    assert marked_calls.calls_of(answer) == marked_calls.calls_of(plain) != []
    assert guesses(answer)[0] > 10


@pytest.mark.parametrize("family", ["mimo", "qwen3_next"])
def test_head_goes_on_after_neighbours_and_holds(harness: Harness, tmp_path: Path, family: str) -> None:
    """It gets the states of the passes that it shares as well."""
    path = str(model_with_head(tmp_path, family, right=True))
    plain = harness.run(asked(path, OFF, sampling=SEEDED, max_tokens=90))
    fields: dict[str, Any] = {"sampling": SEEDED, "max_tokens": 9, "tokens": pb.TokenIds(ids=range(60, 75))}
    other = harness.run(asked(path, OFF, **fields))
    call = harness.begin(asked(path, MTP, sampling=SEEDED, max_tokens=90))
    for events in (8, 24):
        harness.until(lambda: len(harness.of(call)) > events)  # noqa: B023
        assert Answer(harness.finish(harness.begin(asked(path, MTP, **fields)))).ids == other.ids
        harness.engine._runner.hold(call, held=True)
        harness.step()
        harness.engine._runner.hold(call, held=False)
    answer = Answer(harness.finish(call))
    assert answer.content == plain.content
    assert guesses(answer)[1] > 10
    harness.settle()


def go_on_together(harness: Harness, calls: list[int]) -> None:
    """Hold each call at its first tokens until all have come so far, and let all go on with the same step."""
    held = set[int]()

    def all_held() -> bool:
        for call in calls:
            if call not in held and harness.decoding(call):
                harness.engine._runner.hold(call, held=True)
                held.add(call)
        return len(held) == len(calls)

    harness.until(all_held)
    for call in calls:
        harness.engine._runner.hold(call, held=False)


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("family", ["mimo", "mimo_v2_flash", "nemotron_h", "qwen3_next"])
def test_heads_guess_for_rows_that_share_passes(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, right: bool
) -> None:
    """Each guesses what it guesses after a single pass over its row, and no answer is another one."""
    path = str(model_with_head(tmp_path, family, right=right))
    requests: list[dict[str, Any]] = [
        {
            "tokens": pb.TokenIds(ids=range(20 + 90 * row, 30 + 91 * row)),
            "sampling": pb.Sampling(temperature=1.0, seed=row),
        }
        for row in range(3)
    ]
    plain = [harness.run(asked(path, OFF, **one)) for one in requests]
    model, guessing, shared = loaded(harness, path), HeadKV.guess, list[int]()

    def checked(self: HeadKV, pending: int, count: int, vocab: int) -> list[int]:
        known = [*self.prompt, *self.generated][: self.end]
        found = guessing(self, pending, count, vocab)
        shared.append(harness.engine._runner._active)
        assert short_of_best(model, [], [*known, pending], found[0]) < CLOSE
        return found

    monkeypatch.setattr(HeadKV, "guess", checked)
    calls = [harness.begin(asked(path, MTP, **one)) for one in requests]
    go_on_together(harness, calls)
    answers = [Answer(harness.finish(call)) for call in calls]
    assert [answer.ids for answer in answers] == [answer.ids for answer in plain]
    assert shared.count(3) >= 6
    if right:
        assert all(guesses(answer)[1] > 10 for answer in answers)
    harness.settle()


@pytest.mark.parametrize("gains", [False, True])
def test_head_reads_a_prompt_only_where_it_gains(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gains: bool
) -> None:
    """A parked head costs nothing, and begins anew with the last states when it is tried again."""
    governor = harness.engine._runner.governors.of(None)
    monkeypatch.setattr(governor, "gains", lambda source: gains)
    path = str(model_with_head(tmp_path, "mimo", right=True))
    harness.run(asked(path, OFF, max_tokens=1))
    read, whole = list[int](), MtpHead.__call__

    def counted(self: MtpHead, states: mx.array, *given: Any) -> mx.array:
        read.append(states.shape[1])
        return whole(self, states, *given)

    monkeypatch.setattr(MtpHead, "__call__", counted)
    prompt = pb.TokenIds(ids=[place % 600 + 20 for place in range(300)])
    plain = harness.run(asked(path, OFF, tokens=prompt))
    assert harness.run(asked(path, AUTO, tokens=prompt)).content == plain.content
    assert (sum(read) >= 300 - head_kv._MOST_UNREAD) == gains
    assert bool(read) == gains
    read.clear()
    monkeypatch.setattr(governor, "count", lambda source, most: min(most, 1) if source.kind == MTP else 0)
    monkeypatch.setattr(governor, "width", lambda guesses, *, waits=False: 1)
    answer = harness.run(asked(path, AUTO, tokens=prompt))
    assert answer.content == plain.content
    assert guesses(answer)[0] > 5
    assert (max(read) > head_kv._MOST_UNREAD) == gains


def test_states_of_a_parked_head_are_forgotten_without_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take the device's time again and again. Those of a prompt are copied, so that the rest becomes free."""
    copies, contiguous = list[int](), mx.contiguous

    def copied(states: mx.array) -> mx.array:
        copies.append(states.shape[1])
        return contiguous(states)

    monkeypatch.setattr(mx, "contiguous", copied)
    fake: Any = SimpleNamespace(new_cache=list)
    head = HeadKV(fake, [1] * 500, [], lambda: False)
    head.note(0, mx.zeros((1, 500, 2)))
    assert copies == [head_kv._KEPT]
    for place in range(500, 800):
        head.note(place, mx.full((1, 1, 2), place))
        assert head_kv._KEPT <= sum(states.shape[1] for states in head._unread) <= head_kv._MOST_UNREAD
    assert head.ready(800)
    assert head._unread[-1][0, 0, 0].item() == 799
    assert len(copies) == 1


def test_request_is_refused_where_there_is_no_head(harness: Harness, tmp_path: Path) -> None:
    """The reason is named."""
    failure = harness.run(asked(str(random_model(tmp_path, "llama")), MTP)).failure
    assert failure.field == "speculation"
    assert "its checkpoint has no MTP head" in failure.message


def test_weights_and_kv_of_a_head_are_counted_and_freed(harness: Harness, tmp_path: Path) -> None:
    path = str(model_with_head(tmp_path, "mimo"))
    harness.run(asked(path, OFF, max_tokens=1))
    model = loaded(harness, path)
    head = model.mtp.head
    assert model.nbytes == nbytes(arrays(model.model)) + nbytes(arrays(head))
    billed = {}
    for speculation in (OFF, MTP):
        call = harness.begin(asked(path, speculation))
        harness.until(lambda: harness.decoding(call))  # noqa: B023
        billed[speculation] = harness.engine._runner._bill().kv
        harness.finish(call)
    assert billed[MTP] - billed[OFF] == model.mtp.kv_bytes(10 + 40) > 0
    harness.settle()
    gone = weakref.ref(head)
    del model, head
    harness.engine._models.clear()
    harness.step()
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("family", ["mimo", "deepseek_v3", "mimo_v2_flash", "nemotron_h", "qwen3_next"])
def test_guesses_do_not_depend_on_what_was_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """
    The head guesses after any passes what it guesses after a single one over the same tokens.

    Passes are of random widths, with guesses that are right in part; some were fed before; reads are early or late.
    """
    monkeypatch.setattr(head_kv, "_MOST_UNREAD", 3)
    seed = random.randrange(2**32)
    source = random.Random(seed)
    path = model_with_head(tmp_path, family)
    harness = Harness()
    harness.run(asked(str(path), OFF, max_tokens=1))
    model = loaded(harness, str(path))
    prompt, generated = [source.randrange(700) for _ in range(12)], [source.randrange(700)]
    caches = make_prompt_cache(model.model)
    head = HeadKV(model.mtp, prompt, generated)
    head.compute(0, mx.array([prompt[:7]]), caches)
    head.compute(7, mx.array([prompt[7:]]), caches)
    held, unfed = 12, list[int]()
    for _ in range(12):
        asks = source.random() < 0.6 and head.ready(len(prompt) + len(generated) - 1)
        found = head.guess(generated[-1], source.randint(1, 4), 737) if asks else None
        if found is not None:
            assert short_of_best(model, prompt, generated, found[0]) < CLOSE, f"seed {seed}"
        wrong = [source.randrange(700) for _ in range(source.randint(0, 3))]
        fed = [*unfed, generated[-1], *wrong]
        undo = Undo(caches)
        head.compute(held, mx.array([fed]), caches)
        right = source.randint(0, len(wrong))
        known = len(unfed) + 1 + right
        head.keep(held + known)
        kept = undo.keep(len(fed), known)
        held, unfed = held + kept, fed[kept:known]
        generated += [*wrong[:right], source.randrange(700)]
    assert head.ready(len(prompt) + len(generated) - 1)
    last = head.guess(generated[-1], 2, 737)[0]
    assert short_of_best(model, prompt, generated, last) < CLOSE, f"seed {seed}"
    harness.close()


def short_of_best(model: Any, prompt: list[int], generated: list[int], guess: int) -> float:
    """Return how far the logit of a guess is below the largest, after one pass over all tokens."""
    tokens = [*prompt, *generated]
    states = model.mtp.trunk(mx.array([tokens[:-1]]), make_prompt_cache(model.model))
    after = model.mtp(states, mx.array([tokens[1:]]), model.mtp.new_cache())
    logits = model.mtp.output(after)[0, -1]
    return float((logits.max() - logits[guess]).item())
