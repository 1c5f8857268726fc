"""Log-probabilities of the tokens of a prompt and of an answer, with the most likely alternatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from daemon.engine.execution.sequence import Sequence, nan_logits
from daemon.engine.memory.memory_budget import SCORED_ROWS
from daemon.engine.output.detokenizer import Alternative, Token


def score_prompt(sequence: Sequence, done: int, logits: mx.array) -> None:
    """
    Add the scores of the prompt tokens that follow those of a chunk to `sequence.scores`.

    Few rows are scored at a time: in float32, those of a whole chunk would take several times the memory of its logits.

    Args:
        sequence: The request.
        done: Tokens of the prompt before the chunk.
        logits: Those after each token of the chunk, [tokens, vocab].

    Raises:
        SidecarError: NAN_LOGITS if a logit is no number.
    """
    following = sequence.prompt[done + 1 : done + 1 + logits.shape[0]]
    for start in range(0, len(following), SCORED_ROWS):
        part = following[start : start + SCORED_ROWS]
        rows = logits[start : start + len(part)].astype(mx.float32)
        logprobs = rows - mx.logsumexp(rows, axis=-1, keepdims=True)
        tokens = scored_tokens(logprobs, part, sequence.request.prompt_logprobs or 0, sequence.text)
        if any(token.logprob is None or math.isnan(token.logprob) for token in tokens):
            raise nan_logits(sequence)
        sequence.scores += tokens


def scored_tokens(logprobs: mx.array, tokens: list[int], count: int, text: Callable[[int], str]) -> list[Token]:
    """
    Return tokens with their log-probabilities and alternatives. Waits for the device.

    Args:
        logprobs: Log-probabilities at the position of each token, [tokens, vocab].
        tokens: The tokens.
        count: Alternatives to report for each, the most likely first.
        text: Returns the text of a token.
    """
    own = mx.take_along_axis(logprobs, mx.array(tokens)[:, None], axis=-1)[:, 0]
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
