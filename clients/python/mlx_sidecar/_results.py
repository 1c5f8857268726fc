"""Results of loads, generations and invalidations, as frozen dataclasses. Times are seconds, sizes are bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from mlx_sidecar._messages import ToolCall


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """
    Progress of a load.

    Attributes:
        stage: "queued", "downloading", "loading" or "warming_up".
        bytes_done: Bytes done in this stage.
        bytes_total: Bytes to do in this stage; 0 if unknown. Can grow during a download.
        evicting: Models that are evicted to make room for this model.
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
        warnings: What is not as the request had it: a sentence each, which begins with the field.
    """

    request_id: str
    model: str
    prompt_tokens: int
    cached_tokens: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """
    Progress of the prefill.

    Attributes:
        done: Prompt tokens in the KV cache, with reused tokens.
        total: Tokens of the prompt.
    """

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """
    An alternative token at a position.

    Attributes:
        token_id: The token.
        logprob: Its natural log-probability.
    """

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """
    Log-probability of a token under the model, before sampling options and the response format.

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
        token_ids: Tokens that this piece completes, with the tokens of reasoning and tool calls.
        logprobs: One entry for each of `token_ids`, if `top_logprobs` was given.
        reasoning: Reasoning before the answer; chat prompts only.
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
        completion_tokens: Tokens generated, with the tokens that ended the generation.
        draft_tokens: Tokens that the draft model proposed.
        accepted_tokens: Proposed tokens that the model accepted.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    draft_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """
    Durations of a request's stages in seconds; None if the daemon sent none.

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
        timings: Durations of its stages.
        request_id: The request's id, as given or as generated by the daemon.
        model: The model that answered.
        reasoning: The reasoning of all deltas.
        tool_calls: The calls of all deltas, as a `Message` takes them; their arguments are JSON text.
        warnings: What is not as the request had it: a sentence each, which begins with the field.
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
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Invalidated:
    """
    Result of an invalidation, or of its dry run.

    Attributes:
        models: Models with dropped weights.
        blocks: Blocks of 16 tokens that were dropped from the prefix cache.
        bytes_freed: Bytes that are free now.
        bytes_in_use: Bytes that the last request using them will free.
    """

    models: tuple[str, ...]
    blocks: int
    bytes_freed: int
    bytes_in_use: int


GenerateEvent: TypeAlias = Started | PrefillProgress | Delta | Finished
"""An event of a `GenerateStream`: one `Started`, then progress and deltas, one `Finished` at the end."""
