"""
Generations: one call to the daemon as an API asks for it, as events or as a whole answer.

The door adds what the APIs promise and the gRPC API leaves to its caller. `max_tokens` is an upper bound, so that it is
lowered to what the context holds. Without it an answer is as long as the model makes it, as far as `ANSWER_TOKENS`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import cast

from daemon.http.daemon_client import DaemonClient
from daemon.http.errors import renamed
from mlx_sidecar import (
    AsyncClient,
    ContextLengthExceeded,
    Delta,
    Finished,
    GeneratedToolCall,
    GenerateEvent,
    GenerateOptions,
    InvalidArgument,
    Prompt,
    PromptLogprobs,
    SidecarError,
    Started,
    TokenizeOptions,
    TokenLogprob,
)

NOTE = "x-mlx-sidecar-note"
"""Header with what a request has that has no effect."""
ANSWER_TOKENS = 32_768
"""Most tokens of an answer without a limit of its request. Agents set none, and write whole files in an answer."""
UNLIKELY = -9999.0
"""Log-probability of a token that is as good as impossible, as OpenAI has it; JSON has no infinity."""


@dataclass(frozen=True, slots=True)
class Ask:
    """
    What an API asks of the daemon.

    Attributes:
        model: Name of the model.
        prompt: Text, token ids or messages.
        options: Options of the call.
        notes: What the request has that has no effect and its sender may miss, such as a kind of tool. Header values.
        places: What the caller calls parts of the call that have another place in its request, by the daemon's name:
            "chat.messages[1]" may be "input[3]". Parts of a part may have places of their own.
        request_id: Name of the request in the daemon's log.
    """

    model: str
    prompt: Prompt
    options: GenerateOptions = field(default_factory=GenerateOptions)
    notes: Sequence[str] = ()
    places: Mapping[str, str] = field(default_factory=dict)
    request_id: str = field(default_factory=lambda: f"http-{secrets.token_hex(8)}")

    def headers(self, warnings: Sequence[str] = ()) -> dict[str, str]:
        """Return what the response tells of the request besides its answer; `warnings` are the daemon's, if known."""
        notes = [*self.notes, *warnings]
        return {"x-request-id": self.request_id, **({NOTE: _header_text("; ".join(notes))} if notes else {})}


def _header_text(text: str) -> str:
    """Return a text as a header may have it: printable ASCII, 2,000 characters at most."""
    return "".join(character if " " <= character <= "~" else "?" for character in text)[:2000]


async def events(client: AsyncClient, ask: Ask) -> AsyncGenerator[GenerateEvent]:
    """
    Yield the events of a generation. It is cancelled when this is closed.

    Raises:
        SidecarError: If the call failed.
    """
    begun = False
    options = cast("GenerateOptions", {**ask.options, "request_id": ask.request_id})
    if options.get("max_tokens") is None:
        options["max_tokens"] = ANSWER_TOKENS
    while True:
        try:
            async with client.generate(ask.model, ask.prompt, **options) as stream:
                async for event in stream:
                    begun = True
                    yield event
        except InvalidArgument as error:
            fitting = None if begun else _fitting(options, error)
            if fitting is None:
                raise _placed(error, client, ask) from error
            options = fitting
        else:
            return


async def count(client: AsyncClient, ask: Ask) -> int:
    """
    Return the number of tokens of a prompt; the options are those of Tokenize.

    Raises:
        SidecarError: If the call failed.
    """
    try:
        options = cast("TokenizeOptions", ask.options)
        return (await client.tokenize(ask.model, ask.prompt, count_only=True, **options)).count
    except InvalidArgument as error:
        raise _placed(error, client, ask) from error


def _placed(error: InvalidArgument, client: AsyncClient, ask: Ask) -> InvalidArgument:
    """Return an error of the daemon in its caller's words: with the caller's place of the part that it names."""
    name = error.field or ""
    found = _counted_from(client.left_out(ask.prompt), name) if isinstance(client, DaemonClient) else name
    part = max((place for place in ask.places if re.match(rf"{re.escape(place)}($|[.\[])", found)), key=len, default="")
    found = ask.places.get(part, "") + found.removeprefix(part)
    text = _too_long(error) or (str(error) if found == name else renamed(str(error), name, found))
    if (text, found) == (str(error), name):
        return error
    return type(error)(
        text,
        code=error.code,
        reason=error.reason,
        metadata=error.metadata,
        retry_after=error.retry_after,
        field=found or None,
        error_id=error.error_id,
    )


def finite(logprob: float) -> float:
    """Return a log-probability as answers have it."""
    return max(logprob, UNLIKELY)


def _too_long(error: InvalidArgument) -> str | None:
    """Return the text by which agents know that they have to shorten a conversation; None for other errors."""
    sizes = prompt_and_context(error) if isinstance(error, ContextLengthExceeded) else None
    if sizes is None or sizes[0] < sizes[1]:
        return None
    # OpenAI's words: LiteLLM, goose, Crush and opencode look for them, each for others of them.
    return (
        f"this model's maximum context length is {sizes[1]} tokens, but the prompt resulted in {sizes[0]} tokens; "
        "shorten it"
    )


def prompt_and_context(error: SidecarError) -> tuple[int, int] | None:
    """Return the tokens of a prompt that does not fit, and those that the context holds; None if they are unknown."""
    try:
        return int(error.metadata["prompt_tokens"]), int(error.metadata["context_length"])
    except (KeyError, ValueError):
        return None


def _counted_from(first: int, name: str) -> str:
    """Return the name of a part of the conversation where its turns are counted from another one."""
    return re.sub(r"^chat\.messages\[(\d+)\]", lambda turn: f"chat.messages[{first + int(turn[1])}]", name)


def tool_places(indexes: Sequence[int]) -> dict[str, str]:
    """Return the places of tools, see `Ask.places`; `indexes` are the caller's own, of those that the model knows."""
    return {f"chat.tools[{told}]": f"chat.tools[{index}]" for told, index in enumerate(indexes) if told != index}


def without_idle_form(options: GenerateOptions, name: str) -> list[str]:
    """Leave the form of a text, the caller's `name`, out of options for calls alone; return a note if there was one."""
    if options.get("tool_choice") != "required":
        return []
    schema, any_object = options.pop("json_schema", None), options.pop("json_object", False)
    return [f"{name} is left out: the answer is calls"] if schema is not None or any_object else []


def _fitting(options: GenerateOptions, error: InvalidArgument) -> GenerateOptions | None:
    """Return options without what the daemon refused, where the request means the same without; None if none are."""
    if isinstance(error, ContextLengthExceeded):
        room = _room(error)
        wanted: dict[str, int | None] | None = None
        if room is not None and room != options.get("max_tokens"):
            wanted = {"max_tokens": room}
    else:
        # The model is greedy by default: its answer is the same each time, which is what a seed asks for.
        greedy = error.field == "sampling.seed" and options.get("temperature") is None
        wanted = {"seed": None} if greedy and options.get("seed") is not None else None
    return None if wanted is None else cast("GenerateOptions", {**options, **wanted})


def _room(error: ContextLengthExceeded) -> int | None:
    """Return how many tokens fit after the prompt; None if the prompt alone is too long."""
    if (sizes := prompt_and_context(error)) is None:
        return None
    room = sizes[1] - sizes[0]
    return room if room > 0 and error.field == "max_tokens" else None


@dataclass(frozen=True, slots=True)
class Answer:
    """
    A whole answer, or one of its samples.

    Attributes:
        started: How it began.
        finished: How it ended.
        text: Its text.
        reasoning: What came before it.
        calls: The tool calls in it.
        logprobs: One for each token, if they were asked for.
        prompt_logprobs: One for each token of the prompt but the first, if they were asked for.
    """

    started: Started
    finished: Finished
    text: str
    reasoning: str
    calls: tuple[GeneratedToolCall, ...]
    logprobs: tuple[TokenLogprob, ...]
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


async def whole(client: AsyncClient, ask: Ask) -> Answer:
    """
    Return the answer of a generation, of several samples the first. It is cancelled when the task is.

    Raises:
        SidecarError: If the call failed.
    """
    return (await samples(client, ask))[0]


async def samples(client: AsyncClient, ask: Ask) -> list[Answer]:
    """Return the answer of each sample of a generation, as `whole` does."""
    async with aclosing(events(client, ask)) as seen:
        return collect_samples([event async for event in seen])


def collect(seen: Sequence[GenerateEvent]) -> Answer:
    """Return the answer that the events of a generation make. The first and the last are always there."""
    return collect_samples(seen)[0]


def collect_samples(seen: Sequence[GenerateEvent]) -> list[Answer]:
    """Return the answer that the events of each sample make, in the order of their indexes."""
    (started,) = [event for event in seen if isinstance(event, Started)]
    scores = [event for event in seen if isinstance(event, PromptLogprobs)]
    prompt_logprobs = tuple(token for event in scores for token in event.logprobs)
    ends = sorted((event for event in seen if isinstance(event, Finished)), key=lambda end: end.index)
    return [_answer(started, end, seen, prompt_logprobs) for end in ends]


def _answer(
    started: Started, end: Finished, seen: Sequence[GenerateEvent], prompt_logprobs: tuple[TokenLogprob, ...]
) -> Answer:
    deltas = [event for event in seen if isinstance(event, Delta) and event.index == end.index]
    return Answer(
        started=started,
        finished=end,
        text="".join(delta.text for delta in deltas),
        reasoning="".join(delta.reasoning for delta in deltas),
        calls=tuple(call for delta in deltas for call in delta.tool_calls),
        logprobs=tuple(token for delta in deltas for token in delta.logprobs),
        prompt_logprobs=prompt_logprobs,
    )
