"""Log-probabilities of the tokens of a prompt and of an answer, with the most likely alternatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import mlx.core as mx

from daemon.engine.memory.memory_budget import SCORED_ROWS
from daemon.engine.output.detokenizer import Alternative, Token


def prompt_scores(
    logits: mx.array, following: Sequence[int], count: int, text: Callable[[int], str]
) -> list[Token] | None:
    """
    Return the tokens that follow each other in a prompt with their log-probabilities; None if a logit is no number.

    Few rows are scored at a time: in float32, those of a whole chunk would take several times the memory of its logits.

    Args:
        logits: Those after the token before each of them, [tokens or more, vocab].
        following: The tokens.
        count: Alternatives to report for each.
        text: Returns the text of a token.
    """
    tokens: list[Token] = []
    for start in range(0, len(following), SCORED_ROWS):
        part = following[start : start + SCORED_ROWS]
        rows = logits[start : start + len(part)].astype(mx.float32)
        tokens += scored_tokens(rows - mx.logsumexp(rows, axis=-1, keepdims=True), part, count, text)
    return None if any(math.isnan(cast("float", token.logprob)) for token in tokens) else tokens


def scored_tokens(logprobs: mx.array, tokens: Sequence[int], count: int, text: Callable[[int], str]) -> list[Token]:
    """
    Return tokens with their log-probabilities and alternatives. Waits for the device.

    Args:
        logprobs: Log-probabilities at the position of each token, [tokens, vocab].
        tokens: The tokens.
        count: Alternatives to report for each, the most likely first.
        text: Returns the text of a token.
    """
    own = mx.take_along_axis(logprobs, mx.array(list(tokens))[:, None], axis=-1)[:, 0]
    count = min(count, logprobs.shape[-1])
    ids = _likeliest(logprobs, count)
    values = mx.take_along_axis(logprobs, ids, axis=-1)
    mx.eval(own, ids, values)
    rows: Any = zip(tokens, *(array.tolist() for array in (own, ids, values)), strict=True)
    return [
        Token(token, logprob, tuple(Alternative(i, v, text(i)) for i, v in zip(top, at, strict=True)), text(token))
        for token, logprob, top, at in rows
    ]


def _likeliest(logprobs: mx.array, count: int) -> mx.array:
    """Return the ids of the most likely tokens of each row, [rows, count], most likely first."""
    if not count:
        return mx.zeros((logprobs.shape[0], 0), mx.uint32)
    if count < logprobs.shape[-1]:
        ids = mx.argpartition(-logprobs, kth=count - 1, axis=-1)[:, :count]
    else:
        ids = mx.broadcast_to(mx.arange(count, dtype=mx.uint32), logprobs.shape)
    order = mx.argsort(-mx.take_along_axis(logprobs, ids, axis=-1), axis=-1)
    return mx.take_along_axis(ids, order, axis=-1)
