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
    own: Any = mx.take_along_axis(logprobs, mx.array(tokens)[:, None], axis=-1)[:, 0].tolist()
    tops = _alternatives(logprobs, min(count, logprobs.shape[-1]), text) if count else [()] * len(tokens)
    return [Token(token, logprob, top, text(token)) for token, logprob, top in zip(tokens, own, tops, strict=True)]


def _alternatives(logprobs: mx.array, count: int, text: Callable[[int], str]) -> list[tuple[Alternative, ...]]:
    """Return the most likely tokens of each row, most likely first."""
    ids = mx.argpartition(-logprobs, kth=count - 1, axis=-1)[:, :count]
    values = mx.take_along_axis(logprobs, ids, axis=-1)
    order = mx.argsort(-values, axis=-1)
    ids, values = (mx.take_along_axis(array, order, axis=-1) for array in (ids, values))
    mx.eval(ids, values)
    columns: list[Any] = [ids.tolist(), values.tolist()]
    rows = zip(*columns, strict=True)
    return [tuple(Alternative(i, value, text(i)) for i, value in zip(*row, strict=True)) for row in rows]
