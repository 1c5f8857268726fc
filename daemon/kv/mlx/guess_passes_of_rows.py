"""
Passes over guessed tokens that several sequences share: each row takes back its own part, and a self-test tries it.

The pass is as wide as the row with the most tokens; other rows are padded behind theirs. See `guess_passes.py` for a
sequence that has a pass of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import mlx.core as mx
import structlog
from mlx_lm.models.cache import make_prompt_cache

from daemon.kv.mlx.adapters import BATCH_ADAPTERS, STATE_ADAPTERS
from daemon.kv.mlx.adapters.cache_list import leaves
from daemon.kv.mlx.batch_cache import to_batch
from daemon.kv.mlx.guess_passes import Exactness, judged, tried
from daemon.kv.mlx.layerwise import forward_layerwise
from daemon.shared.slices import Sliced

log = structlog.get_logger()

_PROMPTS = [[1, 2, 3, 4], [2, 3]]
_TOKENS = [[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]]
"""What follows the prompts."""
_ROUNDS = [((1, 3), (2, 0)), ((1, 0), (0, 2)), ((1, 1), (0, 0))]
"""Right and wrong guesses of each row, in the passes of the self-test."""
_WRONG = 1


class RowsUndo:
    """
    Undoes parts of the next pass of a batch, in each row its own.

    Args:
        caches: Batch caches, one for each layer, of classes that let rows go back one by one.
        fed: Tokens of each row in the pass, without padding.
    """

    def __init__(self, caches: Sequence[Any], fed: Sequence[int]) -> None:
        flat = list(leaves(caches))
        self._fed, self._width = fed, _width(fed)
        self._whole = any(type(cache) in STATE_ADAPTERS for cache in flat)
        for cache in flat:
            BATCH_ADAPTERS[type(cache)].begin_rows(cache, fed, self._width)
        # Without states, what a mark holds is not needed: it would only keep the windows of before in memory.
        self._marks = [(cache, BATCH_ADAPTERS[type(cache)].mark(cache) if self._whole else None) for cache in flat]

    def keep(self, right: Sequence[int]) -> list[int]:
        """
        Keep the first tokens of each row.

        Args:
            right: How many of them are to stay.

        Returns:
            How many stay. In a model with states, a row that cannot keep all of its tokens keeps none.
        """
        kept = [count if count == fed or not self._whole else 0 for count, fed in zip(right, self._fed, strict=True)]
        if self._whole or min(kept) < self._width:
            for cache, mark in self._marks:
                BATCH_ADAPTERS[type(cache)].back_rows(cache, mark, self._width, kept)
        return kept


def padded(rows: Sequence[Sequence[int]]) -> mx.array:
    """Return the tokens of rows as one array, [rows, tokens], padded behind."""
    width = _width(list(map(len, rows)))
    return mx.array([[*row, *[0] * (width - len(row))] for row in rows])


def _width(fed: Sequence[int]) -> int:
    """Return the tokens of a pass: two at least, for a single one is written over what a window holds."""
    return max(2, *fed)


def trying_rows(model: Any, alone: Exactness, *, joinable: bool) -> Sliced[Exactness]:
    """
    Tell how exact passes are in which rows have different numbers of guesses; a layer for each `next`.

    Args:
        model: The model.
        alone: How exact they are for a sequence alone.
        joinable: Whether sequences can share a pass at all.
    """
    if alone is Exactness.WRONG or not joinable:
        return Exactness.WRONG
    return (yield from tried(_against_single_tokens(model)))


def _against_single_tokens(model: Any) -> Sliced[Exactness]:
    """Compare passes with guesses with passes over one token of each row, of the same two rows."""
    prompts = yield from _prefilled(model)
    caches, single = _batch(prompts), []
    for index in range(len(_TOKENS[0])):
        logits = yield from forward_layerwise(model, mx.array([[row[index]] for row in _TOKENS]), caches)
        single.append(logits[:, -1])
    guessed = yield from _guessed(model, _batch(prompts))
    pairs = [(logits, single[index][row]) for row, index, logits in guessed]
    # The rounding of this device: a row alone.
    level = yield from judged(pairs, _alone(model, prompts[0]), [logits[0] for logits in single])
    if level is Exactness.WRONG:
        log.info("guessing_in_batches_disabled")
    return level


def _guessed(model: Any, caches: list[Any]) -> Sliced[list[tuple[int, int, mx.array]]]:
    """Return the logits after tokens in passes with guesses, each with its row and the index of its token."""
    got, known, unfed = [], [0, 0], [0, 0]
    for guesses in _ROUNDS:
        fed = []
        for row, (right, wrong) in enumerate(guesses):
            fed.append([*_TOKENS[row][known[row] - unfed[row] : known[row] + 1 + right], *[_WRONG] * wrong])
        undo = RowsUndo(caches, [len(tokens) for tokens in fed])
        logits = yield from forward_layerwise(model, padded(fed), caches)
        now = [unfed[row] + 1 + right for row, (right, _) in enumerate(guesses)]
        kept = undo.keep(now)
        for row, count in enumerate(now):
            got += [(row, known[row] - unfed[row] + place, logits[row, place]) for place in range(count)]
            known[row] += count - unfed[row]
            unfed[row] = count - kept[row]
    return got


def _alone(model: Any, caches: list[Any]) -> Sliced[list[mx.array]]:
    """Return the logits of the first row alone, after each of its tokens."""
    logits = []
    for token in _TOKENS[0]:
        after = yield from forward_layerwise(model, mx.array([[token]]), caches)
        logits.append(after[0, -1])
    return logits


def _prefilled(model: Any) -> Sliced[list[list[Any]]]:
    """Return the caches of two prompts of different length."""
    rows = []
    for prompt in _PROMPTS:
        rows.append(make_prompt_cache(model))
        yield from forward_layerwise(model, mx.array([prompt]), rows[-1])
    return rows


def _batch(prompts: list[list[Any]]) -> list[Any]:
    """Return copies of the caches of prompts, as rows of batch caches."""
    first, *others = ([to_batch(cache) for cache in deepcopy(row)] for row in prompts)
    for row in others:
        for cache, other in zip(first, row, strict=True):
            cache.extend(other)
    return first
