"""Results of loads, generations and invalidations, as frozen dataclasses. Times are seconds, sizes are bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from mlx_sidecar._logprobs import PromptLogprobs, TokenLogprob
from mlx_sidecar._messages import Message, ToolCall


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
class Miss:
    """
    Why a prompt was not reused further.

    Attributes:
        reason: "never_seen", "diverged", "evicted", "invalidated", "other_namespace", "too_short" or "resume_point".
        token: Tokens that the prompt has in common with the stored prompt that explains the miss. For "diverged" and
            "resume_point" it is the index of the first token that is not; else it is a number of whole blocks.
        resume_token: For "resume_point": tokens up to the resume point that was reused instead.
        message: For these two in a conversation: the index of the message that the token lies in; None if that is not
            known.
        character: For these two: where the token begins in the message's content, or in the prompt's text; None if
            that is not known.
        seen: Seconds since the stored prompt was last stored; None if that is not known.
        differs: For "other_namespace": the parts that differ: "weights", "adapter", "layout", "salt".
    """

    reason: str
    token: int
    resume_token: int
    message: int | None
    character: int | None
    seen: float | None
    differs: tuple[str, ...]


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
        miss: Why no more of it was reused; None if all was that could be.
        disk_tokens: Tokens of `cached_tokens` that were read from the disk.
    """

    request_id: str
    model: str
    prompt_tokens: int
    cached_tokens: int
    warnings: tuple[str, ...] = ()
    miss: Miss | None = None
    disk_tokens: int = 0


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
class GeneratedToolCall:
    """
    A call that the model makes.

    Attributes:
        index: Position among the calls of this completion, from 0.
        id: Name of this call.
        name: Name of the tool; one of the request's.
        arguments_json: Arguments, a JSON object as text. They are what the tool's schema asks for with `tool_choice`
            "required", and with "auto" as far as it is kept to.
    """

    index: int
    id: str
    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """
    A piece of a call that the model is writing.

    Attributes:
        index: Position among the calls of this completion, from 0.
        id: Name of this call; empty after its first piece.
        name: Name of the tool; empty after its first piece.
        arguments_json: The next part of the arguments. All parts of a whole call are its `arguments_json`.
        withdrawn: True: the call turned out to be none, and its pieces are void. Its text follows as text.
    """

    index: int
    id: str
    name: str
    arguments_json: str
    withdrawn: bool


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
        tool_call_deltas: Calls while they are written; each call of `tool_calls` comes here first.
        index: The sample that it is a piece of.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    reasoning: str = ""
    tool_calls: tuple[GeneratedToolCall, ...] = ()
    tool_call_deltas: tuple[ToolCallDelta, ...] = ()
    index: int = 0


@dataclass(frozen=True, slots=True)
class GuessCount:
    """
    Guesses of one source for one answer.

    Attributes:
        source: "ngram" or "draft".
        guessed: Tokens guessed.
        accepted: Guessed tokens that the model accepted.
    """

    source: str
    guessed: int
    accepted: int


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
        reasoning_tokens: Tokens generated as reasoning, with its marks; chat prompts only.
        guesses: Tokens guessed ahead, by source; only sources that guessed.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    draft_tokens: int = 0
    accepted_tokens: int = 0
    reasoning_tokens: int = 0
    guesses: tuple[GuessCount, ...] = ()


@dataclass(frozen=True, slots=True)
class Timings:
    """
    Durations of a request's stages in seconds; None if the daemon sent none.

    Attributes:
        queue: Waiting for an engine that starts, rendering, tokenising and waiting for a slot.
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
    The last event of a generation, or of one of its samples.

    Attributes:
        reason: "stop", "length" or "tool_calls".
        stop_match: The stop string that matched; empty if none did.
        usage: Tokens counted.
        timings: Where the time went.
        index: The sample that ended.
        seed: The seed that repeats it, alone; None if it is greedy.
    """

    reason: str
    stop_match: str
    usage: Usage
    timings: Timings
    index: int = 0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """
    A whole generation, or one of its samples.

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
        index: The sample that it is, from 0.
        seed: The seed that repeats it, alone; None if it is greedy.
        prompt_logprobs: One entry for each token of the prompt but the first, if `prompt_logprobs` was given.
        miss: Why no more of the prompt was reused; None if all was that could be.
        disk_tokens: Tokens of `usage.cached_tokens` that were read from the disk.
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
    index: int = 0
    seed: int | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    miss: Miss | None = None
    disk_tokens: int = 0

    @property
    def message(self) -> Message:
        """The answer as a turn of the conversation: its text, its reasoning and its calls, for the next prompt."""
        return Message("assistant", self.text, self.reasoning, self.tool_calls)


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


GenerateEvent: TypeAlias = Started | PrefillProgress | PromptLogprobs | Delta | Finished
"""
An event of a `GenerateStream`: one `Started`, then progress, log-probabilities of the prompt and deltas, and one
`Finished` for each sample, the last at the end.
"""
