"""What a request gives to its chat template besides the messages, and the mark at which a turn is left open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from daemon.engine.output.json_schema import changed
from daemon.engine.output.tool_calls import Tool
from daemon.engine.prompt.conversation import Turn, json_value
from daemon.engine.prompt.template_shape import FLAGS, SWITCHES, TemplateShape
from daemon.shared.errors import invalid
from mlx_sidecar.v1 import sidecar_pb2 as pb

_HERE = "mlxsidecarcontinueshere"
"""Stands at the end of a turn that is left open. It has no space, so a template that trims texts does not touch it."""


def template_options(
    request: pb.GenerateRequest, shape: TemplateShape, tools: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """
    Return the variables of a template besides the messages. A variable that it does not read is refused.

    Args:
        request: The request, which has a conversation.
        shape: The shape of the template.
        tools: Declarations of the tools that the model may call.

    Raises:
        SidecarError: INVALID_ARGUMENT with the field that has no effect on this template, or is no JSON.
    """
    chat = request.chat
    options = {name: _argument(name, text, chat, shape) for name, text in chat.template_args.items()}
    if chat.reasoning_effort:
        if "reasoning_effort" not in _known(shape):
            raise invalid("chat.reasoning_effort", "is not read by this model's chat template; leave it unset")
        options["reasoning_effort"] = chat.reasoning_effort
    if chat.HasField("enable_thinking"):
        options |= _thinking(request, shape)
    options["add_generation_prompt"] = not chat.continue_final_message
    if chat.HasField("add_generation_prompt"):
        options["add_generation_prompt"] = chat.add_generation_prompt
    if tools:
        options["tools"] = list(tools)
    return options


def _known(shape: TemplateShape) -> frozenset[str]:
    return shape.variables or frozenset()


def _thinking(request: pb.GenerateRequest, shape: TemplateShape) -> dict[str, Any]:
    """Return the switch of thinking. An answer in a form can begin with the form, whatever the template reads."""
    wanted = request.chat.enable_thinking
    if shape.switch is not None:
        yes, no = SWITCHES.get(shape.switch, (None, None))
        return {} if shape.switch == FLAGS else {shape.switch: yes if wanted else no}
    formed = request.HasField("response_format") or request.chat.tool_choice == pb.TOOL_CHOICE_REQUIRED
    if wanted or not formed:
        names = ", ".join((*SWITCHES, FLAGS))
        raise invalid("chat.enable_thinking", f"has no effect: this model's chat template reads none of {names}")
    return {}


def _argument(name: str, text: str, chat: pb.Chat, shape: TemplateShape) -> Any:
    field = f"chat.template_args[{name}]"
    if name not in _known(shape):
        raise invalid(field, "is not read by this model's chat template")
    if name == shape.switch and chat.HasField("enable_thinking"):
        raise invalid(field, "is what chat.enable_thinking sets; give one of them")
    return json_value(field, text)


def left_open(turns: list[Turn]) -> list[Turn]:
    """Return turns of which the last ends with a mark; `cut` removes the mark and all that follows it."""
    content = turns[-1]["content"]
    if isinstance(content, list):  # blocks, of which the last is the text if there is any
        texts = [block for block in content if block["type"] == "text"]
        text = (texts[0]["text"] if texts else "") + _HERE
        content = [*content[: len(content) - len(texts)], {"type": "text", "text": text}]
    else:
        content += _HERE
    return [*turns[:-1], {**turns[-1], "content": content}]


def cut(text: str, content: str) -> str:
    """
    Return the text of a conversation up to the end of its last turn.

    Args:
        text: A conversation of `left_open`, as the template wrote it.
        content: The content of its last turn. White space before it may be gone.

    Raises:
        SidecarError: INVALID_ARGUMENT if the template does not write the content as it is.
    """
    before, mark, _ = text.rpartition(_HERE)
    if not mark or not before.endswith(content.lstrip()):
        raise invalid(
            "chat.continue_final_message", "cannot be kept to: the model's chat template changes the last message"
        )
    return before


def declarations(tools: Sequence[Tool], shape: TemplateShape) -> list[dict[str, Any]]:
    """Return tools as a template takes them. A schema that it would fail at is spelled in another way."""
    return [replace(tool, parameters=_spelled(tool.parameters, shape)).declaration() for tool in tools]


def _spelled(schema: dict[str, Any], shape: TemplateShape) -> dict[str, Any]:
    if not shape.type_lists:
        schema = changed(schema, _without_type_list)
    if not shape.bare_schemas and "properties" not in schema:
        schema = {"type": "object", **schema, "properties": {}}
    return schema


def _without_type_list(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema with alternatives of one type each in place of a list of types."""
    kinds = schema.get("type")
    if not isinstance(kinds, list) or "anyOf" in schema:
        return schema
    rest = {word: part for word, part in schema.items() if word != "type"}
    return {**rest, "anyOf": [{"type": kind} for kind in kinds]}
