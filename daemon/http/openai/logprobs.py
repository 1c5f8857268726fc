"""OpenAI's two forms of log-probabilities: of chat completions, and of completions of plain prompts. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel

from daemon.http.generation import finite
from mlx_sidecar import TokenLogprob, TopLogprob


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
    return ChatScores(content=[_score(token) for token in scored], refusal=None)


def _score(token: TokenLogprob) -> Score:
    return Score(**_top(token).model_dump(), top_logprobs=[_top(other) for other in token.top])


def _top(token: TokenLogprob | TopLogprob) -> TopScore:
    return TopScore(token=token.text, logprob=finite(token.logprob), bytes=list(token.text.encode()))


class Offsets:
    """
    Finds where tokens begin in a text that is still written, by the texts of the tokens alone.

    These need not add up to the text: parts of a character are U+FFFD each, and some special tokens are no text.
    Such a token begins where the token before it ended. The next token is looked for as far behind as they may reach.
    """

    def __init__(self, text: str = "") -> None:
        self._text = text
        self._taken = 0
        """Characters of `_text` that have tokens."""
        self._dropped = 0
        """Characters of the whole text before `_text`."""
        self._slack = 0
        """Most characters that tokens which were not found may have behind `_taken`."""

    def add(self, text: str) -> None:
        """Add to the text."""
        self._dropped += self._taken
        self._text, self._taken = self._text[self._taken :] + text, 0

    def next(self, token: str) -> int:
        """Return where the next token begins; each token is asked for once, in order."""
        found = self._text.find(token, self._taken, self._taken + self._slack + len(token)) if token else -1
        if found < 0:
            self._slack += len(token)
            return self._dropped + self._taken
        self._taken, self._slack = found + len(token), 0
        return self._dropped + found


def plain_scores(scored: Sequence[TokenLogprob], offsets: Offsets, *, first: str | None, top: bool) -> PlainScores:
    """
    Return the log-probabilities of a text's tokens.

    Args:
        scored: The tokens: those of the prompt but its first, if it is echoed, then those of the answer.
        offsets: Where they begin in the text.
        first: Text of the prompt's first token, which has no log-probability; None if no prompt is echoed.
        top: Whether others were asked for.
    """
    echo = first is not None
    tokens = [first or ""] * echo + [token.text for token in scored]
    return PlainScores(
        tokens=tokens,
        token_logprobs=[None] * echo + [finite(token.logprob) for token in scored],
        top_logprobs=[None] * echo + [_likely(token) for token in scored] if top else None,
        text_offset=[offsets.next(token) for token in tokens],
    )


def _likely(token: TokenLogprob) -> dict[str, float]:
    """Return the likeliest tokens by their text. Of several with one text, as parts of characters, the first counts."""
    found: dict[str, float] = {}
    for other in token.top:
        found.setdefault(other.text, finite(other.logprob))
    return found
