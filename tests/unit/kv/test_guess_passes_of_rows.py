"""Rows that share a pass over guesses: what each takes back is tried at load."""

from __future__ import annotations

import random
from copy import deepcopy
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ArraysCache, BatchRotatingKVCache, RotatingKVCache, make_prompt_cache

from daemon.kv.mlx.adapters.cache_list import leaves
from daemon.kv.mlx.batch_cache import to_batch, to_single
from daemon.kv.mlx.guess_passes import Exactness
from daemon.kv.mlx.guess_passes_of_rows import RowsUndo, padded, trying_rows
from daemon.kv.mlx.rows_kv import RowsKV
from daemon.shared.slices import drain
from tests.unit.kv.guess_pass_models import close, fed, model_of


def level_of(family: str, *, joinable: bool = True) -> Exactness:
    """Return how exact such passes of a tiny model are."""
    return drain(trying_rows(model_of(family), Exactness.EXACT, joinable=joinable))


@pytest.mark.parametrize(
    ("family", "level"),
    [
        ("llama", Exactness.EXACT),
        ("qwen3_next", Exactness.EXACT),
        ("gemma3_text", Exactness.EXACT),
        ("baichuan_m1", Exactness.EXACT),
        ("deepseek_v3", Exactness.ROUNDED),
        ("mamba2", Exactness.ROUNDED),
        ("falcon_h1", Exactness.ROUNDED),
    ],
)
def test_exactness_of_rows_is_found_out_at_load(family: str, level: Exactness) -> None:
    assert level_of(family) is level


def test_layer_that_knows_no_padding_is_found_out() -> None:
    """Mamba's state takes padding for tokens."""
    assert level_of("mamba") is Exactness.WRONG


def test_nothing_is_tried_where_rows_share_no_pass() -> None:
    assert level_of("llama", joinable=False) is Exactness.WRONG
    assert drain(trying_rows(None, Exactness.WRONG, joinable=True)) is Exactness.WRONG


@pytest.mark.parametrize("broken", [(RowsKV, "forget"), (ArraysCache, "prepare")])
def test_trace_of_a_neighbours_guess_is_found_out(monkeypatch: pytest.MonkeyPatch, broken: tuple[type, str]) -> None:
    """As after a change in mlx-lm."""
    monkeypatch.setattr(*broken, lambda *given, **named: None)
    assert level_of("qwen3_next") is Exactness.WRONG


@pytest.mark.parametrize(("family", "kept"), [("gemma3_text", False), ("recurrent_gemma", True)])
def test_windows_of_before_are_kept_beside_states_alone(family: str, kept: bool) -> None:
    """What no row goes back to would be in memory twice."""
    row = Row(model_of(family), 9, 1)
    marks = RowsUndo(row.batch, [2])._marks
    assert any(mark is not None for cache, mark in marks if isinstance(cache, BatchRotatingKVCache)) == kept


def test_rows_are_padded_behind() -> None:
    assert mx.array_equal(padded([[1, 2, 3], [4], []]), mx.array([[1, 2, 3], [4, 0, 0], [0, 0, 0]]))


class Row:
    """
    A sequence, alone and as a row of a batch.

    Args:
        model: The model.
        before: Tokens that both hold.
    """

    def __init__(self, model: Any, before: int, start: int) -> None:
        self._model = model
        self.tokens = [(start + 7 * i + i * i) % 700 for i in range(200)]
        self.known, self.unfed = before, 0
        self.alone = make_prompt_cache(model)
        fed(model, self.tokens[:before], self.alone)
        self.batch = [to_batch(cache) for cache in deepcopy(self.alone)]

    def expect(self, count: int) -> list[mx.array]:
        """Return the logits after the next tokens, fed one by one."""
        return [fed(self._model, [token], self.alone)[-1] for token in self.tokens[self.known : self.known + count]]


@pytest.mark.parametrize("befores", [(3, 9), (9, 6, 17), (18, 30, 31), (19, 40, 33), (70, 80)])
@pytest.mark.parametrize("family", ["gemma3_text", "gpt_oss", "recurrent_gemma", "baichuan_m1", "llama", "falcon_h1"])
def test_rows_forget_their_own_wrong_guesses(family: str, befores: tuple[int, ...]) -> None:
    """Before windows (20 and 32 tokens) are full, as they are filled, and behind; one row leaves in the end."""
    model, source = model_of(family), random.Random(len(befores) + befores[0])
    rows = [Row(model, before, 11 * index) for index, before in enumerate(befores)]
    caches = rows[0].batch
    for row in rows[1:]:
        for cache, other in zip(caches, row.batch, strict=True):
            cache.extend(other)
    for turn in range(24):
        if turn % 3 == 1 and not any(row.unfed for row in rows):
            logits = model(mx.array([[row.tokens[row.known]] for row in rows]), cache=caches)
            for index, row in enumerate(rows):
                assert close(logits[index, -1], row.expect(1)[0])
                row.known += 1
            continue
        right = [source.choice([0, 0, 1, 3]) for _ in rows]
        wrong = [source.choice([0, 0, 1, 2]) for _ in rows]
        passed = [
            [*row.tokens[row.known - row.unfed : row.known + 1 + good], *[701] * bad]
            for row, good, bad in zip(rows, right, wrong, strict=True)
        ]
        undo = RowsUndo(caches, list(map(len, passed)))
        logits = model(padded(passed), cache=caches)
        kept = undo.keep([row.unfed + 1 + good for row, good in zip(rows, right, strict=True)])
        for index, row in enumerate(rows):
            for place, expected in enumerate(row.expect(1 + right[index])):
                assert close(logits[index, row.unfed + place], expected)
            row.known += 1 + right[index]
            row.unfed += 1 + right[index] - kept[index]
    last = rows[-1]
    single = [to_single(cache, len(rows) - 1) for cache in caches]
    tokens = last.tokens[last.known - last.unfed : last.known + 1]
    assert close(fed(model, tokens, single)[-1], last.expect(1)[-1])


@pytest.mark.parametrize("others", [0, 4])
@pytest.mark.parametrize("family", ["recurrent_gemma", "baichuan_m1"])
def test_row_of_which_nothing_stays_has_its_window(family: str, others: int) -> None:
    """All of it, as before the pass: a prefix is stored with what a window holds after its last token."""
    model = model_of(family)
    rows = [Row(model, length, 11 * index) for index, length in enumerate((50, 61))]
    caches = rows[0].batch
    for cache, other in zip(caches, rows[1].batch, strict=True):
        cache.extend(other)
    held = [to_single(cache, 0) for cache in caches]
    undo = RowsUndo(caches, [3, max(2, others)])
    model(padded([[701] * 3, rows[1].tokens[61 : 61 + others]]), cache=caches)
    undo.keep([1, others])
    windows = [cache for cache in leaves(caches) if isinstance(cache, BatchRotatingKVCache)]
    before = [cache for cache in leaves(held) if isinstance(cache, RotatingKVCache)]
    assert windows
    for window, one in zip(windows, before, strict=True):
        row = to_single(window, 0)
        assert (row.offset, row.keys.shape[2]) == (50, row.max_size)
        assert mx.array_equal(row.keys, one.keys[..., -row.max_size :, :])
        assert mx.array_equal(row.values, one.values[..., -row.max_size :, :])
