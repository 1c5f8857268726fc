"""Bills of requests against measured peaks, step by step, for the families of docs/memory-ledger.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from daemon.engine.execution.request import SamplingParams
from daemon.engine.execution.sampling import Sampler, arrays, row_vectors, sample
from daemon.kv.mlx import peak
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tools.billing_table import FAMILIES, Bench, Case, asked, measured

LEAST, MOST = 0.97, 1.4
"""Bounds of a few short cases. MLX allocates ahead of its computations, so peaks differ by a hundredth or two."""

TRIES = 3
"""Runs of which one has to reach the peak: on a busy machine MLX may allocate less far ahead than it can."""

REPEATS = pb.Sampling(temperature=1.5, seed=4, logit_bias={11: 100.0, 12: 100.0})
"""Only two tokens come, so that n-grams guess many of them."""


@pytest.fixture
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """Yield the bench of a family."""
    bench = Bench(tmp_path, request.param)
    yield bench
    bench.harness.close()


@pytest.mark.parametrize("bench", ["llama", "gpt_oss", "mamba2"], indirect=True)
def test_bill_covers_each_step_and_not_much_more(bench: Bench) -> None:
    """Prefill, joins, decode and leaves of several prompts: never below the peak."""
    case = bench.run(400, 4)
    assert set(case.phases) == {"prefill", "decode"}
    assert min(phase.least for phase in case.phases.values()) >= LEAST
    assert case.phases["decode"].ratio <= 1.25


@pytest.mark.parametrize("bench", ["llama"], indirect=True)
def test_bill_covers_rows_that_read_a_prefix_together(bench: Bench) -> None:
    """They come at once: the prefix is billed once from the beginning, and not for each until it is looked up."""
    bench.run(3000, 1)
    phases = bench.run(3000, 4).phases
    assert min(phase.least for phase in phases.values()) >= LEAST
    assert phases["prefill"].ratio <= MOST


@pytest.mark.parametrize("bench", ["cohere2", "deepseek_v3", "gpt_oss"], indirect=True)
def test_bill_covers_prompts_with_an_uncomputed_beginning(bench: Bench) -> None:
    """The first computes what all have in common; a window keeps its last chunk, and latents are expanded by row."""
    for _ in range(TRIES):
        phases = bench.run(1100, 4).phases
        assert min(phase.least for phase in phases.values()) >= LEAST
        if phases["prefill"].ratio <= MOST:
            break
        bench.harness.engine._memory._prefixes.clear()
    assert phases["prefill"].ratio <= MOST


@pytest.mark.parametrize("bench", ["cohere2", "mamba2"], indirect=True)
def test_short_prompts_are_billed_as_they_are_held(bench: Bench) -> None:
    """They fill no window, and share no pass where a layer has a window or a state."""
    phases = bench.run(100, 4).phases
    assert min(phase.least for phase in phases.values()) >= LEAST
    assert phases["prefill"].ratio <= 1.3


@pytest.mark.parametrize("bench", ["cohere2"], indirect=True)
def test_short_answer_is_billed_few_stored_tokens(bench: Bench) -> None:
    """What it stored of its windows in passing is all that its end replaces."""
    decode = bench.run(500, 1).phases["decode"]
    assert decode.least >= LEAST
    assert decode.ratio <= 1.25


@pytest.mark.parametrize("bench", ["gemma2"], indirect=True)
def test_bill_covers_answers_that_end_with_a_step_of_256(bench: Bench) -> None:
    """Rows of a batch have begun one after the other: they end with the step as well, and no room follows it."""
    phases = bench.run(480, 4).phases
    assert min(phase.least for phase in phases.values()) >= LEAST
    assert max(phase.ratio for phase in phases.values()) <= 1.25


@pytest.mark.parametrize("bench", ["cohere2, wide window"], indirect=True)
def test_bill_covers_a_window_that_grows_by_a_step(bench: Bench) -> None:
    """It grows by 256 tokens from where the prompt ended, however short the answer is."""
    decode = bench.run(250, 1, answer=4).phases["decode"]
    assert decode.least >= LEAST
    assert decode.ratio <= 1.25


@pytest.mark.parametrize("bench", ["gpt_oss", "mamba2"], indirect=True)
def test_bill_covers_an_answer_that_outgrows_its_room(bench: Bench) -> None:
    """A window that has turned is stored, and a state is kept at each end of a block: without a copy beside it."""
    assert bench.run(250, 1, answer=280).phases["decode"].least >= LEAST


@pytest.mark.parametrize("bench", ["llama", "mamba2"], indirect=True)
def test_bill_covers_passes_that_check_guesses(bench: Bench) -> None:
    """Logits of several tokens, and the states of before."""
    ask = asked([7, 8, 9, 10] * 60, 64, sampling=REPEATS, speculation=pb.SPECULATION_NGRAM)
    phases = bench.requests([ask])
    assert min(phase.least for phase in phases.values()) >= LEAST
    finished = [event for event in bench.harness.events if event.generate.HasField("finished")]
    assert sum(count.guessed for count in finished[-1].generate.finished.usage.guesses)


@pytest.mark.parametrize("bench", ["gpt_oss"], indirect=True)
def test_bill_covers_rows_that_guess_and_join(bench: Bench) -> None:
    """Rows that end at different positions are moved to one before others join: one array after the other."""
    prompts = [[5 + (7 * index + 31 * number) % 700 for index in range(300)] for number in range(8)]
    asks = [asked(prompt, 40, sampling=REPEATS, speculation=pb.SPECULATION_NGRAM) for prompt in prompts]
    phases = bench.requests(asks)
    assert min(phase.least for phase in phases.values()) >= LEAST


@pytest.mark.parametrize("bench", ["llama", pytest.param("gpt_oss", marks=pytest.mark.slow)], indirect=True)
def test_bill_covers_prompts_that_join_rows_with_more_room(bench: Bench) -> None:
    """They are billed the room of the longest before they share its batch: while they are computed."""
    prompts = [[5 + (7 * index + 31 * number) % 700 for index in range(200 + 30 * number)] for number in range(5)]
    phases = bench.requests([asked(prompt, 300 if prompt is prompts[-1] else 20) for prompt in prompts])
    assert min(phase.least for phase in phases.values()) >= LEAST
    assert phases["prefill"].ratio <= 1.25


@pytest.mark.parametrize("bench", ["llama"], indirect=True)
@pytest.mark.parametrize("samples_first", [True, False])
def test_bill_covers_samples_that_join_another_row(bench: Bench, samples_first: bool) -> None:
    """Each sample is a row of its own, with the room of the longest."""
    sampled = asked(list(range(5, 405)), 20, samples=4, sampling=pb.Sampling(temperature=1))
    asks = [sampled, asked(list(range(9, 389)), 280)]
    phases = bench.requests(asks if samples_first else asks[::-1])
    assert min(phase.least for phase in phases.values()) >= LEAST
    assert phases["prefill"].ratio <= 1.25


@pytest.mark.slow
@pytest.mark.parametrize("common", [0, 1500])
@pytest.mark.parametrize("bench", ["llama", "cohere2", "deepseek_v3"], indirect=True)
def test_bill_covers_the_last_steps_of_rows_that_outlive_others(bench: Bench, common: int) -> None:
    """Each is stored when it ends: out of the arrays of its batch, behind a prefix or not."""
    beginning = [7 + (11 * index) % 650 for index in range(common)]
    prompts = [beginning + [5 + (7 * i + 31 * number) % 700 for i in range(400 - 20 * number)] for number in range(5)]
    if common:
        bench.requests([asked([*beginning, *range(5, 21)], 4)])
    phases = bench.requests([asked(prompt, 280 if number in (1, 2) else 20) for number, prompt in enumerate(prompts)])
    assert min(phase.least for phase in phases.values()) >= LEAST


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_bills_of_a_family_are_within_the_bounds(family: str) -> None:
    """All lengths and batches of the page."""
    cases: list[Case] = list(measured(family))
    assert min(phase.least for case in cases for phase in case.phases.values()) >= LEAST
    long = [phase for case in cases if case.length >= 1000 for phase in case.phases.values()]
    assert max(phase.ratio for phase in long) <= MOST


VOCAB = 1 << 15
FILTERED = SamplingParams(temperature=1, seed=1, top_p=0.9, min_p=0.1, top_k=5)
OPTIONS = {
    "greedy": SamplingParams(),
    "temperature": SamplingParams(temperature=1, seed=1),
    "nucleus": SamplingParams(temperature=1, seed=1, top_p=0.9),
    "all filters": FILTERED,
    "some tokens": SamplingParams(temperature=1, seed=1, top_k=5),
    "filters that keep each token": replace(FILTERED, top_k=VOCAB),
    "penalties": replace(FILTERED, repetition_penalty=1.1, presence_penalty=0.1),
    "bias": SamplingParams(logit_bias=((1, 2.0),)),
}


class _Mask:
    """A mask that allows everything, new for each token."""

    waits = True

    def mask(self, last: object) -> mx.array:
        return mx.ones((VOCAB,), mx.bool_)

    def late_mask(self) -> None:
        return None


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_sampling_takes_no_more_vectors_than_billed(name: str, masked: bool, rows: int) -> None:
    params = OPTIONS[name]
    with peak.measuring() as taken:
        mask = _Mask() if masked else None
        samplers = [Sampler(params, [1, 2], VOCAB, logprobs=masked, constraint=mask) for _ in range(rows)]
        for _ in range(2):
            logits = mx.zeros((rows, VOCAB), mx.bfloat16)
            mx.eval(arrays(sample(samplers, logits)))
    billed = rows * row_vectors(params, masked=masked, scored=masked)
    assert taken.bytes <= billed * 4 * VOCAB
