"""Writes blocks of tool calls as each notation has them; it knows what the chat templates write, and no parser."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeAlias

from daemon.engine.output.tool_calls import Tool


@dataclass(frozen=True, slots=True)
class Call:
    """A call that is written: its tool and its arguments."""

    tool: Tool
    arguments: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the tool."""
        return self.tool.name


Block: TypeAlias = Callable[[Sequence[Call], Random], str]
"""Writes calls that share their marks."""


def as_json(value: Any, random: Random) -> str:
    """Return JSON, in one of its spellings."""
    comma, colon = random.choice([(", ", ": "), (",", ":")])
    return json.dumps(
        value, ensure_ascii=random.random() < 0.3, separators=(comma, colon), indent=random.choice([None, None, 2])
    )


def raw(value: Any, random: Random) -> str:
    return value if isinstance(value, str) else as_json(value, random)


def python(value: Any, random: Random) -> str:
    return value if isinstance(value, str) else repr(value)


def json_object(call: Call, random: Random, name: str = "name", arguments: str = "arguments", **more: str) -> str:
    """Return a call as a JSON object, written as templates do."""
    pairs = {**more, name: json.dumps(call.name), arguments: as_json(call.arguments, random)}
    return "{" + ", ".join(f'"{key}": {value}' for key, value in pairs.items()) + "}"


def json_list(start: str, end: str) -> Block:
    return lambda calls, random: f"{start}[{', '.join(json_object(call, random) for call in calls)}]{end}"


def hermes(calls: Sequence[Call], random: Random) -> str:
    line = random.choice(["\n", ""])
    return f"<tool_call>{line}{json_object(calls[0], random)}{line}</tool_call>"


def tagged(start: str, end: str, line: str, spell: Callable[[Any, Random], str]) -> Block:
    def block(calls: Sequence[Call], random: Random) -> str:
        functions = [
            f"<function={call.name}>\n"
            + "".join(
                f"<parameter={key}>{line}{spell(value, random)}{line}</parameter>\n"
                for key, value in call.arguments.items()
            )
            + "</function>\n"
            for call in calls
        ]
        return f"{start}\n{''.join(functions)}{end}"

    return block


def glm(line: str, release: str = "") -> Block:
    """Return the block of GLM; LongCat's tags begin with its name."""

    def block(calls: Sequence[Call], random: Random) -> str:
        pairs = [
            f"<{release}arg_key>{key}</{release}arg_key>{line}"
            f"<{release}arg_value>{raw(value, random)}</{release}arg_value>{line}"
            for key, value in calls[0].arguments.items()
        ]
        return f"<{release}tool_call>{calls[0].name}{line}{''.join(pairs)}</{release}tool_call>"

    return block


def minicpm(calls: Sequence[Call], random: Random) -> str:
    def value(given: Any) -> str:
        marked = isinstance(given, str) and any(sign in given for sign in "<&\n")
        return f"<![CDATA[{given}]]>" if marked else random.choice([raw(given, random), python(given, random)])

    params = [f'<param name="{key}">{value(given)}</param>' for key, given in calls[0].arguments.items()]
    return f'<function name="{calls[0].name}">{"".join(params)}</function>'


def hy3(calls: Sequence[Call], random: Random) -> str:
    release = ":opensource"
    written = [
        f"<tool_call{release}>{call.name}<tool_sep{release}>\n"
        + "".join(
            f"<arg_key{release}>{key}</arg_key{release}>\n"
            f"<arg_value{release}>{raw(value, random)}</arg_value{release}>\n"
            for key, value in call.arguments.items()
        )
        + f"</tool_call{release}>\n"
        for call in calls
    ]
    return f"<tool_calls{release}>\n{''.join(written)}</tool_calls{release}>"


def invoked(tag: str, block_tag: str, *, stated: bool) -> Block:
    """Return the block of MiniMax M2 or Muse, or of DeepSeek, which states what is a string."""

    def parameter(key: str, value: Any, random: Random) -> str:
        said = f' string="{str(isinstance(value, str)).lower()}"' if stated else ""
        return f'<{tag}parameter name="{key}"{said}>{raw(value, random)}</{tag}parameter>\n'

    def block(calls: Sequence[Call], random: Random) -> str:
        invoked = [
            f'<{tag}invoke name="{call.name}">\n'
            + "".join(parameter(key, value, random) for key, value in call.arguments.items())
            + f"</{tag}invoke>\n"
            for call in calls
        ]
        return f"<{block_tag}>\n{''.join(invoked)}</{block_tag}>"

    return block


M = "]<]minimax[>["


def element(name: str, value: Any) -> str:
    if isinstance(value, dict):
        inner = "".join(element(key, member) for key, member in value.items())
    elif isinstance(value, list):
        inner = "".join(element("item", item) for item in value)
    else:
        inner = value if isinstance(value, str) else json.dumps(value)
    return f"{M}<{name}>{inner}{M}</{name}>"


def minimax_m3(calls: Sequence[Call], _: Random) -> str:
    invoked = [
        f'{M}<invoke name="{call.name}">{"".join(element(*pair) for pair in call.arguments.items())}{M}</invoke>\n'
        for call in calls
    ]
    return f"{M}<tool_call>\n{''.join(invoked)}{M}</tool_call>"


def deepseek(call_of: Callable[[Call, Random], str], between: str) -> Block:
    return lambda calls, random: (
        "<｜tool▁calls▁begin｜>"
        + between.join(f"<｜tool▁call▁begin｜>{call_of(call, random)}<｜tool▁call▁end｜>" for call in calls)
        + "<｜tool▁calls▁end｜>"
    )


def kimi(calls: Sequence[Call], random: Random) -> str:
    section = [
        f"<|tool_call_begin|>functions.{call.name}:{number}<|tool_call_argument_begin|>"
        f"{as_json(call.arguments, random)}<|tool_call_end|>"
        for number, call in enumerate(calls)
    ]
    marks = random.choice([("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"), ("", "")])
    return "".join(section).join(marks)


def mistral(calls: Sequence[Call], random: Random) -> str:
    id_ = random.choice(["", "[CALL_ID]abc123XYZ"])
    return f"[TOOL_CALLS]{calls[0].name}{id_}[ARGS]{as_json(calls[0].arguments, random)}"


def mistral_list(calls: Sequence[Call], random: Random) -> str:
    objects = [
        f'{json_object(call, random)[:-1]}, "id": "abcdefgh{number % 10}"}}' for number, call in enumerate(calls)
    ]
    return f"[TOOL_CALLS][{', '.join(objects)}]"


def llama(calls: Sequence[Call], random: Random) -> str:
    return random.choice(["; ", "\n"]).join(json_object(call, random, arguments="parameters") for call in calls)


def python_list(calls: Sequence[Call], _: Random) -> str:
    written = [
        f"{call.name}({', '.join(f'{key}={value!r}' for key, value in call.arguments.items())})" for call in calls
    ]
    return f"[{', '.join(written)}]"


def python_lines(calls: Sequence[Call], random: Random) -> str:
    """Return calls as OLMo 3 writes them: its template has JSON values, and answers have Python's as well."""
    spelled, line = random.choice([repr, json.dumps]), random.choice(["", "\n"])
    pairs = [[f"{key}={spelled(value)}" for key, value in call.arguments.items()] for call in calls]
    written = [f"{call.name}({', '.join(given)})" for call, given in zip(calls, pairs, strict=True)]
    return "\n".join(written).join((f"<function_calls>{line}", f"{line}</function_calls>"))


def hunyuan(calls: Sequence[Call], random: Random) -> str:
    written = [f"<tool_call>{call.name}\n```json\n{as_json(call.arguments, random)}\n```</tool_call>" for call in calls]
    return "\n".join(written).join(("<tool_calls>", "</tool_calls>"))


def gemma(start: str, end: str, quote: str) -> Block:
    def spelled(value: Any) -> str:
        if isinstance(value, str):
            return f"{quote}{value}{quote}"
        if isinstance(value, list):
            return f"[{','.join(map(spelled, value))}]"
        if isinstance(value, dict):
            return f"{{{','.join(f'{key}:{spelled(member)}' for key, member in value.items())}}}"
        return json.dumps(value)

    return lambda calls, _: "".join(f"{start}call:{call.name}{spelled(dict(call.arguments))}{end}" for call in calls)


def command_a(calls: Sequence[Call], random: Random) -> str:
    objects = [
        json_object(call, random, "tool_name", "parameters", tool_call_id=f'"{number}"')
        for number, call in enumerate(calls)
    ]
    return "<|START_ACTION|>[\n    " + ",\n    ".join(objects) + "\n]<|END_ACTION|>"


def command_r(calls: Sequence[Call], random: Random) -> str:
    objects = [json_object(call, random, "tool_name", "parameters") for call in calls]
    return "Action: ```json\n[\n" + ",\n".join(objects) + "\n]```"


def minimax_m1(calls: Sequence[Call], random: Random) -> str:
    return "<tool_calls>\n" + "".join(f"{json_object(call, random)}\n" for call in calls) + "</tool_calls>"


def apriel(calls: Sequence[Call], random: Random) -> str:
    objects = [f'{json_object(call, random)[:-1]}, "id": "call0000{number}"}}' for number, call in enumerate(calls)]
    return f"<tool_calls>[{', '.join(objects)}]</tool_calls>"


def apertus(calls: Sequence[Call], random: Random) -> str:
    objects = [f"{{{json.dumps(call.name)}: {as_json(call.arguments, random)}}}" for call in calls]
    return f"<|tools_prefix|>[{', '.join(objects)}]<|tools_suffix|>"


def functionary(calls: Sequence[Call], random: Random) -> str:
    return "".join(f"<function={call.name}>{as_json(call.arguments, random)}</function>" for call in calls)


def functionary_message(calls: Sequence[Call], random: Random) -> str:
    return f">>>{calls[0].name}\n{as_json(calls[0].arguments, random)}"


def harmony(calls: Sequence[Call], random: Random) -> str:
    name = calls[0].name
    header = random.choice(
        [
            f" to=functions.{name}<|channel|>commentary json<|message|>",
            f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>",
        ]
    )
    return f"<|start|>assistant{header}{as_json(calls[0].arguments, random)}<|call|>"
