"""Events of a running request, as types of the engine; the outbox turns them into messages of the API."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from daemon.engine.output.detokenizer import Piece, Token
from daemon.engine.prompt.places import Place
from daemon.kv.miss import Miss


class FinishReason(Enum):
    """Why an answer ended."""

    STOP = auto()
    """A stop id, a stop string, or the model's end of a sequence."""
    LENGTH = auto()
    """`max_tokens` were generated."""
    TOOL_CALLS = auto()
    """The model ended its answer, and called tools in it."""


@dataclass(frozen=True, slots=True)
class Started:
    """
    The prompt was looked up in the prefix cache; the first event of a request.

    Attributes:
        request_id: The id that callers know the request by.
        model: The name that its model was asked for by.
        prompt_tokens: Tokens of the prompt.
        cached_tokens: Tokens of it with reused KV.
        warnings: What is not as the caller had it, a sentence each.
        miss: Why no more of it was reused; None if all was that could be.
        place: Where the token of the miss lies in the request; None if that does not matter.
        disk_tokens: Tokens of `cached_tokens` that came from the disk.
    """

    request_id: str
    model: str
    prompt_tokens: int
    cached_tokens: int
    warnings: tuple[str, ...] = ()
    miss: Miss | None = None
    place: Place | None = None
    disk_tokens: int = 0


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """`done` of `total` tokens of the prompt are in the cache."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Log-probabilities of consecutive tokens of the prompt; the first of `tokens` is at position `start`."""

    start: int
    tokens: list[Token]


@dataclass(frozen=True, slots=True)
class Delta:
    """
    The next piece of an answer.

    Attributes:
        piece: Text, tokens, reasoning and tool calls.
        logprobs: Whether the tokens' log-probabilities are reported.
        index: The sample that it is a piece of.
    """

    piece: Piece
    logprobs: bool
    index: int = 0


@dataclass(frozen=True, slots=True)
class Guesses:
    """Tokens that a source guessed, and how many of them were right; `source` as `Speculation` in `request.py`."""

    source: int
    guessed: int
    accepted: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request: of its prompt, reused, generated, guessed by the draft model, guessed right, reasoning."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    draft_tokens: int = 0
    accepted_tokens: int = 0
    reasoning_tokens: int = 0
    guesses: tuple[Guesses, ...] = ()


@dataclass(frozen=True, slots=True)
class Timings:
    """Spans of a request in seconds. The first five add up to the time to the first token, `first_token`."""

    queue: float
    load: float
    lookup: float
    restore: float
    prefill: float
    decode: float
    first_token: float


@dataclass(frozen=True, slots=True)
class Finished:
    """
    An answer is complete; the last event of a request, or of one of its samples.

    Attributes:
        reason: Why it ended.
        stop_match: The stop string that ended it; empty if none did.
        usage: Its tokens.
        timings: Its times.
        index: The sample that has ended.
        seed: The seed of its tokens; None if it is greedy.
        more: Whether other samples of the request are still to end.
    """

    reason: FinishReason
    stop_match: str
    usage: Usage
    timings: Timings
    index: int = 0
    seed: int | None = None
    more: bool = False


Event = Started | PrefillProgress | PromptLogprobs | Delta | Finished
