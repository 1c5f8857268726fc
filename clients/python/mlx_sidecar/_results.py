"""What calls return: frozen copies of the daemon's answers. Times are seconds, sizes are bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from mlx_sidecar._messages import ToolCall


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """
    How far a load is.

    Attributes:
        stage: "queued", "downloading", "loading" or "warming_up".
        bytes_done: Bytes done in this stage.
        bytes_total: Bytes to do in this stage; 0 when that is not known. May grow while downloading.
        evicting: Models that are dropped to make room for this one.
    """

    stage: str
    bytes_done: int
    bytes_total: int
    evicting: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Started:
    """
    The first event of a generation.

    Attributes:
        request_id: The request's name, as given or as made.
        model: The model that answers.
        prompt_tokens: Tokens of the prompt.
        cached_tokens: Tokens of the prompt that need not be computed again.
    """

    request_id: str
    model: str
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """
    How far the prompt is computed.

    Attributes:
        done: Prompt tokens that are in the KV cache, reused ones included.
        total: Tokens of the prompt.
    """

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """
    A token that could have been at a position.

    Attributes:
        token_id: The token.
        logprob: Its natural log-probability.
    """

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """
    How likely a token was under the model, before sampling options and the form of the response.

    Attributes:
        token_id: The token.
        logprob: Its natural log-probability.
        top: The most likely tokens at this position, most likely first.
    """

    token_id: int
    logprob: float
    top: tuple[TopLogprob, ...]


@dataclass(frozen=True, slots=True)
class GeneratedToolCall:
    """
    A call that the model makes.

    Attributes:
        index: Position among the calls of this completion, from 0.
        id: Name of this call.
        name: Name of the tool; one of the request's.
        arguments_json: Arguments, a JSON object as text. They need not be what the tool's schema asks for,
            unless `tool_choice` was "required".
    """

    index: int
    id: str
    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class Delta:
    """
    A piece of the completion. All texts together are the whole text, all reasonings the whole reasoning.

    Attributes:
        text: Text; whole characters only, may be empty.
        token_ids: Tokens that this piece completes, those of reasoning and of tool calls included.
        logprobs: One entry for each of `token_ids`, if `top_logprobs` was given.
        reasoning: What the model thought before it answered; chat prompts only.
        tool_calls: Calls that are complete; chat prompts with `tools` only.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    reasoning: str = ""
    tool_calls: tuple[GeneratedToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """
    Tokens counted.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        cached_tokens: Tokens of the prompt that were not computed again.
        completion_tokens: Tokens generated, those that ended the generation included.
        draft_tokens: Tokens that the draft model guessed.
        accepted_tokens: How many of its guesses were right.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    draft_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """
    Where a request's time went, in seconds; None where the daemon did not say.

    Attributes:
        queue: Rendering, tokenising and waiting for a slot.
        load: Waiting for the model.
        lookup: Looking up the longest cached prefix.
        restore: Copying the cached prefix.
        prefill: Computing the rest of the prompt up to the first token.
        decode: From the first token to the last.
        first_token: From arrival to the first token.
    """

    queue: float | None
    load: float | None
    lookup: float | None
    restore: float | None
    prefill: float | None
    decode: float | None
    first_token: float | None


@dataclass(frozen=True, slots=True)
class Finished:
    """
    The last event of a generation.

    Attributes:
        reason: "stop", "length" or "tool_calls".
        stop_match: The stop string that matched; empty if none did.
        usage: Tokens counted.
        timings: Where the time went.
    """

    reason: str
    stop_match: str
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class Completion:
    """
    A whole generation.

    Attributes:
        text: The text of all deltas.
        token_ids: The tokens of all deltas.
        logprobs: One entry for each of `token_ids`, if `top_logprobs` was given.
        reason: "stop", "length" or "tool_calls".
        stop_match: The stop string that matched; empty if none did.
        usage: Tokens counted.
        timings: Where the time went.
        request_id: The request's name, as given or as made.
        model: The model that answered.
        reasoning: The reasoning of all deltas.
        tool_calls: The calls of all deltas, as a `Message` takes them; their arguments are JSON text.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    reason: str
    stop_match: str
    usage: Usage
    timings: Timings
    request_id: str
    model: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Invalidated:
    """
    What was dropped, or would have been.

    Attributes:
        models: Models whose weights were dropped.
        blocks: Blocks of 16 tokens that were dropped from the prefix cache.
        bytes_freed: Bytes that are free now.
        bytes_in_use: Bytes that are freed when their last user ends.
    """

    models: tuple[str, ...]
    blocks: int
    bytes_freed: int
    bytes_in_use: int


GenerateEvent: TypeAlias = Started | PrefillProgress | Delta | Finished
"""What a `GenerateStream` yields: one `Started`, then the others, one `Finished` at the end."""
