"""Answers as models write them, in many notations, with what they have to be read as."""

from __future__ import annotations

import importlib
from typing import Any

from mlx_lm.chat_templates import muse_spark
from mlx_lm.tokenizer_utils import TokenizerWrapper, _infer_tool_parser

from daemon.engine.output.chat_markup import ChatMarkup
from daemon.engine.output.harmony import understood
from daemon.engine.output.notations.detection import HARMONY_MARKS as MARKS
from daemon.engine.output.tool_calls import Tool
from tests.unit.engine.fake_tokenizer import FakeTokenizer

TOOLS = [
    Tool(name, "", parameters)
    for name, parameters in {
        "get_weather": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
        "search": {"type": "object", "properties": {"query": {"type": "string"}}},
    }.items()
]


def notation(*words: str, template: str = "", parts: dict[str, Any] | None = None) -> ChatMarkup:
    """Return the notation that mlx-lm finds for a model with these marks, this template and these parts of answers."""
    tokenizer = FakeTokenizer(words, template)
    kind = _infer_tool_parser(tokenizer)
    if kind is None:
        return ChatMarkup(TokenizerWrapper(tokenizer))
    module = importlib.import_module(f"mlx_lm.tool_parsers.{kind}")
    return ChatMarkup(
        TokenizerWrapper(
            tokenizer,
            tool_call_start=module.tool_call_start,
            tool_call_end=module.tool_call_end,
            tool_parser=module.parse_tool_call,
            response_format=parts,
        )
    )


HARMONY = ChatMarkup(understood(TokenizerWrapper(FakeTokenizer(MARKS))))
THINKS = notation("<think>", "</think>")
HERMES = notation("<think>", "</think>", template="<tool_call>{{ tool_call.name }}")


WEATHER = ("get_weather", {"city": "Bergen", "days": 2})
SEARCH = ("search", {"query": 'a {b} "c"'})
HERMES_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bergen", "days": 2}}\n</tool_call>'

RECORDED: dict[str, tuple[ChatMarkup, str, str, str, list[tuple[str, Any]]]] = {
    "json in tags, after reasoning": (
        HERMES,
        "<think>\nRain?\n</think>\n\nI look.\n" + HERMES_CALL,
        "\n\nI look.\n", "\nRain?\n", [WEATHER],
    ),
    "json in tags, two calls": (
        HERMES,
        HERMES_CALL + '\n<tool_call>\n{"name": "search", "arguments": {"query": "a {b} \\"c\\""}}\n</tool_call>',
        "", "", [WEATHER, SEARCH],
    ),
    "json in tags, arguments as text": (
        HERMES, '<tool_call>{"name": "search", "arguments": "{\\"query\\": \\"é\\"}"}</tool_call>',
        "", "", [("search", {"query": "é"})],
    ),
    "json in tags, no arguments": (
        HERMES, '<tool_call>{"name": "search"}</tool_call>.', ".", "", [("search", {})],
    ),
    "xml parameters": (
        notation(template="<tool_call>\n<function="),
        ("Now.<tool_call>\n<function=get_weather>\n<parameter=city>\nBergen\n</parameter>\n<parameter=days>\n2\n"
        "</parameter>\n</function>\n</tool_call>"),
        "Now.", "", [WEATHER],
    ),
    "keys and values": (
        notation(template="<arg_key>"),
        ("<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Bergen</arg_value>\n<arg_key>days</arg_key>\n"
        "<arg_value>2</arg_value>\n</tool_call>!"),
        "!", "", [WEATHER],
    ),
    "without an end mark": (
        notation(template="[TOOL_CALLS]"),
        'Yes. [TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Bergen", "days": 2}, "id": "abcdefghi"}]',
        "Yes. ", "", [WEATHER],
    ),
    "without an end mark, headers": (
        notation(template="[TOOL_CALLS]"),
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Bergen", "days": 2}[TOOL_CALLS]search[ARGS]{"query": "a {b} \\"c\\""}',
        "", "", [WEATHER, SEARCH],
    ),
    "a section of calls": (
        notation(template="<|tool_calls_section_begin|>"),
        ("I do.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        '{"city": "Bergen", "days": 2}<|tool_call_end|><|tool_calls_section_end|>'),
        "I do.", "", [WEATHER],
    ),
    "python": (
        notation(template="<|tool_call_start|>"),
        '<|tool_call_start|>[get_weather(city="Bergen", days=2), search(query="a {b} \\"c\\"")]<|tool_call_end|> ok',
        " ok", "", [WEATHER, SEARCH],
    ),
    "its own quotes, after a channel of reasoning": (
        notation("<|channel>", "<channel|>", template="<|tool_call> <tool_call|>"),
        '<|channel>thought\nHm<channel|>So<|tool_call>call:get_weather{city:<|"|>Bergen<|"|>,days:2}<tool_call|>',
        "So", "\nHm", [WEATHER],
    ),
    "tags for everything": (
        notation("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"),
        ("<|open|>think<|sep|>Hm<|close|>think<|sep|><|open|>response<|sep|>So<|close|>response<|sep|>"
        '<|open|>tools<|sep|><|open|>call tool="get_weather" index="1"<|sep|><|open|>argument key="city" type="string"'
        '<|sep|>Bergen<|close|>argument<|sep|><|open|>argument key="days" type="number"<|sep|>2<|close|>argument<|sep|>'
        "<|close|>call<|sep|><|close|>tools<|sep|><|close|>message<|sep|>"),
        "So", "Hm", [WEATHER],
    ),
    "escapes": (
        notation(template="<start_function_call>"),
        "<start_function_call>call:get_weather{city:<escape>Bergen<escape>,days:2}<end_function_call> ok",
        " ok", "", [WEATHER],
    ),
    "long keys and values": (
        notation("<longcat_think>", "</longcat_think>", template="<longcat_tool_call>"),
        (
            "<longcat_think>Hm</longcat_think><longcat_tool_call>get_weather\n<longcat_arg_key>city</longcat_arg_key>\n"
            "<longcat_arg_value>Bergen</longcat_arg_value>\n<longcat_arg_key>days</longcat_arg_key>\n"
            "<longcat_arg_value>2</longcat_arg_value>\n</longcat_tool_call>"
        ),
        "", "Hm", [WEATHER],
    ),
    "invocations": (
        notation(template="<minimax:tool_call>"),
        (
            '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Bergen</parameter>\n'
            '<parameter name="days">2</parameter>\n</invoke>\n<invoke name="search">\n'
            '<parameter name="query">a {b} "c"</parameter>\n</invoke>\n</minimax:tool_call>'
        ),
        "", "", [WEATHER, SEARCH],
    ),
    "parts with headers": (
        notation(template="<atem:function_calls>", parts=muse_spark.RESPONSE_FORMAT),
        ("to=self<|message|>Hm<|eom|>to=user<|message|>So<|eom|><atem:function_calls><atem:invoke name=\"get_weather\">"
        '<atem:parameter name="city">Bergen</atem:parameter><atem:parameter name="days">2</atem:parameter>'
        "</atem:invoke></atem:function_calls>"),
        "So", "Hm", [WEATHER],
    ),
    "a header that is none": (
        notation(template="<atem:function_calls>", parts=muse_spark.RESPONSE_FORMAT), "So it is", "So it is", "", [],
    ),
    "messages with headers": (
        HARMONY,
        "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>So it <is>",
        "So it <is>", "Hm", [],
    ),
    "messages with headers, a call after what is told the user": (
        HARMONY,
        ("<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
        '{"city": "Bergen", "days": 2}'),
        "I look.", "Hm", [WEATHER],
    ),
    "messages with headers, the callee before the channel": (
        HARMONY,
        '<|start|>assistant to=functions.search<|channel|>commentary json<|message|>{"query": "a {b} \\"c\\""}<|call|>',
        "", "", [SEARCH],
    ),
    "tags with attributes": (
        notation(template='<function name=" <param name="'),
        'Go <function name="get_weather"><param name="city">Bergen</param><param name="days">2</param></function>',
        "Go ", "", [WEATHER],
    ),
}  # fmt: skip
"""Answers as models write them: the notation, the answer, and its text, reasoning and calls."""
