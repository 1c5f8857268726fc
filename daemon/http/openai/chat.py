"""OpenAI's chats: requests become calls to the daemon. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from daemon.http.errors import invalid
from daemon.http.generation import Ask, tool_places, without_idle_form
from daemon.http.in_words import arguments
from daemon.http.openai.allowed_tools import allowed_names
from daemon.http.openai.chat_types import (
    AllowedTools,
    AnyTool,
    ChatRequest,
    Message,
    OtherTool,
    Part,
    ResponseFormat,
    Tool,
    ToolChoice,
)
from daemon.http.openai.sampling import sampling
from mlx_sidecar import GenerateOptions
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
    places = tool_places([index for index, tool in enumerate(request.tools or ()) if isinstance(tool, Tool)])
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
        given, unread = arguments(call.function.arguments or "")
        if unread:
            notes.append(f"{place}.tool_calls[{number}].function.arguments is no JSON object: the model is told so")
        calls.append(Called(call.id, call.function.name, given))
    return Turn(
        role="system" if message.role == "developer" else message.role,
        content=_text(message.content or ()),
        reasoning_content=_reasoning(message),
        tool_calls=calls,
        tool_call_id=message.tool_call_id or "",
    )


def _reasoning(message: Message) -> str:
    """Return the reasoning of a turn, under whichever name it comes."""
    of_parts = (part.reasoning_content for part in message.content or ())
    named = (message.reasoning_content, message.reasoning, message.reasoning_text, message.cot_summary, *of_parts)
    details = [one for one in message.reasoning_details or () if isinstance(one, dict)]
    texts = [one.get("text") or one.get("summary") for one in details]
    return next(filter(None, named), "") or "".join(text for text in texts if isinstance(text, str))


def _text(parts: Sequence[Part]) -> str:
    return "".join(part.text or part.refusal or "" for part in parts)


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
                [(tool.type, tool.function.name if tool.function is not None else None) for tool in some.tools],
                place="tool_choice.allowed_tools.tools",
                named=".function.name",
                told={tool.function.name for tool in request.tools or () if isinstance(tool, Tool) and tool.function},
                left_out={tool.type for tool in request.tools or () if isinstance(tool, OtherTool)},
            )
        case ToolChoice(type="none" | "auto" | "required" as mode) if mode == "required" or options.get("tools"):
            options["tool_choice"] = mode


def _add_limit(options: GenerateOptions, request: ChatRequest) -> dict[str, str]:
    """Keep to both names of the limit: the smaller one holds. Return its place, see `Ask.places`."""
    newer, older = request.max_completion_tokens, request.max_tokens
    if newer is None or (older is not None and older < newer):
        return {}
    options["max_tokens"] = newer
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
    others = [index for index, tool in enumerate(tools) if isinstance(tool, OtherTool)]
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
