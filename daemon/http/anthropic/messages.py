"""Anthropic's messages: requests become calls to the daemon. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator

from daemon.http.anthropic.blocks import CacheControl
from daemon.http.anthropic.conversation import turns
from daemon.http.anthropic.request_types import (
    Conversation,
    CountRequest,
    CustomTool,
    MessagesRequest,
    OutputConfig,
    ServerTool,
    Thinking,
    ToolChoice,
)
from daemon.http.errors import invalid
from daemon.http.generation import Ask, tool_places, without_idle_form
from daemon.http.parameters import objects
from mlx_sidecar import GenerateOptions, Tool

_KEPT_SECONDS = {None: 300.0, "5m": 300.0, "1h": 3600.0}
"""How long a mark keeps a prefix, by its `ttl`."""


def asked(request: MessagesRequest) -> Ask:
    """
    Return the call that a request asks for.

    Raises:
        Problem: If parameters contradict each other.
    """
    options = GenerateOptions(
        max_tokens=request.max_tokens,
        model_defaults=True,
        temperature=request.temperature,
        stop=request.stop_sequences or None,
        keep=_kept(request),
    )
    if request.temperature != 0:  # a greedy answer has one choice
        options["top_p"] = request.top_p
        options["top_k"] = request.top_k
    if request.output_config is not None and request.output_config.format is not None:
        options["json_schema"] = request.output_config.format.schema_
    if request.thinking is not None:
        options["reasoning_budget"] = request.thinking.budget_tokens
    if request.tool_choice is not None and request.tool_choice.disable_parallel_tool_use:
        options["stop_at_tool_call"] = True
    return _asked(request, options)


def counted(request: CountRequest) -> Ask:
    """
    Return the call with the prompt that is to be counted.

    Raises:
        Problem: If parameters contradict each other.
    """
    return _asked(request, GenerateOptions())


def _asked(request: Conversation, options: GenerateOptions) -> Ask:
    found = turns(request)
    _add_tools(options, request)
    _add_choice(options, request.tool_choice)
    _add_thinking(options, request.thinking, request.output_config)
    if found.turns[-1].role == "assistant":
        if found.turns[-1].tool_calls:
            raise invalid(found.places[-1], "has calls of tools: a turn with their results comes next")
        options["continue_final_message"] = True
        if options.pop("reasoning_budget", None) is not None:
            found.notes.append("thinking.budget_tokens is left out: the answer goes on as text")
    notes = [*_left_out(request), *without_idle_form(options, "output_config.format"), *found.notes]
    told = [index for index, tool in enumerate(request.tools or ()) if isinstance(tool, CustomTool)]
    places = tool_places(told) | {f"chat.messages[{index}]": place for index, place in enumerate(found.places)}
    return Ask(request.model, found.turns, options, notes=notes, places=places)


def _kept(request: MessagesRequest) -> float | None:
    """Return the seconds for which the prompt is kept: those of the longest of its marks."""
    marks = [_KEPT_SECONDS[mark.ttl] for _, mark in objects(request) if isinstance(mark, CacheControl)]
    return max(marks, default=None)


def _add_tools(options: GenerateOptions, request: Conversation) -> None:
    tools = [_offered(tool) for tool in request.tools or () if isinstance(tool, CustomTool)]
    if tools:
        options["tools"] = tools


def _offered(tool: CustomTool) -> Tool:
    examples = [f"Example: {json.dumps(one, ensure_ascii=False)}" for one in tool.input_examples or ()]
    return Tool(tool.name, "\n".join([*([tool.description] if tool.description else []), *examples]), tool.input_schema)


def _left_out(request: Conversation) -> Iterator[str]:
    """Yield a note for each tool that the model is not told of. Its kind is the caller's word: it is not repeated."""
    for index, tool in enumerate(request.tools or ()):
        if isinstance(tool, ServerTool):
            yield f"tools[{index}] is left out: only custom tools"


def _add_choice(options: GenerateOptions, choice: ToolChoice | None) -> None:
    if choice is None:
        return
    if (choice.type == "tool") != (choice.name is not None):
        raise invalid("tool_choice.name", "is the tool to call, with type `tool` and no other")
    if choice.type in ("any", "tool"):
        options["tool_choice"] = "required"
        options["required_tool"] = choice.name or ""
    elif options.get("tools"):
        options["tool_choice"] = "none" if choice.type == "none" else "auto"


def _add_thinking(options: GenerateOptions, thinking: Thinking | None, config: OutputConfig | None) -> None:
    if thinking is not None:
        if (thinking.type == "enabled") != (thinking.budget_tokens is not None):
            raise invalid("thinking.budget_tokens", "is for type `enabled`, which needs it")
        if thinking.type != "adaptive":
            options["enable_thinking"] = thinking.type == "enabled"
    if config is not None and config.effort is not None:
        options["reasoning_effort"] = config.effort
