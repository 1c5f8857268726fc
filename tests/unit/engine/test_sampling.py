"""Sampling: the options allow what their definition says, a seed decides all else, and log-probabilities stay."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from daemon.engine.calls.options import sampling_params
from daemon.engine.execution import sampling
from daemon.engine.execution.sampling import Sampler, ids, sample
from daemon.engine.structured_output.constraint import Drawn
from mlx_sidecar.v1 import sidecar_pb2 as pb

VOCAB = 40
LOGITS = np.random.default_rng(1).normal(0, 2, VOCAB).astype(np.float32)


def sampler(prompt: tuple[int, ...] = (), *, logprobs: bool = False, **options: Any) -> Sampler:
    """Return a sampler with some options."""
    return Sampler(sampling_params(pb.Sampling(**options)), prompt, VOCAB, logprobs=logprobs)


def draw(one: Sampler, count: int = 1, logits: NDArray[np.float32] = LOGITS) -> list[int]:
    """Return so many tokens, all from the same logits."""
    return [one(mx.array(logits)[None]).id for _ in range(count)]


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the softmax."""
    scaled = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(scaled / scaled.sum())


def allowed(logits: NDArray[np.float32] = LOGITS, top_p: float = 1, top_k: int = 0, min_p: float = 0) -> set[int]:
    """Return the tokens that the options leave."""
    chances = probabilities(logits)
    order = np.argsort(-chances)
    before = np.cumsum(chances[order]) - chances[order]
    kept = (before < top_p) & (chances[order] >= min_p * chances.max())
    kept[top_k or len(order) :] = False
    return {int(token) for token in order[kept]}


def test_default_sampling_is_greedy() -> None:
    """Whatever the seed."""
    assert draw(sampler()) == draw(sampler(seed=3)) == draw(sampler(temperature=0, top_k=5)) == [int(LOGITS.argmax())]


@pytest.mark.parametrize(
    "options",
    [
        *({"top_p": value} for value in (1e-6, 0.5, 0.9)),
        *({"top_k": value} for value in (1, 5, 100)),
        *({"min_p": value} for value in (0.2, 1.0)),
        {"top_p": 0.8, "top_k": 3, "min_p": 0.05},
    ],
    ids=str,
)
def test_sampling_draws_exactly_the_allowed_tokens(options: dict[str, Any]) -> None:
    """Very hot, so that each of them comes up."""
    one = sampler(temperature=100, seed=1, **options)
    assert set(draw(one, 400)) == allowed(**options)


@pytest.mark.parametrize(
    "options", [{"top_k": 20, "top_p": 0.8}, {"top_k": 64, "top_p": 0.95, "min_p": 0.02}, {"top_k": 1}]
)
def test_top_k_draws_the_token_that_a_draw_among_all_tokens_gives(options: dict[str, Any]) -> None:
    """Only the most likely tokens are looked at. A token has the same chance, and with a seed the same luck."""
    width = 50_000
    for seed in range(20):
        logits = np.random.default_rng(seed).normal(0, 3, width).astype(np.float32)
        left = list(allowed(logits, **options))
        kept = np.full(width, -math.inf, np.float32)
        kept[left] = logits[left]
        _, key = mx.random.split(mx.random.key(seed))
        expected = mx.random.categorical(mx.array(kept)[None] / 0.7, key=key).item()

        one = Sampler(sampling_params(pb.Sampling(temperature=0.7, seed=seed, **options)), (), width, logprobs=False)

        assert draw(one, logits=logits) == [expected]


def test_temperature_flattens_the_distribution() -> None:
    """Frequencies are those of the scaled softmax."""
    drawn = draw(sampler(temperature=1.5, seed=5), 3000)
    expected = probabilities(LOGITS / np.float32(1.5))
    counts = np.bincount(drawn, minlength=VOCAB) / len(drawn)
    assert np.abs(counts - expected).max() < 0.04


@pytest.mark.parametrize("temperature", [1e-7, 1e-38, 1e-45])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    """And does not overflow."""
    assert draw(sampler(temperature=temperature, seed=1), 5) == [int(LOGITS.argmax())] * 5


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
def test_seed_repeats_its_samples(seed: int) -> None:
    """Whatever other samplers and MLX's own generator do between."""
    first, second = sampler(temperature=2, seed=seed), sampler(temperature=2, seed=seed)
    one = draw(first, 20)
    other = []
    for _ in range(20):
        mx.random.normal((3,))
        draw(sampler(temperature=2, seed=9))
        other += draw(second)
    assert one == other
    assert one != draw(sampler(temperature=2, seed=seed + 1 if seed < 2**64 - 1 else 3), 20)


def test_samples_differ_without_a_seed() -> None:
    """Each request has a key of its own."""
    assert draw(sampler(temperature=5), 20) != draw(sampler(temperature=5), 20)


def adjusted(history: list[int], prompt: tuple[int, ...], bias: dict[int, float], **options: float) -> NDArray[Any]:
    """Return the logits after bias and penalties, by their definition."""
    logits = LOGITS.copy()
    for token, value in bias.items():
        logits[token] += value
    repetition = np.float32(options["repetition_penalty"])
    for token in {*history, *prompt}:
        logits[token] = logits[token] / repetition if logits[token] > 0 else logits[token] * repetition
    for token in set(history):
        logits[token] -= np.float32(options["presence_penalty"])
        logits[token] -= np.float32(options["frequency_penalty"]) * history.count(token)
    return logits


@pytest.mark.parametrize("repetition", [0.5, 1.0, 1.7])
@pytest.mark.parametrize(("presence", "frequency"), [(0, 0), (0.7, 0), (0, 0.4), (-0.5, 1.3)])
def test_bias_and_penalties_follow_their_definition(repetition: float, presence: float, frequency: float) -> None:
    """Token by token, with the history that they make."""
    options: dict[str, Any] = {
        "repetition_penalty": repetition,
        "presence_penalty": presence,
        "frequency_penalty": frequency,
    }
    prompt, bias = (3, 5, 5), {7: 4.0, 3: -100.0}
    one = sampler(prompt, logit_bias=bias, **options)
    history: list[int] = []
    for _ in range(15):
        token = draw(one)[0]
        assert token == int(adjusted(history, prompt, bias, **options).argmax())
        history.append(token)


def test_a_tiny_repetition_penalty_does_not_overflow() -> None:
    """It is in range, and the tokens of the prompt win."""
    best = int(np.flatnonzero(LOGITS > 0)[0])
    assert draw(sampler((best,), repetition_penalty=1e-45, temperature=1, seed=1), 3) == [best] * 3


def test_logprobs_are_those_of_the_model() -> None:
    """No option changes them."""
    one = sampler((3,), logprobs=True, temperature=2, top_k=2, repetition_penalty=3, logit_bias={1: 50}, seed=1)
    logprobs = np.array(one(mx.array(LOGITS)[None]).logprobs)
    assert np.allclose(logprobs, np.log(probabilities(LOGITS)), atol=1e-5)
    assert sampler()(mx.array(LOGITS)[None]).logprobs is None


@pytest.mark.parametrize(("value", "finite"), [(math.nan, False), (math.inf, False), (-math.inf, True)])
def test_nan_logits_are_detected(value: float, finite: bool) -> None:
    """One token that is impossible is fine; all of them are not."""
    logits = LOGITS.copy()
    logits[4] = value
    assert sampler()(mx.array(logits)[None]).finite == finite
    assert not sampler()(mx.array(np.full(VOCAB, -math.inf, np.float32))[None]).finite


def test_half_precision_logits_are_sampled_in_single() -> None:
    """Ties that rounding makes do not count."""
    one = sampler(logprobs=True)(mx.array(LOGITS)[None].astype(mx.float16))
    assert one.logprobs is not None
    assert one.logprobs.dtype == mx.float32


def test_new_option_value_causes_no_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """mlx-lm's own filters are compiled for each value, more than half a second in the middle of everybody's step."""

    def compiled(*_: Any, **__: Any) -> None:
        pytest.fail("a filter of mlx-lm that is compiled for each value was used")

    for name in ("apply_top_p", "apply_top_k", "apply_min_p"):
        monkeypatch.setattr(f"mlx_lm.sample_utils.{name}", compiled)
        assert not hasattr(sampling, name)
    for number in range(5):
        draw(sampler(temperature=1, top_p=0.5 + number / 11, min_p=number / 103, top_k=2 + number, seed=1))


ROWS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 1.0, "seed": 3},
    "biased": {"logit_bias": {4: 1e9}},
    "penalised": {"repetition_penalty": 1.5},
}


@pytest.mark.parametrize("kinds", [["greedy"], ["greedy"] * 3, ["greedy", "sampled", "greedy", "biased", "penalised"]])
def test_batched_sampling_equals_sampling_alone(kinds: list[str]) -> None:
    """Those that want just the likeliest in one go: it says so to the batch, which feeds them as they come."""
    random = np.random.default_rng(1)
    alone, batch = ([sampler((1, 2, 3), **ROWS[kind]) for kind in kinds] for _ in range(2))
    for _ in range(4):
        logits = mx.array(random.normal(size=(len(kinds), VOCAB)).astype(np.float32))
        together = sample(batch, logits)
        assert [one.id for one in together] == [one(logits[row : row + 1]).id for row, one in enumerate(alone)]
        assert ids(together).tolist() == [one.id for one in together]
        assert len({id(one.draw) for one, kind in zip(together, kinds, strict=True) if kind == "greedy"}) == 1


def test_batched_sampling_reports_the_nan_row() -> None:
    logits = np.stack([LOGITS, LOGITS, LOGITS])
    logits[1, 3] = math.nan
    assert [one.finite for one in sample([sampler() for _ in range(3)], mx.array(logits))] == [True, False, True]


class _Late:
    """A constraint that learns from each token which ones may follow it, too late for the first try."""

    waits = False

    def __init__(self) -> None:
        self.last: Drawn | None = None

    def mask(self, last: Drawn | None) -> None:
        self.last = last

    def late_mask(self) -> mx.array | None:
        return None if self.last is None else mx.arange(VOCAB) == (self.last.id + 1) % VOCAB


def test_free_rows_share_the_argmax() -> None:
    """As rows without a constraint do; each is corrected by its own one."""
    options = sampling_params(pb.Sampling())
    rows = [Sampler(options, (), VOCAB, logprobs=False, constraint=_Late()) for _ in range(3)]
    likeliest, logits = int(LOGITS.argmax()), mx.array(np.stack([LOGITS] * 3))
    first = sample(rows, logits)
    assert len({id(token.draw) for token in first}) == 1
    assert [row.again() for row in rows] == [None] * 3
    assert [token.id for token in sample(rows, logits)] == [likeliest] * 3
    assert [token.id for row in rows if (token := row.again())] == [(likeliest + 1) % VOCAB] * 3
    assert [row.again() for row in rows] == [None] * 3


def test_second_try_has_the_first_key() -> None:
    """Without a mask that forbids it, it is the same token; what it penalised is forgotten."""
    options: Any = {"temperature": 1.5, "seed": 9, "frequency_penalty": 2.0, "repetition_penalty": 1.1}
    free = draw(sampler((1,), **options), 12)
    late = Sampler(sampling_params(pb.Sampling(**options)), (1,), VOCAB, logprobs=False, constraint=_AllLate())
    for token in free:
        assert late(mx.array(LOGITS)[None]).id == token
        again = late.again()
        assert again is None or again.id == token


class _AllLate(_Late):
    """A constraint that finds out late that all tokens may come."""

    def late_mask(self) -> mx.array | None:
        return None if self.last is None else mx.ones((VOCAB,), mx.bool_)
