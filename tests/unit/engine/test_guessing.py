"""Guesses from n-grams change when tokens come and nothing else, in every class of cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from daemon.kv.mlx.guess_passes import Exactness
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import marked_model
from tests.unit.engine import marked_calls
from tests.unit.engine.families import Family, write
from tests.unit.engine.harness import Answer, Harness, generate
from tests.unit.engine.shared_guesses import (
    AUTO,
    CLOSE,
    FORM,
    NGRAM,
    OFF,
    SAMPLINGS,
    asked,
    guesses,
    harness_ids,
    more_than,
)

EXACT = ["llama", "qwen3/bfloat16", "qwen3_moe", "gemma3_text", "qwen3_next", "mamba", "baichuan_m1"]
ROUNDED = ["deepseek_v3", "gpt_oss", "mamba2", "falcon_h1", "recurrent_gemma"]
"""Those whose passes over several tokens have other last bits, and windows that are soon full."""


@pytest.mark.parametrize(
    ("family", "named"),
    [*((family, "seeded") for family in [*EXACT, *ROUNDED]), ("llama", "penalised"), ("qwen3_next", "penalised")],
)
def test_guessed_answer_equals_the_plain_answer(harness: Harness, tmp_path: Path, family: str, named: str) -> None:
    """Bit for bit where a pass over several tokens is: windows of 32 tokens are full before the answer ends."""
    path, sampling = str(write(tmp_path, Family(family))), SAMPLINGS[named]
    windowed = family == "gemma3_text"
    plain = harness.run(asked(path, OFF, sampling=sampling))
    answer = harness.run(asked(path, NGRAM, sampling=sampling))
    guessed, accepted = guesses(answer)
    assert guesses(plain) == (0, 0)
    assert 4 <= accepted <= guessed
    assert accepted < guessed or not sampling.temperature
    assert answer.ids == plain.ids
    if family in EXACT and not windowed:
        assert answer.content == plain.content
    difference = [abs(a.logprob - b.logprob) for a, b in zip(answer.logprobs, plain.logprobs, strict=True)]
    assert max(difference) < CLOSE
    harness.settle()


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_next", "deepseek_v3"])
def test_next_turn_reuses_a_guessed_answer(harness: Harness, tmp_path: Path, family: str) -> None:
    """What is stored of it is what was accepted: the next turn goes on as from nothing."""
    path = str(write(tmp_path, Family(family)))
    cache = pb.CacheOptions()
    first = harness.run(asked(path, NGRAM, sampling=SAMPLINGS["seeded"], cache=cache))
    assert guesses(first)[1] >= 4
    turn = pb.TokenIds(ids=[*range(20, 30), *first.ids, 50, 51])
    warm = harness.run(asked(path, NGRAM, tokens=turn, sampling=SAMPLINGS["seeded"], cache=cache))
    cold = harness.run(asked(path, OFF, tokens=turn, sampling=SAMPLINGS["seeded"]))
    assert warm.cached >= 48
    assert warm.ids == cold.ids
    harness.settle()


def test_automatic_guesses_are_made_where_they_are_exact(engine: Callable[..., Harness], tmp_path: Path) -> None:
    """Latent attention multiplies in another order when it has one token; its answers keep their bits."""
    harness = engine(guesses=True)
    greedy = pb.Sampling(logit_bias={11: 100.0})
    levels = {"llama": Exactness.EXACT, "deepseek_v3": Exactness.ROUNDED, "qwen3_next": Exactness.EXACT}
    for family, level in levels.items():
        path = str(write(tmp_path, Family(family)))
        plain = harness.run(asked(path, OFF, sampling=greedy, max_tokens=80))
        entry = next(entry for entry in harness.engine._models.entries() if path in entry.names)
        assert entry.model.guess_exactness is level
        answers = [harness.run(asked(path, AUTO, sampling=greedy, max_tokens=80)) for _ in range(2)]
        assert all(answer.content == plain.content for answer in answers)
        assert any(guesses(answer)[0] for answer in answers) == (level is Exactness.EXACT)


def test_window_that_is_full_gets_no_automatic_guesses(engine: Callable[..., Harness], tmp_path: Path) -> None:
    """Its tokens are then added up in another order: the answer would have other bits."""
    harness = engine(guesses=True)
    path = str(write(tmp_path, Family("gemma3_text")))
    prompt = pb.TokenIds(ids=[20 + i % 7 for i in range(40)])
    plain = harness.run(asked(path, OFF, tokens=prompt, max_tokens=120))
    answer = harness.run(asked(path, AUTO, tokens=prompt, max_tokens=120))
    assert answer.content == plain.content
    assert guesses(answer) == (0, 0)


def ended(harness: Harness, call: int) -> bool:
    """Whether a call has had its last event."""
    return bool(harness.of(call)) and harness.of(call)[-1].generate.HasField("finished")


@pytest.mark.parametrize("sampling", [pb.Sampling(), pb.Sampling(temperature=1.0, seed=3)], ids=["greedy", "seeded"])
def test_form_holds_for_guessed_tokens(harness: Harness, sampling: pb.Sampling) -> None:
    """A form repeats its keys, and the mask follows each token before the next is checked."""
    fields = {"response_format": FORM, "max_tokens": 150, "top_logprobs": 1, "sampling": sampling}
    plain = harness.run(generate("A list:", speculation=OFF, **fields))
    answer = harness.run(generate("A list:", speculation=NGRAM, **fields))
    assert guesses(answer)[1] > 20
    assert answer.content == plain.content
    assert answer.finished.reason == plain.finished.reason


@pytest.mark.parametrize("stop", ["gain", "in the"])
def test_stop_string_within_guesses_ends_the_answer(harness: Harness, stop: str) -> None:
    """What was accepted behind it is no part of the answer, and of nothing that is stored."""
    text = "Once again and again in the end, and again in the end, once"
    fields = {"max_tokens": 60, "sampling": pb.Sampling(repetition_penalty=0.8), "stop": pb.Stop(strings=[stop])}
    plain = harness.run(generate(text, speculation=OFF, **fields))
    answer = harness.run(generate(text, speculation=NGRAM, **fields))
    assert (answer.content, answer.finished.stop_match) == (plain.content, plain.finished.stop_match)
    assert answer.finished.usage.completion_tokens == plain.finished.usage.completion_tokens
    ids = [*harness_ids(harness, text), *answer.ids]
    warm = harness.run(asked("embedded", NGRAM, tokens=pb.TokenIds(ids=ids), cache=pb.CacheOptions(), max_tokens=8))
    cold = harness.run(asked("embedded", OFF, tokens=pb.TokenIds(ids=ids), max_tokens=8))
    assert warm.content == cold.content
    harness.settle()


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_next", "recurrent_gemma"])
def test_sequence_that_guessed_joins_a_batch_and_leaves_it(harness: Harness, tmp_path: Path, family: str) -> None:
    """It guesses while it is alone, shares passes with a neighbour that comes, and guesses again."""
    path = str(write(tmp_path, Family(family)))
    sampling = SAMPLINGS["seeded"]
    plain = harness.run(asked(path, OFF, sampling=sampling, max_tokens=90))
    other = harness.run(asked(path, OFF, sampling=sampling, max_tokens=9, tokens=pb.TokenIds(ids=range(60, 75))))
    call = harness.begin(asked(path, NGRAM, sampling=sampling, max_tokens=90))
    neighbours = []
    for tokens in (8, 18, 28):
        harness.until(partial(more_than, harness, call, tokens))
        neighbours.append(
            harness.begin(asked(path, NGRAM, sampling=sampling, max_tokens=9, tokens=pb.TokenIds(ids=range(60, 75))))
        )
        assert Answer(harness.finish(neighbours[-1])).ids == other.ids
    answer = Answer(harness.finish(call))
    assert answer.ids == plain.ids
    assert guesses(answer)[1] > 3
    harness.settle()


def test_sequence_is_held_between_guesses(harness: Harness, tmp_path: Path) -> None:
    path = str(write(tmp_path, Family("qwen3_next")))
    plain = harness.run(asked(path, OFF, sampling=SAMPLINGS["seeded"]))
    call = harness.begin(asked(path, NGRAM, sampling=SAMPLINGS["seeded"]))
    while not ended(harness, call):
        harness.step()
        if harness.decoding(call) and not ended(harness, call):
            harness.engine._runner.hold(call, held=True)
            harness.step()
            harness.engine._runner.hold(call, held=False)
    answer = Answer(harness.finish(call))
    assert answer.content == plain.content
    assert guesses(answer)[1] > 5
    harness.settle()


@pytest.mark.parametrize(
    ("name", "sampling"), [("Hermes", {"repetition_penalty": 1.2, "frequency_penalty": 0.1}), ("Qwen 3 Coder", {})]
)
def test_calls_keep_to_their_grammar_when_guessed(
    harness: Harness, tmp_path: Path, name: str, sampling: dict[str, float]
) -> None:
    """A call begins within guesses too: the token after its mark is then sampled again with a mask."""
    marks, known_by = marked_calls.MARKS[name]
    path = str(marked_model(tmp_path, dict.fromkeys(marks, True), f"{{# {known_by} #}}{marked_calls.SWITCH}"))
    wanted = {"logit_bias": {marked_calls.FIRST: 80.0}, **sampling}
    plain = harness.run(marked_calls.request(path, sampling=wanted, speculation=OFF))
    answer = harness.run(marked_calls.request(path, sampling=wanted, speculation=NGRAM))
    assert answer.ids == plain.ids
    assert marked_calls.calls_of(answer) == marked_calls.calls_of(plain) != []
    assert guesses(answer)[1] >= 4
