"""Rows that share a pass over guesses: what each takes back is tried at load."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ArraysCache, make_prompt_cache

from daemon.kv.mlx.adapters import ADAPTERS
from daemon.kv.mlx.ahead import Ahead
from daemon.kv.mlx.ahead_rows import padded, trying_rows
from daemon.kv.mlx.rows_kv import RowsKV
from daemon.shared.slices import drain
from tests.unit.kv.test_ahead import model_of


def level_of(family: str, *, joinable: bool = True) -> Ahead:
    """Return how exact such passes of a tiny model are."""
    return drain(trying_rows(model_of(family), Ahead.EXACT, joinable=joinable))


@pytest.mark.parametrize(
    ("family", "level"),
    [
        ("llama", Ahead.EXACT),
        ("qwen3_next", Ahead.EXACT),
        ("deepseek_v3", Ahead.ROUNDED),
        ("mamba2", Ahead.ROUNDED),
        ("falcon_h1", Ahead.ROUNDED),
    ],
)
def test_exactness_of_rows_is_found_out_at_load(family: str, level: Ahead) -> None:
    assert level_of(family) is level


@pytest.mark.parametrize("family", ["gemma3_text", "baichuan_m1"])
def test_windows_turn_with_all_rows(family: str) -> None:
    """Their adapter says so, and nothing is tried."""
    assert level_of(family) is Ahead.WRONG


def test_layer_that_knows_no_padding_is_found_out() -> None:
    """Mamba's state takes padding for tokens."""
    assert level_of("mamba") is Ahead.WRONG


def test_nothing_is_tried_where_rows_share_no_pass() -> None:
    assert level_of("llama", joinable=False) is Ahead.WRONG
    assert drain(trying_rows(None, Ahead.WRONG, joinable=True)) is Ahead.WRONG


@pytest.mark.parametrize("broken", [(RowsKV, "forget"), (ArraysCache, "prepare")])
def test_trace_of_a_neighbours_guess_is_found_out(monkeypatch: pytest.MonkeyPatch, broken: tuple[type, str]) -> None:
    """As after a change in mlx-lm."""
    monkeypatch.setattr(*broken, lambda *given, **named: None)
    assert level_of("qwen3_next") is Ahead.WRONG


def test_adapter_without_such_rows_refuses() -> None:
    cache = make_prompt_cache(model_of("gemma3_text"))[0]
    with pytest.raises(NotImplementedError, match="rows of BatchRotatingKVCache do not go back one by one"):
        ADAPTERS[type(cache)].back_rows(cache, None, [2, 2], [1, 2])


def test_rows_are_padded_behind() -> None:
    assert mx.array_equal(padded([[1, 2, 3], [4], []]), mx.array([[1, 2, 3], [4, 0, 0], [0, 0, 0]]))
