"""OpenAI's chat completions: requests become calls to the daemon, and its events become answers. Pure."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from daemon.http.errors import invalid
from daemon.http.generation import Answer, Ask, tool_places, without_idle_form
from daemon.http.in_words import arguments
from daemon.http.openai.allowed_tools import allowed_names
from daemon.http.openai.chat_types import (
    AllowedTools,
    AnsweredCall,
    AnsweredFunction,
    AnsweredMessage,
    AnyTool,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    ChunkChoice,
    Message,
    OtherTool,
    Part,
    ResponseFormat,
    Tool,
    ToolChoice,
)
from daemon.http.openai.logprobs import chat_scores
from daemon.http.openai.sampling import sampling, total, usage
from mlx_sidecar import Delta, Finished, GeneratedToolCall, GenerateEvent, GenerateOptions, Started, ToolCallDelta
from mlx_sidecar import Message as Turn
from mlx_sidecar import Tool as Offered
from mlx_sidecar import ToolCall as Called

ArgumentT = TypeVar("ArgumentT", bool, str)

DAY_SECONDS = 86_400.0
"""Longest time for which a prefix is kept."""


def ask(request: ChatRequest) -> Ask:
    """
    Return the call that a request asks for.

    Raises:
        Problem: If parameters contradict each other.
    """
    options = sampling(request)
    _add_tools(options, request)
    if request.parallel_tool_calls is False:
        options["stop_at_tool_call"] = True
    _add_format(options, request.response_format)
    places = tool_places([index for index, one in enumerate(request.tools or ()) if isinstance(one, Tool)])
    places |= _add_limit(options, request) | _add_template(options, request)
    if request.prompt_cache_retention == "24h":
        options["keep"] = DAY_SECONDS
    _check(request)
    if request.logprobs:
        options["top_logprobs"] = request.top_logprobs or 0
    notes = [*_left_out(request.tools or ()), *without_idle_form(options, "response_format")]
    turns = [_turn(message, f"messages[{index}]", notes) for index, message in enumerate(request.messages)]
    return Ask(request.model, turns, options, notes=notes, places=places)


def _check(request: ChatRequest) -> None:
    """Refuse parameters that would have no effect, or cannot be had together, and turns that say nothing."""
    for index, message in enumerate(request.messages):
        if message.content is None and message.role != "assistant":
            raise invalid(f"messages[{index}].content", "is missing; only turns of the assistant can be without it")
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options", "is only for requests with `stream`")
    if request.top_logprobs and not request.logprobs:
        raise invalid("top_logprobs", "is only for requests with `logprobs`")
    if request.continue_final_message and request.add_generation_prompt:
        raise invalid("add_generation_prompt", "begins a message; it cannot go with `continue_final_message`")


def _turn(message: Message, place: str, notes: list[str]) -> Turn:
    """Return a message as a turn; a call with arguments that are no JSON object adds a note."""
    calls = []
    for number, call in enumerate(message.tool_calls or ()):
        given, unread = arguments(call.function.arguments)
        if unread:
            notes.append(f"{place}.tool_calls[{number}].function.arguments is no JSON object: the model is told so")
        calls.append(Called(call.id, call.function.name, given))
    return Turn(
        role="system" if message.role == "developer" else message.role,
        content=_text(message.content or ()),
        reasoning_content=message.reasoning_content or message.reasoning or "",
        tool_calls=calls,
        tool_call_id=message.tool_call_id or "",
    )


def _text(parts: Sequence[Part]) -> str:
    return "".join(part.text or part.refusal for part in parts)


def _add_tools(options: GenerateOptions, request: ChatRequest) -> None:
    tools = []
    for index, tool in enumerate(request.tools or ()):
        if isinstance(tool, OtherTool):
            continue
        if tool.function is None:
            raise invalid(f"tools[{index}].function", "is missing; it names the tool and its parameters")
        tools.append(Offered(tool.function.name, tool.function.description or "", tool.function.parameters or ""))
    if tools:
        options["tools"] = tools
    _add_choice(options, request)


def _add_choice(options: GenerateOptions, request: ChatRequest) -> None:
    match request.tool_choice:
        case ToolChoice(type="function", function=None):
            raise invalid("tool_choice.function", "is missing; it names the tool to call")
        case ToolChoice(type="function", function=chosen) if chosen is not None:
            options["tool_choice"] = "required"
            options["required_tool"] = chosen.name
        case ToolChoice(type="allowed_tools", allowed_tools=None):
            raise invalid("tool_choice.allowed_tools", "is missing; it names the tools to choose from")
        case ToolChoice(type="allowed_tools", allowed_tools=AllowedTools() as some):
            options["tool_choice"] = some.mode
            options["allowed_tools"] = allowed_names(
                [(one.type, one.function.name if one.function is not None else None) for one in some.tools],
                place="tool_choice.allowed_tools.tools",
                named=".function.name",
                told={one.function.name for one in request.tools or () if isinstance(one, Tool) and one.function},
                left_out={one.type for one in request.tools or () if isinstance(one, OtherTool)},
            )
        case ToolChoice(type="none" | "auto" | "required" as mode) if mode == "required" or options.get("tools"):
            options["tool_choice"] = mode


def _add_limit(options: GenerateOptions, request: ChatRequest) -> dict[str, str]:
    """Let the newer name of the limit win, and return its place, see `Ask.places`."""
    if request.max_completion_tokens is None:
        return {}
    options["max_tokens"] = request.max_completion_tokens
    return {"max_tokens": "max_completion_tokens"}


def _add_template(options: GenerateOptions, request: ChatRequest) -> dict[str, str]:
    """Pass on what the chat template reads, and return where the effort and the switch come from."""
    arguments = dict(request.chat_template_kwargs or {})
    thinking, effort = _argument(arguments, "enable_thinking", bool), _argument(arguments, "reasoning_effort", str)
    places = {"chat.reasoning_effort": "chat_template_kwargs.reasoning_effort"} if effort else {}
    if request.reasoning_effort == "none":
        if thinking or effort:
            raise invalid("reasoning_effort", "is `none`, and `chat_template_kwargs` asks for reasoning; leave one out")
        places = {} if thinking is False else {"chat.enable_thinking": "reasoning_effort"}
        thinking = False
    elif request.reasoning_effort:
        if effort not in (None, request.reasoning_effort):
            raise invalid("reasoning_effort", "is another one than that of `chat_template_kwargs`; leave one out")
        effort, places = request.reasoning_effort, {}
    if effort:
        options["reasoning_effort"] = effort
    if thinking is not None:
        options["enable_thinking"] = thinking
    if arguments:
        options["template_args"] = arguments
    if request.continue_final_message:
        options["continue_final_message"] = True
    elif request.add_generation_prompt is not None:
        options["add_generation_prompt"] = request.add_generation_prompt
    return places


def _argument(arguments: dict[str, Any], name: str, kind: type[ArgumentT]) -> ArgumentT | None:
    """Take out of a template's arguments what the daemon has a field of its own for; None if it is not there."""
    given = arguments.pop(name, None)
    if given is not None and not isinstance(given, kind):
        raise invalid(f"chat_template_kwargs.{name}", f"is no {'boolean' if kind is bool else 'text'}")
    return given


def _left_out(tools: Sequence[AnyTool]) -> list[str]:
    """Return a note for each tool that the model is not told of. Its kind is the caller's word: it is not repeated."""
    others = [index for index, one in enumerate(tools) if isinstance(one, OtherTool)]
    return [f"tools[{index}] is left out: only functions" for index in others]


def _add_format(options: GenerateOptions, form: ResponseFormat | None) -> None:
    if form is None or form.type == "text":
        return
    if form.type == "json_object":
        options["json_object"] = True
    elif form.json_schema is None or form.json_schema.schema_ is None:
        raise invalid("response_format.json_schema.schema", "is missing; give it, or the type `json_object`")
    else:
        options["json_schema"] = form.json_schema.schema_


def completion(answers: Sequence[Answer], now: float | None = None) -> ChatCompletion:
    """Return a whole answer; `answers` are its samples."""
    started = answers[0].started
    return ChatCompletion(
        id=answer_id(started),
        object="chat.completion",
        created=int(time.time() if now is None else now),
        model=started.model,
        choices=[_whole_choice(answer) for answer in answers],
        usage=usage(total([answer.finished.usage for answer in answers])),
    )


def _whole_choice(answer: Answer) -> ChatChoice:
    message = AnsweredMessage(role="assistant", content=answer.text or None, refusal=None)
    if not answer.text and not answer.calls:
        message.content = ""
    if answer.reasoning:
        message.reasoning_content = answer.reasoning
    if answer.calls:
        message.tool_calls = [_whole_call(call) for call in answer.calls]
    scores = chat_scores(answer.logprobs) if answer.logprobs else None
    end = answer.finished
    return ChatChoice(index=end.index, message=message, logprobs=scores, finish_reason=end.reason)


def answer_id(started: Started) -> str:
    """Return the id of an answer. It has the request's id of the daemon's log."""
    return f"chatcmpl-{started.request_id}"


def _whole_call(call: GeneratedToolCall) -> AnsweredCall:
    function = AnsweredFunction(name=call.name, arguments=call.arguments_json)
    return AnsweredCall(index=call.index, id=call.id, type="function", function=function)


class ChatStream:
    """
    The chunks of a streamed answer.

    Args:
        samples: Answers that were asked for.
        include_usage: Whether a last chunk has the usage.
        now: Seconds since 1970; None for the time of the first event.
    """

    def __init__(self, *, samples: int = 1, include_usage: bool, now: float | None = None) -> None:
        self._samples = samples
        self._include_usage = include_usage
        self._now = now
        self._id = self._model = ""
        self._ends: list[Finished] = []
        self._void: Counter[int] = Counter()
        """Calls of each sample that were begun and turned out to be none. The daemon uses their indexes again."""

    def chunks(self, event: GenerateEvent) -> Iterator[ChatChunk]:
        """Yield what a client gets of an event."""
        match event:
            case Started():
                self._id, self._model = answer_id(event), event.model
                self._now = time.time() if self._now is None else self._now
                for index in range(self._samples):
                    yield self._chunk(index, AnsweredMessage(role="assistant", content=""))
            case Delta():
                yield from self._delta(event)
            case Finished():
                self._ends.append(event)
                yield self._chunk(event.index, AnsweredMessage.model_construct(set()), event.reason)
                if self._include_usage and len(self._ends) == self._samples:
                    yield self._last()

    def _delta(self, delta: Delta) -> Iterator[ChatChunk]:
        pieces = list(self._pieces(delta))
        if delta.logprobs and not pieces:
            pieces = [AnsweredMessage(content="")]  # tokens of reasoning or of a call that is not whole yet
        for number, piece in enumerate(pieces):
            chunk = self._chunk(delta.index, piece)
            if delta.logprobs and number == 0:
                chunk.choices[0].logprobs = chat_scores(delta.logprobs)
            yield chunk

    def _pieces(self, delta: Delta) -> Iterator[AnsweredMessage]:
        """Yield the parts of a delta, each on its own: reasoning, text, pieces of calls, as they come in an answer."""
        if delta.reasoning:
            yield AnsweredMessage(reasoning_content=delta.reasoning)
        if delta.text:
            yield AnsweredMessage(content=delta.text)
        for call in delta.tool_call_deltas:
            if call.withdrawn:
                # OpenAI's streams cannot take back what they sent. The call stays cut short, under its own index.
                self._void[delta.index] += 1
            else:
                yield AnsweredMessage(tool_calls=[_piece_of(call, self._void[delta.index])])

    def _chunk(self, index: int, delta: AnsweredMessage, reason: str | None = None) -> ChatChunk:
        choice = ChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=reason)
        chunk = self._empty([choice])
        if self._include_usage:
            chunk.usage = None  # as OpenAI's: null in each chunk but the last
        return chunk

    def _last(self) -> ChatChunk:
        chunk = self._empty([])
        chunk.usage = usage(total([end.usage for end in self._ends]))
        return chunk

    def _empty(self, choices: list[ChunkChoice]) -> ChatChunk:
        return ChatChunk(
            id=self._id,
            object="chat.completion.chunk",
            created=int(self._now or 0),
            model=self._model,
            choices=choices,
        )


def _piece_of(call: ToolCallDelta, void: int) -> AnsweredCall:
    """Return a piece of a call; id, type and name are in its first piece alone."""
    index = call.index + void
    if not call.id:
        return AnsweredCall(index=index, function=AnsweredFunction(arguments=call.arguments_json))
    function = AnsweredFunction(name=call.name, arguments=call.arguments_json)
    return AnsweredCall(index=index, id=call.id, type="function", function=function)
