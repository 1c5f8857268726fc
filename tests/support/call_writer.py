"""
Writes valid answers of each notation of tool calls from random schemas and values.

It knows what the chat templates write (`docs/families.md`), and nothing of the parsers that it tests.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeAlias

from daemon.engine.output.tool_calls import Tool
from tests.support.call_values import Values, text


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


@dataclass(frozen=True, slots=True)
class Hand:
    """
    How a notation is written.

    Attributes:
        known_by: A text of the chat template.
        block: Writes a block of calls.
        start: The mark that a block begins with; empty if the calls begin the answer.
        words: Tokens of the vocabulary that are marks.
        several: Whether a block may have several calls.
        keys: Characters of the names of arguments; None if any text is one.
        raw: Texts that no string of an argument may have; none if strings are quoted.
        messages: Whether text and reasoning are messages with headers.
    """

    known_by: str
    block: Block
    start: str = ""
    words: tuple[str, ...] = ()
    several: bool = True
    keys: str | None = None
    raw: tuple[str, ...] = ()
    messages: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """
    An answer, and what it has to be read as.

    Attributes:
        written: What the model wrote.
        opened: Whether the prompt ends within reasoning.
        reasoning, text: Its parts that are no calls.
        calls: Its calls.
    """

    written: str
    opened: bool
    reasoning: str
    text: str
    calls: list[Call] = field(default_factory=list)

    @property
    def tools(self) -> list[Tool]:
        """The tools that are called."""
        return list({call.name: call.tool for call in self.calls}.values())


def as_json(value: Any, random: Random) -> str:
    """Return JSON, in one of its spellings."""
    comma, colon = random.choice([(", ", ": "), (",", ":")])
    return json.dumps(
        value, ensure_ascii=random.random() < 0.3, separators=(comma, colon), indent=random.choice([None, None, 2])
    )


def _raw(value: Any, random: Random) -> str:
    return value if isinstance(value, str) else as_json(value, random)


def _python(value: Any, random: Random) -> str:
    return value if isinstance(value, str) else repr(value)


def _object(call: Call, random: Random, name: str = "name", arguments: str = "arguments", **more: str) -> str:
    """Return a call as a JSON object, written as templates do."""
    pairs = {**more, name: json.dumps(call.name), arguments: as_json(call.arguments, random)}
    return "{" + ", ".join(f'"{key}": {value}' for key, value in pairs.items()) + "}"


def _list(start: str, end: str) -> Block:
    return lambda calls, random: f"{start}[{', '.join(_object(call, random) for call in calls)}]{end}"


def _hermes(calls: Sequence[Call], random: Random) -> str:
    line = random.choice(["\n", ""])
    return f"<tool_call>{line}{_object(calls[0], random)}{line}</tool_call>"


def _tagged(start: str, end: str, line: str, spell: Callable[[Any, Random], str]) -> Block:
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


def _glm(line: str) -> Block:
    def block(calls: Sequence[Call], random: Random) -> str:
        pairs = [
            f"<arg_key>{key}</arg_key>{line}<arg_value>{_raw(value, random)}</arg_value>{line}"
            for key, value in calls[0].arguments.items()
        ]
        return f"<tool_call>{calls[0].name}{line}{''.join(pairs)}</tool_call>"

    return block


def _hy3(calls: Sequence[Call], random: Random) -> str:
    release = ":opensource"
    written = [
        f"<tool_call{release}>{call.name}<tool_sep{release}>\n"
        + "".join(
            f"<arg_key{release}>{key}</arg_key{release}>\n"
            f"<arg_value{release}>{_raw(value, random)}</arg_value{release}>\n"
            for key, value in call.arguments.items()
        )
        + f"</tool_call{release}>\n"
        for call in calls
    ]
    return f"<tool_calls{release}>\n{''.join(written)}</tool_calls{release}>"


def _invoked(tag: str, block_tag: str, *, stated: bool) -> Block:
    """Return the block of MiniMax M2, or of DeepSeek, which states what is a string."""

    def parameter(key: str, value: Any, random: Random) -> str:
        said = f' string="{str(isinstance(value, str)).lower()}"' if stated else ""
        return f'<{tag}parameter name="{key}"{said}>{_raw(value, random)}</{tag}parameter>\n'

    def block(calls: Sequence[Call], random: Random) -> str:
        invoked = [
            f'<{tag}invoke name="{call.name}">\n'
            + "".join(parameter(key, value, random) for key, value in call.arguments.items())
            + f"</{tag}invoke>\n"
            for call in calls
        ]
        return f"<{block_tag}>\n{''.join(invoked)}</{block_tag}>"

    return block


_M = "]<]minimax[>["


def _element(name: str, value: Any) -> str:
    if isinstance(value, dict):
        inner = "".join(_element(key, member) for key, member in value.items())
    elif isinstance(value, list):
        inner = "".join(_element("item", item) for item in value)
    else:
        inner = value if isinstance(value, str) else json.dumps(value)
    return f"{_M}<{name}>{inner}{_M}</{name}>"


def _minimax_m3(calls: Sequence[Call], _: Random) -> str:
    invoked = [
        f'{_M}<invoke name="{call.name}">{"".join(_element(*pair) for pair in call.arguments.items())}{_M}</invoke>\n'
        for call in calls
    ]
    return f"{_M}<tool_call>\n{''.join(invoked)}{_M}</tool_call>"


def _deepseek(call_of: Callable[[Call, Random], str], between: str) -> Block:
    return lambda calls, random: (
        "<｜tool▁calls▁begin｜>"
        + between.join(f"<｜tool▁call▁begin｜>{call_of(call, random)}<｜tool▁call▁end｜>" for call in calls)
        + "<｜tool▁calls▁end｜>"
    )


def _kimi(calls: Sequence[Call], random: Random) -> str:
    section = [
        f"<|tool_call_begin|>functions.{call.name}:{number}<|tool_call_argument_begin|>"
        f"{as_json(call.arguments, random)}<|tool_call_end|>"
        for number, call in enumerate(calls)
    ]
    return f"<|tool_calls_section_begin|>{''.join(section)}<|tool_calls_section_end|>"


def _mistral(calls: Sequence[Call], random: Random) -> str:
    id_ = random.choice(["", "[CALL_ID]abc123XYZ"])
    return f"[TOOL_CALLS]{calls[0].name}{id_}[ARGS]{as_json(calls[0].arguments, random)}"


def _mistral_list(calls: Sequence[Call], random: Random) -> str:
    objects = [f'{_object(call, random)[:-1]}, "id": "abcdefgh{number % 10}"}}' for number, call in enumerate(calls)]
    return f"[TOOL_CALLS][{', '.join(objects)}]"


def _llama(calls: Sequence[Call], random: Random) -> str:
    return random.choice(["; ", "\n"]).join(_object(call, random, arguments="parameters") for call in calls)


def _python_list(calls: Sequence[Call], _: Random) -> str:
    written = [
        f"{call.name}({', '.join(f'{key}={value!r}' for key, value in call.arguments.items())})" for call in calls
    ]
    return f"[{', '.join(written)}]"


def _gemma(start: str, end: str, quote: str) -> Block:
    def spelled(value: Any) -> str:
        if isinstance(value, str):
            return f"{quote}{value}{quote}"
        if isinstance(value, list):
            return f"[{','.join(map(spelled, value))}]"
        if isinstance(value, dict):
            return f"{{{','.join(f'{key}:{spelled(member)}' for key, member in value.items())}}}"
        return json.dumps(value)

    return lambda calls, _: "".join(f"{start}call:{call.name}{spelled(dict(call.arguments))}{end}" for call in calls)


def _command_a(calls: Sequence[Call], random: Random) -> str:
    objects = [
        _object(call, random, "tool_name", "parameters", tool_call_id=f'"{number}"')
        for number, call in enumerate(calls)
    ]
    return "<|START_ACTION|>[\n    " + ",\n    ".join(objects) + "\n]<|END_ACTION|>"


def _command_r(calls: Sequence[Call], random: Random) -> str:
    objects = [_object(call, random, "tool_name", "parameters") for call in calls]
    return "Action: ```json\n[\n" + ",\n".join(objects) + "\n]```"


def _minimax_m1(calls: Sequence[Call], random: Random) -> str:
    return "<tool_calls>\n" + "".join(f"{_object(call, random)}\n" for call in calls) + "</tool_calls>"


def _apriel(calls: Sequence[Call], random: Random) -> str:
    objects = [f'{_object(call, random)[:-1]}, "id": "call0000{number}"}}' for number, call in enumerate(calls)]
    return f"<tool_calls>[{', '.join(objects)}]</tool_calls>"


def _apertus(calls: Sequence[Call], random: Random) -> str:
    objects = [f"{{{json.dumps(call.name)}: {as_json(call.arguments, random)}}}" for call in calls]
    return f"<|tools_prefix|>[{', '.join(objects)}]<|tools_suffix|>"


def _functionary(calls: Sequence[Call], random: Random) -> str:
    return "".join(f"<function={call.name}>{as_json(call.arguments, random)}</function>" for call in calls)


def _functionary_message(calls: Sequence[Call], random: Random) -> str:
    return f">>>{calls[0].name}\n{as_json(calls[0].arguments, random)}"


def _harmony(calls: Sequence[Call], random: Random) -> str:
    name = calls[0].name
    header = random.choice(
        [
            f" to=functions.{name}<|channel|>commentary json<|message|>",
            f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>",
        ]
    )
    return f"<|start|>assistant{header}{as_json(calls[0].arguments, random)}<|call|>"


_BARE = string.ascii_letters + string.digits + "_.-"
HARMONY_WORDS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|constrain|>", "<|call|>")

_HEADERS = (*HARMONY_WORDS, ">>>", "to=", "all")

HANDS: Mapping[str, Hand] = {
    "Hermes": Hand("<tool_call>", _hermes, "<tool_call>", several=False),
    "Qwen 3 Coder": Hand(
        "<tool_call>\n<function=", _tagged("<tool_call>", "</tool_call>", "\n", _raw), "<tool_call>",
        keys=_BARE, raw=("</parameter>",),
    ),
    "Seed-OSS": Hand(
        "<seed:tool_call>", _tagged("<seed:tool_call>", "</seed:tool_call>", "", _python), "<seed:tool_call>",
        keys=_BARE, raw=("</parameter>",),
    ),
    "GLM 4.5": Hand("<arg_key>", _glm("\n"), "<tool_call>", several=False, keys=_BARE, raw=("</arg_value>",)),
    "GLM 4.7": Hand("<arg_key>", _glm(""), "<tool_call>", several=False, keys=_BARE, raw=("</arg_value>",)),
    "MiniMax M2": Hand(
        "<minimax:tool_call>", _invoked("", "minimax:tool_call", stated=False), "<minimax:tool_call>",
        keys=_BARE, raw=("</parameter>",),
    ),
    "MiniMax M3": Hand("]<]minimax[>[", _minimax_m3, f"{_M}<tool_call>", keys=_BARE, raw=("]<",)),
    "DeepSeek V3.2": Hand(
        "｜DSML｜", _invoked("｜DSML｜", "｜DSML｜function_calls", stated=True), "<｜DSML｜function_calls>",
        keys=_BARE, raw=("</｜DSML｜",),
    ),
    "DeepSeek V4": Hand(
        "｜DSML｜", _invoked("｜DSML｜", "｜DSML｜tool_calls", stated=True), "<｜DSML｜tool_calls>",
        keys=_BARE, raw=("</｜DSML｜",),
    ),
    "DeepSeek V3": Hand(
        "<｜tool▁calls▁begin｜> ```json",
        _deepseek(
            lambda call, r: f"function<｜tool▁sep｜>{call.name}\n```json\n{as_json(call.arguments, r)}\n```", "\n"
        ),
        "<｜tool▁calls▁begin｜>",
    ),
    "DeepSeek V3.1": Hand(
        "<｜tool▁calls▁begin｜>",
        _deepseek(lambda call, random: f"{call.name}<｜tool▁sep｜>{as_json(call.arguments, random)}", ""),
        "<｜tool▁calls▁begin｜>",
    ),
    "Kimi K2": Hand("<|tool_calls_section_begin|>", _kimi, "<|tool_calls_section_begin|>"),
    "Mistral": Hand("[TOOL_CALLS]", _mistral, "[TOOL_CALLS]", words=("[ARGS]",), several=False),
    "Mistral, older": Hand("[TOOL_CALLS]", _mistral_list, "[TOOL_CALLS]"),
    "Llama 3": Hand("<|python_tag|>", _llama),
    "Llama 3, behind its mark": Hand(
        "<|python_tag|>", lambda calls, r: f"<|python_tag|>{_llama(calls, r)}", "<|python_tag|>"
    ),
    "pythonic Llama": Hand("[func_name1(params_name1=params_value1", _python_list, keys=_BARE),
    "LFM2": Hand(
        "<|tool_call_start|>", lambda calls, r: f"<|tool_call_start|>{_python_list(calls, r)}<|tool_call_end|>",
        "<|tool_call_start|>", keys=_BARE,
    ),
    "Hy3": Hand(
        "<tool_calls{}> :opensource", _hy3, "<tool_calls:opensource>", keys=_BARE, raw=("</arg_value:opensource>",)
    ),
    "GigaChat 3.1": Hand(
        "<|function_call|> <|role_sep|>", lambda calls, r: f"<|function_call|>{_object(calls[0], r)}",
        "<|function_call|>", several=False,
    ),
    "Gemma 4": Hand(
        "<|tool_call> <tool_call|>", _gemma("<|tool_call>", "<tool_call|>", '<|"|>'), "<|tool_call>",
        keys=_BARE, raw=('<|"|>',),
    ),
    "FunctionGemma": Hand(
        "<start_function_call>", _gemma("<start_function_call>", "<end_function_call>", "<escape>"),
        "<start_function_call>", keys=_BARE, raw=("<escape>",),
    ),
    "gpt-oss": Hand("", _harmony, words=HARMONY_WORDS, several=False, messages=True),
    "Granite 3": Hand("<|tool_call|>", _list("<|tool_call|>", ""), "<|tool_call|>"),
    "Phi 4": Hand("<|tool_call|> <|/tool_call|>", _list("<|tool_call|>", "<|/tool_call|>"), "<|tool_call|>"),
    "Phi 4, without marks": Hand("functools[", _list("functools", ""), "functools"),
    "Nemotron": Hand("<TOOLCALL>", _list("<TOOLCALL>", "</TOOLCALL>"), "<TOOLCALL>"),
    "MiniMax M1": Hand("<tool_calls>", _minimax_m1, "<tool_calls>"),
    "Apriel": Hand("<tool_calls>[", _apriel, "<tool_calls>"),
    "Command A": Hand("<|START_ACTION|>", _command_a, "<|START_ACTION|>"),
    "Command R": Hand("Action: ```json tool_name", _command_r, "Action:"),
    "Functionary 3.1": Hand("<function= </function>", _functionary, "<function="),
    "Functionary 3.2": Hand(">>>all", _functionary_message, several=False, messages=True),
    "Apertus": Hand("<|tools_prefix|>", _apertus, "<|tools_prefix|>"),
}  # fmt: skip
"""All notations that the engine reads itself."""


def answer(hand: Hand, random: Random) -> Answer:
    """Return a random answer with reasoning or without, text at any place, and up to four calls."""
    values = Values(random, hand.keys, hand.raw)
    names = {_name(random) for _ in range(random.randrange(1, 5))}
    calls = [Call(Tool(name, "", schema), value) for name in names for schema, value in [values.arguments()]]
    blocks = list(_blocks(calls, random, several=hand.several))
    prose = [_prose(hand, random) for _ in range(len(blocks) + 1)]
    reasoning = random.choice(["", text(random, ("</think>", *(_HEADERS if hand.messages else ())), first="Hm")])
    if hand.messages:
        return _in_messages(hand, blocks, prose, reasoning, random)
    if not hand.start:
        blocks, prose = [calls], [random.choice(["", "\n"]), random.choice(["", text(random, first="So")])]
    opened = bool(reasoning) and random.random() < 0.5
    begun = "" if not reasoning else f"{'' if opened else '<think>'}{reasoning}</think>"
    pairs = zip(blocks, prose[1:], strict=True)
    written = prose[0] + "".join(hand.block(block, random) + after for block, after in pairs)
    return Answer(begun + written, opened, reasoning, _text(prose), calls)


def _name(random: Random) -> str:
    inner = [random.choice(string.ascii_letters + string.digits + "_.-:") for _ in range(random.randrange(12))]
    return "".join([random.choice("abcXYZ_"), *inner])


def _prose(hand: Hand, random: Random) -> str:
    """Return text, which does not begin with a mark of reasoning: before other text it would be one."""
    barred = _HEADERS if hand.messages else (hand.start,) if hand.start else ()
    return random.choice(
        ["", "", "" if hand.messages else "\n", text(random, barred, first=random.choice(["S", " S", "{"]))]
    )


def _blocks(calls: Sequence[Call], random: Random, *, several: bool) -> Iterator[Sequence[Call]]:
    """Yield the calls in blocks of one or more."""
    left = list(calls)
    while left:
        count = random.randint(1, len(left)) if several else 1
        yield left[:count]
        left = left[count:]


def _text(prose: Sequence[str]) -> str:
    """Return the text of an answer: white space between calls is none."""
    return prose[0] + "".join(part for part in prose[1:] if part.strip(" \t\r\n"))


def _in_messages(
    hand: Hand, blocks: Sequence[Sequence[Call]], prose: Sequence[str], reasoning: str, random: Random
) -> Answer:
    """Return an answer in which text and calls are messages, each with a header."""
    harmony = bool(hand.words)
    parts = [f"<|start|>assistant<|channel|>analysis<|message|>{reasoning}<|end|>"] if reasoning and harmony else []
    for index, said in enumerate(prose):
        if said:
            parts.append(
                f"<|start|>assistant<|channel|>final<|message|>{said}<|end|>" if harmony else f">>>all\n{said}"
            )
        if index < len(blocks):
            parts.append(hand.block(blocks[index], random))
    written = "".join(parts).removeprefix("<|start|>assistant" if harmony else ">>>")
    calls = [call for block in blocks for call in block]
    return Answer(written, False, reasoning if harmony else "", "".join(prose), calls)
