"""Guesses of requests that share passes: each answer is the one that it is alone and without guesses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import gpt2

from daemon.engine.execution.runner import Runner
from daemon.engine.execution.sequence import Sequence as Running
from daemon.engine.execution.speculation import MOST_FED
from daemon.engine.scheduling.governor import Governor, Source
from daemon.kv.mlx import sharing
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import marked_model, write_random
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
    counting,
    guesses,
    more_than,
)

EXACT = ["llama", "qwen3/bfloat16", "qwen3_moe", "qwen3_next", "qwen3_next/bfloat16"]
ROUNDED = ["deepseek_v3", "mamba2", "falcon_h1"]
WINDOWS = ["gemma3_text", "gpt_oss", "recurrent_gemma", "baichuan_m1"]
"""Exact until they are full, which they soon are."""
STATES = ("qwen3_next", "mamba2", "falcon_h1", "recurrent_gemma", "baichuan_m1")
PROMPTS = [range(20, 30), range(40, 47), [*range(60, 75), 11, 12, 11]]


@pytest.fixture(name="counts")
def _counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    return counting(monkeypatch)


def together(harness: Harness, requests: list[pb.GenerateRequest]) -> list[Answer]:
    """Run requests at once, and return their answers."""
    calls = [harness.begin(request) for request in requests]
    return [Answer(harness.finish(call)) for call in calls]


def plain_and_guessed(
    harness: Harness, guessing: pb.Speculation = NGRAM, **fields: Any
) -> tuple[list[Answer], list[Answer]]:
    """Return the answers to requests alone and without guesses, and together with guesses, each after other tokens."""
    requests = {
        speculation: [
            asked(speculation=speculation, tokens=pb.TokenIds(ids=prompt), **{"sampling": SAMPLINGS[name], **fields})
            for prompt, name in zip(PROMPTS, ["seeded", "penalised", "seeded"], strict=True)
        ]
        for speculation in (OFF, guessing)
    }
    return [harness.run(request) for request in requests[OFF]], together(harness, requests[guessing])


@pytest.mark.parametrize("family", [*EXACT, *ROUNDED, *WINDOWS])
def test_rows_that_guess_answer_as_alone(harness: Harness, counts: Counter[str], tmp_path: Path, family: str) -> None:
    """Bit for bit where passes over several tokens are."""
    plain, guessed = plain_and_guessed(harness, model=str(write(tmp_path, Family(family))))
    for one, other in zip(plain, guessed, strict=True):
        assert one.ids == other.ids
        difference = [abs(a.logprob - b.logprob) for a, b in zip(one.logprobs, other.logprobs, strict=True)]
        assert max(difference) < CLOSE
    if family in EXACT:
        assert [answer.content for answer in guessed] == [answer.content for answer in plain]
    assert min(counts["right"], counts["wrong"]) > 10
    assert bool(counts["fed again"]) == (family.partition("/")[0] in STATES)
    harness.settle()


class Willing(Governor):
    """Lets all sources guess at once: measured times would decide otherwise, and differ."""

    def count(self, source: Source, most: int) -> int:
        """Return up to three."""
        return min(most, 3)

    def width(self, guesses: Sequence[tuple[Source, int]], *, waits: bool = False) -> int:
        """Return two: those of three are cut."""
        return 2


class Regretting(Willing):
    """Lets all sources guess until their guesses are known."""

    def width(self, guesses: Sequence[tuple[Source, int]], *, waits: bool = False) -> int:
        """Return none for what was found."""
        return int(waits)


@pytest.mark.parametrize("family", ["llama", "qwen3_next", *ROUNDED])
def test_automatic_guesses_are_made_where_rows_are_exact(
    harness: Harness, counts: Counter[str], tmp_path: Path, family: str
) -> None:
    """Those that the governor cuts are neither checked nor counted."""
    harness.engine._runner.governors.of = lambda model: Willing()  # type: ignore[method-assign]
    path = str(write(tmp_path, Family(family)))
    plain, guessed = plain_and_guessed(harness, model=path, guessing=AUTO)
    assert [answer.ids for answer in guessed] == [answer.ids for answer in plain]
    if family in EXACT:
        assert [answer.content for answer in guessed] == [answer.content for answer in plain]
        assert min(counts["right"], counts["wrong"]) > 10
        assert counts["rows"] < counts["guessed"] <= 2 * counts["rows"]
    else:
        assert not counts
    harness.settle()


def test_width_of_none_leaves_rows_plain(harness: Harness, counts: Counter[str], tmp_path: Path) -> None:
    """A source that has guessed then learns that nothing was checked."""
    governor = Regretting()
    harness.engine._runner.governors.of = lambda model: governor  # type: ignore[method-assign]
    plain, answers = plain_and_guessed(harness, model=str(write(tmp_path, Family("llama"))), guessing=AUTO)
    assert [answer.content for answer in answers] == [answer.content for answer in plain]
    assert not counts
    assert not governor.kinds()


def test_rows_that_know_no_padding_are_plain(harness: Harness, counts: Counter[str], tmp_path: Path) -> None:
    """Such a model guesses for a request alone."""
    plain, guessed = plain_and_guessed(harness, model=str(write(tmp_path, Family("mamba"))), max_tokens=30)
    assert [answer.ids for answer in guessed] == [answer.ids for answer in plain]
    assert not counts
    harness.settle()


@pytest.mark.parametrize("family", ["llama", "qwen3_next"])
def test_rows_with_and_without_guesses_share_passes(
    harness: Harness, counts: Counter[str], tmp_path: Path, family: str
) -> None:
    """Those that ask for none are padded; rows come, are held, cancelled and end while others guess."""
    path = str(write(tmp_path, Family(family)))
    requests = [
        asked(path, speculation, tokens=pb.TokenIds(ids=prompt), sampling=SAMPLINGS["seeded"], max_tokens=count)
        for prompt, speculation, count in zip(PROMPTS, (NGRAM, OFF, NGRAM), (70, 60, 50), strict=True)
    ]
    plain = [harness.run(request) for request in requests]
    counts.clear()
    calls = [harness.begin(request) for request in requests[:2]]
    for call in calls:
        harness.until(partial(more_than, harness, call, 12))
    gone = harness.begin(requests[2])
    harness.until(partial(more_than, harness, gone, 8))
    harness.cancel(gone)
    harness.engine._runner.hold(calls[0], held=True)
    calls.append(harness.begin(requests[2]))
    harness.until(partial(more_than, harness, calls[2], 8))
    harness.engine._runner.hold(calls[0], held=False)
    answers = [Answer(harness.finish(call)) for call in calls]
    assert [answer.content for answer in answers] == [answer.content for answer in plain]
    assert guesses(answers[1]) == (0, 0)
    assert min(counts["right"], counts["wrong"], counts["none"]) > 3
    harness.settle()


def test_tokens_fed_again_leave_a_pass_narrow(harness: Harness, counts: Counter[str], tmp_path: Path) -> None:
    """Beyond that width a pass is no longer bound by reading weights, and takes more than it is billed."""
    path = str(write(tmp_path, Family("qwen3_next")))
    requests = [
        asked(path, NGRAM, tokens=pb.TokenIds(ids=range(20 + row, 30 + row)), sampling=SAMPLINGS["seeded"])
        for row in range(8)
    ]
    together(harness, requests)
    assert min(counts["right"], counts["fed again"]) > 10
    assert counts["largest"] <= MOST_FED
    harness.settle()


@pytest.mark.parametrize("family", ["llama", "qwen3_next", "gemma3_text"])
def test_next_turn_reuses_answers_that_were_guessed_together(
    harness: Harness, counts: Counter[str], tmp_path: Path, family: str
) -> None:
    path = str(write(tmp_path, Family(family)))
    _, answers = plain_and_guessed(harness, model=path, cache=pb.CacheOptions())
    assert counts["right"] > 10
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        turn = pb.TokenIds(ids=[*prompt, *answer.ids, 50, 51])
        warm = harness.run(asked(path, OFF, tokens=turn, cache=pb.CacheOptions(), max_tokens=8))
        cold = harness.run(asked(path, OFF, tokens=turn, max_tokens=8))
        assert warm.cached >= 48
        assert warm.ids == cold.ids
        assert warm.content == cold.content or family not in EXACT
    harness.settle()


def test_forms_and_stop_strings_hold_for_rows_that_guess(harness: Harness, counts: Counter[str]) -> None:
    """Each row has its own mask, which follows its own tokens."""
    text = "Once again and again in the end, and again in the end, once"
    fields: list[tuple[str, dict[str, Any]]] = [
        ("A list:", {"response_format": FORM, "max_tokens": 150, "top_logprobs": 1}),
        ("A list:", {"response_format": FORM, "max_tokens": 150, "sampling": pb.Sampling(temperature=1.0, seed=3)}),
        (text, {"max_tokens": 60, "sampling": pb.Sampling(repetition_penalty=0.8), "stop": pb.Stop(strings=["gain"])}),
    ]
    plain = [harness.run(generate(prompt, speculation=OFF, **more)) for prompt, more in fields]
    guessed = together(harness, [generate(prompt, speculation=NGRAM, **more) for prompt, more in fields])
    assert [answer.content for answer in guessed] == [answer.content for answer in plain]
    for one, other in zip(guessed, plain, strict=True):
        assert (one.finished.reason, one.finished.stop_match) == (other.finished.reason, other.finished.stop_match)
    assert counts["right"] > 20
    harness.settle()


def test_calls_of_rows_that_guess_keep_to_their_grammar(harness: Harness, counts: Counter[str], tmp_path: Path) -> None:
    """A call begins within guesses of one row, while others guess as well."""
    marks, known_by = marked_calls.MARKS["Hermes"]
    path = str(marked_model(tmp_path, dict.fromkeys(marks, True), f"{{# {known_by} #}}{marked_calls.SWITCH}"))
    wanted = [
        {"logit_bias": {marked_calls.FIRST: 80.0}, "repetition_penalty": penalty, "frequency_penalty": 0.1}
        for penalty in (1.2, 1.3, 1.0)
    ]
    plain = [harness.run(marked_calls.request(path, sampling=one, speculation=OFF)) for one in wanted]
    counts.clear()
    guessed = together(harness, [marked_calls.request(path, sampling=one, speculation=NGRAM) for one in wanted])
    assert [answer.ids for answer in guessed] == [answer.ids for answer in plain]
    assert [marked_calls.calls_of(answer) for answer in guessed] == [marked_calls.calls_of(answer) for answer in plain]
    assert counts["right"] > 3
    harness.settle()


@pytest.mark.parametrize("family", ["llama", "qwen3_next", "deepseek_v3"])
def test_readers_of_a_shared_prefix_guess(
    harness: Harness, counts: Counter[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, family: str
) -> None:
    """Together, and the last one alone: a pass that attends in parts has few tokens."""
    monkeypatch.setattr(sharing, "LEAST_SHARED", 16)
    path, beginning = str(write(tmp_path, Family(family))), [5 + i * i % 600 for i in range(64)]
    requests = {
        speculation: [
            asked(
                path,
                speculation,
                tokens=pb.TokenIds(ids=[*beginning, 20 + row, 21]),
                sampling=SAMPLINGS["seeded"],
                max_tokens=count,
                cache=pb.CacheOptions(mode=mode),
            )
            for row, count in enumerate((90, 40))
        ]
        for speculation, mode in ((OFF, pb.CACHE_MODE_BYPASS), (NGRAM, pb.CACHE_MODE_READ_WRITE))
    }
    plain = [harness.run(request) for request in requests[OFF]]
    counts.clear()
    first = harness.begin(requests[NGRAM][0])
    harness.until(partial(harness.decoding, first))
    second = harness.begin(requests[NGRAM][1])
    short = Answer(harness.finish(second))
    shared, readers = counts["right"], len(harness.engine._runner.readers.prefixes())
    accepted = sum(sequence.guesses[NGRAM][1] for sequence in harness.engine._runner.sequences())
    long = Answer(harness.finish(first))
    assert readers
    assert shared > 3
    assert guesses(long)[1] > accepted
    assert [long.ids, short.ids] == [answer.ids for answer in plain]
    assert family not in EXACT or [long.content, short.content] == [answer.content for answer in plain]
    harness.settle()


@pytest.mark.parametrize("family", ["recurrent_gemma", "baichuan_m1"])
def test_row_that_ends_with_wrong_guesses_is_resumed(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Its last pass was taken back. What it held before that is found by the next turn, which answers as a cold one."""
    path, ends, end = str(write(tmp_path, Family(family))), dict[int, tuple[int, int]](), Runner._end

    def noted(runner: Runner, sequence: Running) -> None:
        ends[sequence.call_id] = (sequence.kv.held, len(sequence.prompt) + len(sequence.generated))
        end(runner, sequence)

    monkeypatch.setattr(Runner, "_end", noted)
    sampling: dict[str, Any] = {"temperature": 1.5, "logit_bias": {11: 100.0, 12: 100.0, 13: 97.0}}
    taken_back = 0
    for seed in range(60):
        stored: dict[str, Any] = {"model": path, "stop": pb.Stop(token_ids=[13]), "cache": pb.CacheOptions()}
        prompts = [[20 + (seed * 7 + row * 13 + i * i) % 500 for i in range(33)] for row in range(2)]
        calls = [
            harness.begin(
                asked(
                    speculation=NGRAM,
                    tokens=pb.TokenIds(ids=prompt),
                    sampling=pb.Sampling(seed=seed, **sampling),
                    **stored,
                )
            )
            for prompt in prompts
        ]
        for prompt, call in zip(prompts, calls, strict=True):
            ids = Answer(harness.finish(call)).ids
            held, total = ends[call]
            if held < total - 1:
                taken_back += 1
                again: dict[str, Any] = {
                    "model": path,
                    "tokens": pb.TokenIds(ids=[*prompt, *ids, 600, 601]),
                    "max_tokens": 4,
                }
                warm = harness.run(asked(speculation=OFF, **again, cache=pb.CacheOptions(mode=pb.CACHE_MODE_READ_ONLY)))
                cold = harness.run(asked(speculation=OFF, **again))
                assert warm.cached == held
                assert warm.ids == cold.ids
                assert (
                    max(abs(a.logprob - b.logprob) for a, b in zip(warm.logprobs, cold.logprobs, strict=True)) < CLOSE
                )
        if taken_back >= 3:
            break
    assert taken_back >= 3
    harness.settle()


def test_padded_rows_end_within_learned_positions(
    harness: Harness, counts: Counter[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A row near the end of its context is padded to the guesses of another: MLX would read beyond the table."""
    sizes = {"n_ctx": 64, "n_positions": 64, "n_embd": 32, "n_head": 2, "n_layer": 1, "layer_norm_epsilon": 1e-5}
    path = str(write_random(tmp_path / "gpt2", {"model_type": "gpt2", "vocab_size": 737, **sizes}, 7))
    forward, ends = gpt2.GPT2Model.__call__, list[int]()

    def noted(model: Any, tokens: mx.array, cache: Any) -> Any:
        ends.append(int(mx.max(mx.array(cache[0].offset)).item()) + tokens.shape[1])  # type: ignore[arg-type]
        return forward(model, tokens, cache=cache)

    requests = [
        asked(path, OFF, tokens=pb.TokenIds(ids=range(20, 60)), max_tokens=24),
        asked(path, NGRAM, tokens=pb.TokenIds(ids=PROMPTS[2]), sampling=SAMPLINGS["seeded"], max_tokens=46),
    ]
    plain = [harness.run(request) for request in requests[:1]]
    counts.clear()
    monkeypatch.setattr(gpt2.GPT2Model, "__call__", noted)
    answers = together(harness, requests)
    assert answers[0].ids == plain[0].ids
    assert counts["right"] > 3
    assert max(ends) <= 64
    harness.settle()
