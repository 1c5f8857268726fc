"""Models of every cache class are answered as mlx-lm answers them, with prefix reuse only where it is exact."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm import load
from mlx_lm.generate import generate_step

from mlx_sidecar import Client
from tests.support.models import random_model

PROMPT = [(7 * i) % 700 + 3 for i in range(300)]


def reference(path: Path, prompt: list[int], tokens: int) -> tuple[int, ...]:
    """Return what mlx-lm generates greedily."""
    model, _ = load(str(path))
    return tuple(int(token) for token, _ in generate_step(mx.array(prompt), model, max_tokens=tokens))


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "mamba"])
def test_model_families_match_mlx_lm_cold_and_warm(client: Client, folder: Path, family: str) -> None:
    """Token for token; `prefix_reuse` says what to expect, and `cached_tokens` keeps to it."""
    path = random_model(folder, family)
    info = client.load(str(path))
    expected = reference(path, PROMPT, 24)
    assert info.prefix_reuse == ("blocks" if family == "qwen3" else "checkpoints")
    for cached in (0, len(PROMPT) - 1 if family == "qwen3" else 288):
        answer = client.complete(str(path), PROMPT, max_tokens=24, ignore_eos=True)
        assert answer.token_ids == expected
        assert answer.usage.cached_tokens == cached


@pytest.mark.parametrize("family", ["gemma3_text", "mamba"])
def test_second_turn_prefills_only_new_tokens(client: Client, folder: Path, family: str) -> None:
    """Far beyond a window of 32, and with an answer longer than it."""
    path = str(random_model(folder, family))
    turn = PROMPT
    for _ in range(3):
        answer = client.complete(path, turn, max_tokens=75, ignore_eos=True)
        told = [*turn, *answer.token_ids]
        turn = [*told, *PROMPT[:40]]
        warm = client.complete(path, turn, max_tokens=20, ignore_eos=True, cache_mode="read_only")
        assert warm.usage.cached_tokens == len(told)
        cold = client.complete(path, turn, max_tokens=20, ignore_eos=True, cache_mode="bypass")
        assert warm.token_ids == cold.token_ids


@pytest.mark.parametrize("family", ["gemma3_text", "mamba"])
def test_third_diverging_prompt_resumes_at_the_fork(client: Client, folder: Path, family: str) -> None:
    """The second finds nothing to go on from inside the first, and leaves a checkpoint where they part."""
    path = str(random_model(folder, family))
    beginning = [*reversed(PROMPT)][:200]
    prompts = [[*beginning, *([last] * 60)] for last in (5, 6, 7)]
    cached = []
    for prompt in prompts:
        answer = client.complete(path, prompt, max_tokens=8, ignore_eos=True)
        cached.append(answer.usage.cached_tokens)
        cold = client.complete(path, prompt, max_tokens=8, ignore_eos=True, cache_mode="bypass")
        assert answer.token_ids == cold.token_ids
    assert cached == [0, 0, 192]


def test_interleaved_models_do_not_affect_each_other(client: Client, folder: Path) -> None:
    """Interleaved streams of two models: each is what it would be alone."""
    one, two = (random_model(folder, family) for family in ("qwen3", "gemma3_text"))
    alone = [client.complete(str(path), PROMPT, max_tokens=40, ignore_eos=True).token_ids for path in (one, two)]
    streams = [client.generate(str(path), PROMPT, max_tokens=40, ignore_eos=True) for path in (one, two)]
    assert [stream.result().token_ids for stream in streams] == alone
