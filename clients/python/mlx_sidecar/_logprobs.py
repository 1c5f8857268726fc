"""Log-probabilities of tokens, sampled ones and those of a prompt, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """
    An alternative token at a position.

    Attributes:
        token_id: The token.
        logprob: Its natural log-probability.
        text: Its text alone, as in `TokenLogprob`.
    """

    token_id: int
    logprob: float
    text: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """
    Log-probability of a token under the model, before sampling options and the response format.

    Attributes:
        token_id: The token.
        logprob: Its natural log-probability.
        top: The most likely tokens at this position, most likely first.
        text: Its text alone, its leading space included; bytes that are no whole character are U+FFFD.
    """

    token_id: int
    logprob: float
    top: tuple[TopLogprob, ...]
    text: str = ""


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """
    Log-probabilities of consecutive tokens of the prompt, if `prompt_logprobs` was given.

    Attributes:
        start: Position in the prompt of the first entry.
        logprobs: One entry for each token.
    """

    start: int
    logprobs: tuple[TokenLogprob, ...]
