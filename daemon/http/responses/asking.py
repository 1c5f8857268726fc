"""OpenAI's responses: requests become calls to the daemon. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from daemon.http.errors import invalid
from daemon.http.generation import Ask, without_idle_form
from daemon.http.openai.allowed_tools import allowed_names
from daemon.http.responses.item_types import Item
from daemon.http.responses.offered import left_out, offered
from daemon.http.responses.request_types import (
    Asked,
    CountRequest,
    OtherTool,
    ReasoningOptions,
    ResponseRequest,
    TextFormat,
    ToolChoice,
)
from daemon.http.responses.turns import Turns
from mlx_sidecar import GenerateOptions, Message

DAY_SECONDS = 86_400.0
"""How long a prefix is kept with `prompt_cache_retention` 24h."""


def ask(request: ResponseRequest, before: Sequence[Item], given: Sequence[Item]) -> Ask:
    """
    Return the call that a request asks for.

    Args:
        request: The request.
        before: The items of the conversation so far, from answers that are kept.
        given: The items of the request, references resolved.

    Raises:
        Problem: If parameters contradict each other, or there is no prompt.
    """
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options", "is only for requests with `stream`")
    return _asked(request, before, given, _options(request))


def counted(request: CountRequest, before: Sequence[Item], given: Sequence[Item]) -> Ask:
    """Return the call with the prompt that is to be counted, see `ask`. It has the options of a prompt."""
    options = GenerateOptions()
    _add_tools(options, request)
    _add_reasoning(options, request.reasoning)
    _add_format(GenerateOptions(), request.text.format if request.text is not None else None)  # it has to be whole
    return _asked(request, before, given, options)


def _asked(request: Asked, before: Sequence[Item], given: Sequence[Item], options: GenerateOptions) -> Ask:
    turns = Turns()
    for item in before:
        turns.add(item, "previous_response_id")
    for index, item in enumerate(given):
        turns.add(item, f"input[{index}]")
    system = [Message("system", request.instructions)] if request.instructions else []
    prompt = [*system, *turns.finished()]
    places = {f"chat.tools[{told}]": f"chat.{one.place}" for told, one in enumerate(offered(request.tools))}
    places |= turns.places(len(system))
    if system:
        places |= dict.fromkeys(("chat.messages[0]", "chat.messages[0].content"), "instructions")
    if not prompt:
        raise invalid("input", "is empty, and so is the conversation before it")
    notes = [*left_out(request.tools), *without_idle_form(options, "text.format"), *turns.notes]
    return Ask(request.model, prompt, options, notes=notes, places=places)


def _options(request: ResponseRequest) -> GenerateOptions:
    options = GenerateOptions(
        model_defaults=True, max_tokens=request.max_output_tokens, temperature=request.temperature
    )
    if request.top_p not in (None, 1) and request.temperature != 0:
        options["top_p"] = request.top_p
    if request.prompt_cache_retention == "24h":
        options["keep"] = DAY_SECONDS
    if request.top_logprobs or "message.output_text.logprobs" in (request.include or ()):
        options["top_logprobs"] = request.top_logprobs or 0
    if request.parallel_tool_calls is False:
        options["stop_at_tool_call"] = True
    _add_tools(options, request)
    _add_format(options, request.text.format if request.text is not None else None)
    _add_reasoning(options, request.reasoning)
    return options


def _add_tools(options: GenerateOptions, request: Asked) -> None:
    tools = [one.told() for one in offered(request.tools)]
    if tools:
        options["tools"] = tools
    match request.tool_choice:
        case ToolChoice(type="function" | "custom", name=None):
            raise invalid("tool_choice.name", "is missing; it names the tool to call")
        case ToolChoice(type="function" | "custom", name=str(name)):
            options["tool_choice"] = "required"
            options["required_tool"] = name
        case ToolChoice(type="allowed_tools", mode=None):
            raise invalid("tool_choice.mode", "is missing; it is `auto` or `required`")
        case ToolChoice(type="allowed_tools", mode="auto" | "required" as mode, tools=some):
            options["tool_choice"] = mode
            options["allowed_tools"] = allowed_names(
                [(one.type, one.name) for one in some or ()],
                place="tool_choice.tools",
                named=".name",
                told={tool.name for tool in tools},
                left_out={one.type for one in request.tools or () if isinstance(one, OtherTool)},
            )
        case ToolChoice(type="required"):
            options["tool_choice"] = "required"
        case ToolChoice(type="none" | "auto" as mode) if tools:
            options["tool_choice"] = mode


def _add_format(options: GenerateOptions, form: TextFormat | None) -> None:
    if form is None or form.type == "text":
        return
    if form.type == "json_object":
        options["json_object"] = True
    elif form.schema_ is None:
        raise invalid("text.format.schema", "is missing; give it, or the type `json_object`")
    else:
        options["json_schema"] = form.schema_


def _add_reasoning(options: GenerateOptions, reasoning: ReasoningOptions | None) -> None:
    """Pass the effort on; none is an effort that templates know as a switch."""
    if reasoning is None or reasoning.effort is None:
        return
    if reasoning.effort == "none":
        options["enable_thinking"] = False
    else:
        options["reasoning_effort"] = reasoning.effort


def without_effort(asked: Ask) -> Ask:
    """Return a call without an effort, for models that have none: agents send one to all models."""
    unwanted = ("enable_thinking", "reasoning_effort")
    options = {name: value for name, value in asked.options.items() if name not in unwanted}
    return replace(asked, options=cast("GenerateOptions", options))


EFFORT_FIELDS = ("chat.enable_thinking", "chat.reasoning_effort")
"""Fields that the daemon names if a model has no effort, or no such switch."""
