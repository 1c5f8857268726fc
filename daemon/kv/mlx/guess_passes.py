"""
Passes over tokens that are only guessed: what they write is taken back, and a self-test tells how exact they are.

A pass over several tokens has other matrix products than passes over one token each. Whether its bits are the same
depends on the model and on the device, so each model is tried when it is loaded; `Exactness` has the results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum, auto
from typing import Any

import mlx.core as mx
import structlog
from mlx_lm.models.cache import make_prompt_cache

from daemon.kv.mlx.adapters import ADAPTERS, STATE_ADAPTERS
from daemon.kv.mlx.adapters.cache_list import leaves
from daemon.kv.mlx.layerwise import forward_layerwise
from daemon.kv.mlx.layout import Layout
from daemon.kv.mlx.self_test import distance
from daemon.shared.log_fields import Words
from daemon.shared.machine_faults import machine_fault
from daemon.shared.slices import Sliced

log = structlog.get_logger()

Pair = tuple[mx.array, mx.array]
"""Logits of the same token, computed in two ways."""

_PROMPT = [1, 2, 3, 4]
_AHEAD = [5, 6, 7, 8, 9, 10]
_NOISE_MARGIN = 4.0
"""A pass may be so many times as far from single tokens as rows of a shared pass are."""
_MOST_ROUNDING = 0.05
"""A share of the range of the logits. A pass that is off by more does not compute the same."""


class Exactness(Enum):
    """How a pass over several tokens of a sequence compares with a pass over each of them."""

    WRONG = auto()
    """It cannot be taken back, or computes something else."""
    ROUNDED = auto()
    """The same but for rounding, where a pass that sequences share is exact."""
    SHARED = auto()
    """The same but for rounding, no more than a pass that sequences share."""
    EXACT = auto()
    """The same bits. A window is so only until it is full: it is then added up in another order."""


class Undo:
    """
    Undoes the next pass of a sequence, in part or as a whole.

    Args:
        caches: The sequence's own caches, one for each layer, of classes that have an adapter.
        whole: Whether several passes are to be undone, and then as a whole unless all layers are plain. Layers with a
            state make it so. Their arrays before the pass are then kept in memory, windows included.
    """

    def __init__(self, caches: Sequence[Any], *, whole: bool = False) -> None:
        flat = list(leaves(caches))
        self._whole = any(type(cache) in STATE_ADAPTERS for cache in flat)
        marked = whole or self._whole
        self._marks = [(cache, ADAPTERS[type(cache)].mark(cache) if marked else None) for cache in flat]

    def keep(self, fed: int, kept: int) -> int:
        """
        Keep the first tokens of the pass.

        Args:
            fed: Tokens of the pass, two or more; or of all passes that are to be undone.
            kept: How many of them are to stay.

        Returns:
            How many stay: all of `kept`, or none, where a layer can only go back to the state before the pass.
        """
        if fed == kept:
            return kept
        if self._whole:
            kept = 0
        for cache, mark in self._marks:
            ADAPTERS[type(cache)].back(cache, mark, fed, kept)
        return kept


def trying(model: Any, layout: Layout) -> Sliced[Exactness]:
    """Feed a few tokens ahead, take them back, and tell how exact that is; a layer for each `next`."""
    return (yield from tried(_compared(model))) if layout.reusable else Exactness.WRONG


def tried(trial: Sliced[Exactness]) -> Sliced[Exactness]:
    """Do a trial; one that fails means no guesses."""
    try:
        return (yield from trial)
    except Exception as error:  # the model's own code may raise anything where it does not expect such a pass
        if machine_fault(error, "") is not None:
            raise
        said = Words(f"{type(error).__name__}: {error}")  # of fixed tokens: no request is in it
        log.warning("guessing_self_test_failed", error=said)
        return Exactness.WRONG


def _compared(model: Any) -> Sliced[Exactness]:
    alone = yield from _one_by_one(model, 1)
    together = yield from _taken_back(model)
    # The rounding of this device: the same tokens twice, as rows of one batch.
    pairs = [(logits, alone[index]) for index, logits in together]
    level = yield from judged(pairs, _one_by_one(model, 2), alone)
    if level is Exactness.WRONG:
        log.warning("guessing_disabled")
    return level


def judged(pairs: Sequence[Pair], others: Sliced[list[mx.array]], same: Sequence[mx.array]) -> Sliced[Exactness]:
    """
    Tell how exact logits are.

    Args:
        pairs: Logits after guesses, and those of the same tokens one by one.
        others: Computes other logits of tokens one by one, which differ by the device's rounding alone.
        same: Those from which they differ.
    """
    rounding = _largest(pairs)
    if rounding == 0:
        return Exactness.EXACT
    spread = min(distance(mx.max(logits), mx.min(logits)) for _, logits in pairs)
    if rounding > _MOST_ROUNDING * spread:
        return Exactness.WRONG
    noise = _largest(list(zip((yield from others), same, strict=True)))
    return Exactness.SHARED if rounding <= _NOISE_MARGIN * noise else Exactness.ROUNDED


def _one_by_one(model: Any, rows: int) -> Sliced[list[mx.array]]:
    """Return the logits of the last row after each token, fed one by one after the prompt."""
    caches, logits = make_prompt_cache(model), []
    yield from forward_layerwise(model, mx.array([_PROMPT] * rows), caches)
    for token in _AHEAD:
        after = yield from forward_layerwise(model, mx.array([[token]] * rows), caches)
        logits.append(after[-1, -1])
    return logits


def _taken_back(model: Any) -> Sliced[list[tuple[int, mx.array]]]:
    """
    Return the logits after tokens that were fed ahead, each with the index of its token.

    All tokens of a first pass but the first are taken back. Passes over two tokens follow: the next one, and a wrong
    one that is taken back.
    """
    caches = make_prompt_cache(model)
    yield from forward_layerwise(model, mx.array([_PROMPT]), caches)
    logits = yield from _pass(model, caches, _AHEAD)
    pairs = list(enumerate(logits))
    for index in range(1, len(_AHEAD)):
        logits = yield from _pass(model, caches, [_AHEAD[index], 1])
        pairs.append((index, logits[0]))
    return pairs


def _pass(model: Any, caches: list[Any], tokens: list[int]) -> Sliced[list[mx.array]]:
    """Feed tokens and keep the first of them; a state that lost it is fed it again."""
    undo = Undo(caches)
    logits = yield from forward_layerwise(model, mx.array([tokens]), caches)
    if not undo.keep(len(tokens), 1):
        yield from forward_layerwise(model, mx.array([tokens[:1]]), caches)
    return list(logits[0])


def _largest(pairs: Sequence[Pair]) -> float:
    """Return the largest difference."""
    return max(_distance(one.astype(mx.float32), other.astype(mx.float32)) for one, other in pairs)


def _distance(logits: mx.array, others: mx.array) -> float:
    """Return the largest difference; infinite if it is no number."""
    if bool(mx.array_equal(logits, others, equal_nan=True).item()):
        return 0.0
    largest = distance(logits, others)
    return largest if math.isfinite(largest) else math.inf
