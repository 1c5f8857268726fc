"""OpenAI's two forms of log-probabilities: of chat completions, and of completions of plain prompts. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel

from mlx_sidecar import TokenLogprob, TopLogprob

UNLIKELY = -9999.0
"""OpenAI's log-probability of a token that is as good as impossible; JSON has no infinity."""


class TopScore(BaseModel):
    """A token that was likely at a position."""

    token: str
    logprob: float
    bytes: list[int]


class Score(TopScore):
    """A token of an answer."""

    top_logprobs: list[TopScore]


class ChatScores(BaseModel):
    """The tokens of an answer, or of a piece of it."""

    content: list[Score]
    refusal: None = None


class PlainScores(BaseModel):
    """The tokens of a text. The first token of a prompt has no score."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


def chat_scores(scored: Sequence[TokenLogprob]) -> ChatScores:
    """Return the log-probabilities of an answer's tokens, those of its reasoning and of its calls included."""
    return ChatScores(content=[_score(one) for one in scored], refusal=None)


def _score(one: TokenLogprob) -> Score:
    return Score(**_top(one).model_dump(), top_logprobs=[_top(other) for other in one.top])


def _top(one: TokenLogprob | TopLogprob) -> TopScore:
    return TopScore(token=one.text, logprob=_finite(one.logprob), bytes=list(one.text.encode()))


def _finite(logprob: float) -> float:
    return max(logprob, UNLIKELY)


def plain_scores(scored: Sequence[TokenLogprob], *, first: str | None, top: bool, begin: int = 0) -> PlainScores:
    """
    Return the log-probabilities of a text's tokens.

    Args:
        scored: The tokens: those of the prompt but its first, if it is echoed, then those of the answer.
        first: Text of the prompt's first token, which has no log-probability; None if no prompt is echoed.
        top: Whether others were asked for.
        begin: Characters of the text before these tokens, of which a stream has sent the scores.
    """
    echo = first is not None
    offset = begin + len(first or "")
    offsets = []
    for one in scored:
        offsets.append(offset)
        offset += len(one.text)
    likely = [{other.text: _finite(other.logprob) for other in one.top} for one in scored]
    return PlainScores(
        tokens=[first or ""] * echo + [one.text for one in scored],
        token_logprobs=[None] * echo + [_finite(one.logprob) for one in scored],
        top_logprobs=[None] * echo + [*likely] if top else None,
        text_offset=[0] * echo + offsets,
    )
