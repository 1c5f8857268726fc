"""Models of every cache class are answered as mlx-lm answers them, with prefix reuse only where it is exact."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm import load
from mlx_lm.generate import generate_step

from mlx_sidecar import Client
from tests.models import TINY, random_model

PROMPT = [(7 * i) % 700 + 3 for i in range(300)]


def reference(path: Path, prompt: list[int], tokens: int) -> tuple[int, ...]:
    """Return what mlx-lm generates greedily."""
    model, _ = load(str(path))
    return tuple(int(token) for token, _ in generate_step(mx.array(prompt), model, max_tokens=tokens))


@pytest.mark.parametrize("family", TINY)
def test_each_family_answers_like_mlx_lm_cold_and_warm(client: Client, folder: Path, family: str) -> None:
    """Token for token; `prefix_reuse` says what to expect, and `cached_tokens` keeps to it."""
    path = random_model(folder, family)
    info = client.load(str(path))
    expected = reference(path, PROMPT, 24)
    reuse = info.prefix_reuse == "blocks"
    assert reuse == (family != "mamba")
    for cached in (0, 288 if reuse else 0):
        answer = client.complete(str(path), PROMPT, max_tokens=24, ignore_eos=True)
        assert answer.token_ids == expected
        assert answer.usage.cached_tokens == cached


def test_a_sliding_window_model_reuses_the_first_turn_in_the_second(client: Client, folder: Path) -> None:
    """Far beyond its window of 32, and with another ending."""
    path = str(random_model(folder, "gemma3_text"))
    first = client.complete(path, PROMPT, max_tokens=20, ignore_eos=True)
    second = [*PROMPT, *first.token_ids, *PROMPT[:40]]
    warm = client.complete(path, second, max_tokens=20, ignore_eos=True)
    assert warm.usage.cached_tokens >= len(PROMPT) // 16 * 16
    cold = client.complete(path, second, max_tokens=20, ignore_eos=True, cache_mode="bypass")
    assert warm.token_ids == cold.token_ids


def test_two_models_take_turns_without_touching_each_other(client: Client, folder: Path) -> None:
    """Interleaved streams of two models: each is what it would be alone."""
    one, two = (random_model(folder, family) for family in ("qwen3", "gemma3_text"))
    alone = [client.complete(str(path), PROMPT, max_tokens=40, ignore_eos=True).token_ids for path in (one, two)]
    streams = [client.generate(str(path), PROMPT, max_tokens=40, ignore_eos=True) for path in (one, two)]
    assert [stream.result().token_ids for stream in streams] == alone
