"""
The bill of rows: bytes of a prompt up to its first tokens, and of rows that decode together.

`bill.py` bills the sequences that run, of which each is a row or several.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import NamedTuple

from daemon.cache.mlx.loader import LoadedModel
from daemon.engine.execution.prefill import TAIL
from daemon.engine.execution.sampling import LEAST_VECTORS
from daemon.engine.execution.speculation import MOST_FED
from daemon.engine.memory.memory_budget import kv_need
from daemon.engine.scheduling.policy import MIN_CHUNK, MIN_IDLE_CHUNK
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.mlx.layout import capacity_for

LEAST_WIDTH = MIN_IDLE_CHUNK
"""Tokens of the passes that a request is admitted for."""

MOVED = 1.25
"""
Times that a layer exists beside itself while rows leave, while it grows, or while a window begins to rotate: the new
one, and what MLX prepares of the next layers meanwhile.
"""

JOINED = 2.0
"""
The same where an array is made of others that MLX prepares as well: windows of rows that join, which are padded first,
and a layer of a shared prefix with the tail behind it.
"""

LEAST_FED = 8
"""
Tokens that a step is billed at least: buffers of few tokens are rounded up, and MLX makes room for a step while the one
before it is computed.
"""


class Bill(NamedTuple):
    """
    Bytes of requests.

    Attributes:
        kv: Those that they hold while they run.
        work: Those that are in use for a moment.
    """

    kv: int
    work: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.kv + self.work


class BilledRow(NamedTuple):
    """
    What a row is billed for.

    Attributes:
        held: Tokens that it holds.
        room: Tokens that it has room for beyond.
        vectors: Vectors of the vocabulary's width that a step of it takes.
        fed: Tokens that a step feeds: one, and guesses.
        grows: Whether it may need more room than it was given when it began.
        base: How many of the tokens that it holds are in arrays that it shares with other rows.
        generated: How many of the tokens that it holds are its answer.
        reused: Tokens of a prompt that were restored, or that others have computed or will.
        done: Those, and those that are computed.
    """

    held: int
    room: int
    vectors: int = LEAST_VECTORS
    fed: int = 1
    grows: bool = False
    base: int = 0
    generated: int = 0
    reused: int = 0
    done: int = 0


def prompt_bill(models: Rows[LoadedModel], row: BilledRow, rows: int = 1, width: int = LEAST_WIDTH) -> Bill:
    """
    Return the bill of a prompt until its first tokens are sampled.

    Args:
        models: Its model, and its draft model if it has one.
        row: The prompt.
        rows: Samples.
        width: Tokens of a pass.
    """
    wide = min(width + MIN_CHUNK, row.held, max(LEAST_WIDTH, row.held - row.done) + MIN_CHUNK)
    chunk = min(width + MIN_CHUNK, row.held - row.reused)  # a window keeps its last one until the next
    end = _elsewhere(row.base, row.held + row.room)
    needs = [kv_need(model.layout, row.held, row.room, chunk, prompt=True) for model in models]
    computed = sum(needs) - sum(model.layout.full_bytes(end) for model in models)
    decoding = decoding_bill(models, [row] * rows)
    tails = [min(TAIL + 1 if model.last is None else 1, wide) * 4 * model.vocab_size for model in models]
    # A pass writes the windows of a layer anew, beside those before it.
    anew = [int(JOINED * model.layout.layer_bytes(row.held, reserved=True)) for model in models]
    passes = [model.work.bytes(wide, row.held - wide) for model in models]
    works = list(map(sum, zip(passes, tails, anew, strict=True)))
    kv = max(computed, decoding.kv)
    return Bill(kv, max(computed + max(works), decoding.total) - kv)


def _elsewhere(base: int, tokens: int) -> int:
    """Return how many tokens of the room for a sequence are in a shared prefix: the tail grows in steps of its own."""
    return capacity_for(tokens) - capacity_for(tokens - base)


def batch_kv(models: Rows[LoadedModel], rows: Rows[BilledRow]) -> list[int]:
    """Return the KV of each row of a batch: all have the room of the longest behind what they share."""
    _, most, longest = _extent(rows)
    full = {
        base: sum(
            kv_need(model.layout, base + longest, 0, most) - model.layout.full_bytes(_elsewhere(base, base + longest))
            for model in models
        )
        for base in {row.base for row in rows}
    }
    return [full[row.base] for row in rows]


def _extent(rows: Rows[BilledRow]) -> tuple[int, int, int]:
    """
    Return the extent of a batch, in tokens.

    Returns:
        The most of a row that a pass may check; the most that it feeds to a row; and the room of each row.
    """
    each = max(1, MOST_FED // len(rows)) if len(rows) > 1 else rows[0].fed
    most = max(min(row.fed, each) for row in rows)
    # A row without guesses is padded to the row of its pass with the most.
    longest = max(row.held - row.base + row.room for row in rows) + (most - 1) * (len(rows) > 1)
    return each, most, longest


def decoding_bill(models: Rows[LoadedModel], rows: Rows[BilledRow]) -> Bill:
    """
    Return the bill of rows that decode together.

    All of them end at the place of the longest, so each has its room. When the longest leaves, the others move to the
    left: the batch ends where the row ends that will hold the most.
    """
    each, most, longest = _extent(rows)
    held = max(row.held - row.base for row in rows)
    grows = any(row.grows or row.held - row.base != held for row in rows)
    kv = sum(batch_kv(models, rows))
    alone = len(rows) == 1 and not grows
    base = max(row.base for row in rows)  # of full attention alone: windows are each row's own
    layers = [
        max(model.layout.layer_bytes(longest, reserved=alone), model.layout.layer_bytes(base + longest, reserved=True))
        for model in models
    ]
    copies = len(rows) * max(layers)
    # At the end of a block, each row's copy of its states exists beside the copy before it.
    states = (len(rows) > 1) * len(rows) * sum(model.layout.state_bytes for model in models)
    fed = max(LEAST_FED, most * len(rows))
    passes = sum(model.work.bytes(fed, max(row.held + row.room for row in rows)) for model in models)
    sampled = sum(row.vectors * min(row.fed, each) for row in rows) * 4 * models[0].vocab_size
    # The end of an answer is copied into the prefix cache, after the pass: windows, states and the last tokens. Of the
    # windows only what was stored while it passed is replaced: that is behind the stored end of the prompt. A row of
    # a batch is stored out of views, but for a window that has turned with its padding: that is copied.
    end = max(row.held for row in rows)
    end = min(end, 2 * BLOCK_TOKENS + rows[0].generated + rows[0].room) if len(rows) == 1 else end
    stored = sum(model.layout.parts.tail_bytes(BLOCK_TOKENS, end) for model in models)
    step = int(MOVED * (states + copies)) + passes + sampled
    step += _undone(models, most, longest) * len(rows)
    return Bill(kv, max(step, int(MOVED * stored)))


def _undone(models: Rows[LoadedModel], fed: int, tokens: int) -> int:
    """
    Return the bytes of what a pass with guesses keeps, to undo it: states and windows as they were before.

    A draft model keeps them for several passes. A model without states takes single tokens out again.
    """
    if fed == 1:
        return 0
    kept = [model.layout for number, model in enumerate(models) if number or model.layout.states]
    return sum(layout.undo_bytes(tokens) for layout in kept)
