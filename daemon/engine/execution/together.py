"""
Guesses of several sequences, checked in one pass of the batch that they share.

Each row is fed its pending token and its own guesses, and is padded behind them to the row with the most. It keeps what
was right, whatever its neighbours guessed:

    row    known    fed              samples      kept
    0      a b      b c d e          c x          b c          d and e are taken out of this row again
    1      f g      g - - -          h            g            no guesses, padding
    2      k l      l m - -          m n          l m
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import Any

import mlx.core as mx

from daemon.engine.execution.head_kv import View, compute
from daemon.engine.execution.row import Row
from daemon.engine.execution.sampling import Sampled, draw_likeliest, sample_guessed
from daemon.engine.execution.speculation import MOST_FED
from daemon.engine.scheduling.governor import Governor, Source
from daemon.kv.mlx.guess_passes_of_rows import RowsUndo, padded
from daemon.shared.readings import about_to_wait


def guess(rows: Rows[Row], governor: Governor) -> list[list[int]] | None:
    """
    Guess the next tokens of each row.

    A row that guesses alone seldom gains what the wider pass costs all rows. So no row waits for its pending token if
    the pass would not be worth it with all that they offer.

    Returns:
        The guesses of each row, which may be none; None if no row has guesses, and none has to be fed anything again.
    """
    governor.set_rows(len(rows))
    longest = max(row.sequence.kv.held for row in rows)
    offers = [row.offer(MOST_FED // len(rows) - 1 - len(row.unfed), longest) for row in rows]
    if not worth(rows, offers, governor):
        return [[] for _ in rows] if any(row.unfed for row in rows) else None
    guesses = [row.guess(offer) for row, offer in zip(rows, offers, strict=True)]
    found = [row.guesser.last for row, own in zip(rows, guesses, strict=True) if own and row.guesser is not None]
    if found:
        width = governor.width([(check.source, check.guessed) for check in found if check is not None])
        guesses = [row.guesser.cut(own, width) if row.guesser else own for row, own in zip(rows, guesses, strict=True)]
    return guesses if any(guesses) or any(row.unfed for row in rows) else None


def worth(rows: Rows[Row], offers: Rows[tuple[Source, int] | None], governor: Governor) -> bool:
    """Whether to guess what rows offer, and to wait for their pending tokens if these are not known yet."""
    offering = [(row, offer) for row, offer in zip(rows, offers, strict=True) if offer is not None]
    if not offering or any(row.guesser is not None and row.guesser.asked for row in rows):
        return bool(offering)
    waits = any(row.unreported is not None for row, _ in offering)
    return governor.width([offer for _, offer in offering], waits=waits) > 0


def check(rows: Rows[Row], guesses: Rows[list[int]], caches: list[Any]) -> list[list[Sampled]]:
    """
    Feed all rows their pending tokens and their guesses in one pass, and keep what is right.

    Returns:
        The tokens of each row after its pending one, evaluated: the guesses that were right, and one more, which is
        pending now.
    """
    before = [len(row.unfed) for row in rows]
    fed = [[*row.unfed, row.pending.id, *own] for row, own in zip(rows, guesses, strict=True)]
    undo, tokens = RowsUndo(caches, list(map(len, fed))), padded(fed)
    logits = forward(rows, tokens, caches, list(map(len, fed)))
    logits = logits.reshape(-1, logits.shape[-1])
    about_to_wait()
    drawn, sampled = draw_likeliest(logits), []
    for index, (row, own) in enumerate(zip(rows, guesses, strict=True)):
        first = index * tokens.shape[1] + before[index]
        following, row.sampler = sample_guessed(row.sampler, logits, own, row.sequence.request.stop_ids, drawn, first)
        sampled.append(following)
    known = [count + len(following) for count, following in zip(before, sampled, strict=True)]
    for index, (row, kept) in enumerate(zip(rows, undo.keep(known), strict=True)):
        if row.sequence.head is not None:
            row.sequence.head.keep(row.sequence.kv.held + known[index])
        row.sequence.kv.advanced(kept, caches, index)
        row.pending, row.reported = sampled[index][-1], True
        if row.guesser is not None:
            row.guesser.unfed = fed[index][kept : known[index]]
            row.guesser.found(len(sampled[index]) - 1)
    return sampled


def forward(rows: Rows[Row], tokens: mx.array, caches: list[Any], counts: Rows[int]) -> mx.array:
    """
    Run tokens of rows through their model.

    Args:
        rows: The rows.
        tokens: Their tokens, shape [rows, tokens].
        caches: One cache for each layer, with a row for each of `rows`.
        counts: Tokens of each row; those behind are padding.

    Returns:
        The logits, shape [rows, tokens, vocab].
    """
    views = [
        View(row.sequence.head, row.sequence.kv.held, slice(count)) for row, count in zip(rows, counts, strict=True)
    ]
    return compute(rows[0].sequence.loaded.model, tokens, caches, views)


def feed_again(rows: Rows[Row], caches: list[Any]) -> None:
    """Feed all rows what their caches lack before the pending tokens."""
    fed = [list(row.unfed) for row in rows]
    if not any(fed):
        return
    undo = RowsUndo(caches, list(map(len, fed)))
    rows[0].sequence.loaded.model(padded(fed), cache=list(caches))
    for index, (row, kept) in enumerate(zip(rows, undo.keep(list(map(len, fed))), strict=True)):
        row.sequence.kv.advanced(kept, caches, index)
        row.unfed.clear()
