"""A pass over guessed tokens leaves nothing behind: what follows is computed as if it had not been."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache, make_prompt_cache

from daemon.kv.mlx import guess_passes
from daemon.kv.mlx.guess_passes import Exactness, Undo, trying
from daemon.kv.mlx.layout import Layout
from daemon.kv.mlx.self_test import probe
from daemon.shared.slices import drain
from tests.unit.kv.guess_pass_models import close, fed, model_of

FAMILIES = ["llama", "deepseek_v3", "gemma3_text", "gpt_oss", "qwen3_next", "mamba", "recurrent_gemma", "baichuan_m1"]
TOKENS = [(7 * i + i * i) % 700 for i in range(60)]


@pytest.fixture(name="model", scope="module", params=FAMILIES)
def _model(request: pytest.FixtureRequest) -> Any:
    return model_of(request.param)


def prefilled(model: Any, before: int) -> list[Any]:
    """Return caches that hold so many tokens, the last four of them decoded one by one."""
    caches: list[Any] = make_prompt_cache(model)
    fed(model, TOKENS[: before - 4], caches)
    for token in TOKENS[before - 4 : before]:
        fed(model, [token], caches)
    return caches


def after_one_by_one(model: Any, before: int, more: int) -> list[mx.array]:
    """Return the logits after each of some tokens, fed one by one behind a prompt."""
    caches = prefilled(model, before)
    return [fed(model, [token], caches)[-1] for token in TOKENS[before : before + more]]


@pytest.mark.parametrize("before", [5, 18, 19, 31, 40])
@pytest.mark.parametrize(("wrong", "right"), [(1, 0), (3, 0), (2, 2), (1, 4)])
def test_wrong_guesses_are_forgotten(model: Any, before: int, wrong: int, right: int) -> None:
    """Before a window (20 and 32 tokens) is full, as it is filled, and behind."""
    expected = after_one_by_one(model, before, right + 4)
    caches = prefilled(model, before)
    undo = Undo(caches)
    guessed = TOKENS[before : before + 1 + right] + [701, 702, 703][:wrong]
    logits = fed(model, guessed, caches)
    kept = undo.keep(len(guessed), 1 + right)
    assert kept in (0, 1 + right)
    again = TOKENS[before + kept : before + 1 + right]
    for index in range(1 + right):
        assert close(logits[index], expected[index])
    following = fed(model, [*again, TOKENS[before + right + 1]], caches)[-1]
    assert close(following, expected[right + 1])
    assert close(fed(model, [TOKENS[before + right + 2]], caches)[-1], expected[right + 2])


@pytest.mark.parametrize("before", [5, 19, 31, 40])
def test_single_tokens_are_undone_as_a_whole(model: Any, before: int) -> None:
    """A draft model is fed its guesses one by one, and windows write them over what they hold."""
    expected = after_one_by_one(model, before, 2)
    caches = prefilled(model, before)
    undo = Undo(caches, whole=True)
    for token in (701, 702, 703):
        fed(model, [token], caches)
    assert undo.keep(3, 0) == 0
    for index in range(2):
        assert close(fed(model, [TOKENS[before + index]], caches)[-1], expected[index])


@pytest.mark.parametrize(
    ("family", "level"),
    [
        ("llama", Exactness.EXACT),
        ("qwen3_next", Exactness.EXACT),
        ("deepseek_v3", Exactness.ROUNDED),
        ("mamba2", Exactness.ROUNDED),
    ],
)
def test_exactness_is_found_out_at_load(family: str, level: Exactness) -> None:
    model = model_of(family)
    assert drain(trying(model, probe(model))) is level


def test_model_without_reusable_layout_does_not_guess() -> None:
    assert drain(trying(model_of("llama"), Layout("unknown", 0))) is Exactness.WRONG


def test_trace_of_a_wrong_guess_is_found_out_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that does not forget, as after a change in mlx-lm."""
    model = model_of("llama")
    layout = probe(model)
    monkeypatch.setattr(KVCache, "trim", lambda self, tokens: tokens)
    assert drain(trying(model, layout)) is Exactness.WRONG


def test_error_within_the_trial_means_no_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: object) -> None:
        raise ValueError("no pass of several tokens")

    model = model_of("llama")
    layout = probe(model)
    monkeypatch.setattr(guess_passes, "forward_layerwise", fails)
    assert drain(trying(model, layout)) is Exactness.WRONG
