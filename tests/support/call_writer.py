"""
Writes valid answers of each notation of tool calls from random schemas and values.

It knows what the chat templates write (`docs/families.md`), and nothing of the parsers that it tests.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from daemon.engine.output.tool_calls import Tool
from tests.support import call_notations as write
from tests.support.call_notations import Block, Call
from tests.support.call_values import Values, text


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


_BARE = string.ascii_letters + string.digits + "_.-"
HARMONY_WORDS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|constrain|>", "<|call|>")

_HEADERS = (*HARMONY_WORDS, ">>>", "to=", "all")

HANDS: Mapping[str, Hand] = {
    "Hermes": Hand("<tool_call>", write.hermes, "<tool_call>", several=False),
    "Qwen 3 Coder": Hand(
        "<tool_call>\n<function=", write.tagged("<tool_call>", "</tool_call>", "\n", write.raw), "<tool_call>",
        keys=_BARE, raw=("</parameter>",),
    ),
    "Seed-OSS": Hand(
        "<seed:tool_call>", write.tagged("<seed:tool_call>", "</seed:tool_call>", "", write.python), "<seed:tool_call>",
        keys=_BARE, raw=("</parameter>",),
    ),
    "GLM 4.5": Hand("<arg_key>", write.glm("\n"), "<tool_call>", several=False, keys=_BARE, raw=("</arg_value>",)),
    "GLM 4.7": Hand("<arg_key>", write.glm(""), "<tool_call>", several=False, keys=_BARE, raw=("</arg_value>",)),
    "MiniMax M2": Hand(
        "<minimax:tool_call>", write.invoked("", "minimax:tool_call", stated=False), "<minimax:tool_call>",
        keys=_BARE, raw=("</parameter>",),
    ),
    "LongCat": Hand(
        "<longcat_tool_call>", write.glm("\n", "longcat_"), "<longcat_tool_call>", several=False, keys=_BARE,
        raw=("</longcat_arg_value>",),
    ),
    "Muse": Hand(
        "<atem:function_calls>", write.invoked("atem:", "atem:function_calls", stated=False), "<atem:function_calls>",
        keys=_BARE, raw=("</atem:parameter>",),
    ),
    "MiniCPM 5": Hand(
        '<function name=" <param name="', write.minicpm, "<function name=", several=False, keys=_BARE, raw=("]]>",)
    ),
    "MiniMax M3": Hand("]<]minimax[>[", write.minimax_m3, f"{write.M}<tool_call>", keys=_BARE, raw=("]<",)),
    "DeepSeek V3.2": Hand(
        "｜DSML｜", write.invoked("｜DSML｜", "｜DSML｜function_calls", stated=True), "<｜DSML｜function_calls>",
        keys=_BARE, raw=("</｜DSML｜",),
    ),
    "DeepSeek V4": Hand(
        "｜DSML｜ tool_calls>", write.invoked("｜DSML｜", "｜DSML｜tool_calls", stated=True), "<｜DSML｜tool_calls>",
        keys=_BARE, raw=("</｜DSML｜",),
    ),
    "DeepSeek V3": Hand(
        "<｜tool▁calls▁begin｜> ```json",
        write.deepseek(
            lambda call, r: f"function<｜tool▁sep｜>{call.name}\n```json\n{write.as_json(call.arguments, r)}\n```", "\n"
        ),
        "<｜tool▁calls▁begin｜>",
    ),
    "DeepSeek V3.1": Hand(
        "<｜tool▁calls▁begin｜>",
        write.deepseek(lambda call, random: f"{call.name}<｜tool▁sep｜>{write.as_json(call.arguments, random)}", ""),
        "<｜tool▁calls▁begin｜>",
    ),
    "Kimi K2": Hand("<|tool_calls_section_begin|>", write.kimi, "<|tool_calls_section_begin|>"),
    "Mistral": Hand("[TOOL_CALLS]", write.mistral, "[TOOL_CALLS]", words=("[ARGS]",), several=False),
    "Mistral, older": Hand("[TOOL_CALLS]", write.mistral_list, "[TOOL_CALLS]"),
    "Llama 3": Hand("<|python_tag|>", write.llama),
    "Llama 3, behind its mark": Hand(
        "<|python_tag|>", lambda calls, r: f"<|python_tag|>{write.llama(calls, r)}", "<|python_tag|>"
    ),
    "pythonic Llama": Hand("[func_name1(params_name1=params_value1", write.python_list, keys=_BARE),
    "Llama 4": Hand(
        '"parameters": dictionary of argument name and its value',
        lambda calls, r: f"<|python_start|>{write.llama(calls, r)}<|python_end|>", "<|python_start|>",
        words=("<|python_start|>", "<|python_end|>"),
    ),
    "OLMo 3": Hand("<functions> <function_calls>", write.python_lines, "<function_calls>", keys=_BARE),
    "Hunyuan": Hand("<tool_calls><tool_call> ```json", write.hunyuan, "<tool_calls>"),
    "LFM2": Hand(
        "<|tool_call_start|>", lambda calls, r: f"<|tool_call_start|>{write.python_list(calls, r)}<|tool_call_end|>",
        "<|tool_call_start|>", keys=_BARE,
    ),
    "Hy3": Hand(
        "<tool_calls{}> :opensource", write.hy3, "<tool_calls:opensource>", keys=_BARE, raw=("</arg_value:opensource>",)
    ),
    "GigaChat 3.1": Hand(
        "<|function_call|> <|role_sep|>", lambda calls, r: f"<|function_call|>{write.json_object(calls[0], r)}",
        "<|function_call|>", several=False,
    ),
    "Gemma 4": Hand(
        "<|tool_call> <tool_call|>", write.gemma("<|tool_call>", "<tool_call|>", '<|"|>'), "<|tool_call>",
        keys=_BARE, raw=('<|"|>',),
    ),
    "FunctionGemma": Hand(
        "<start_function_call>", write.gemma("<start_function_call>", "<end_function_call>", "<escape>"),
        "<start_function_call>", keys=_BARE, raw=("<escape>",),
    ),
    "gpt-oss": Hand("", write.harmony, words=HARMONY_WORDS, several=False, messages=True),
    "Granite 3": Hand("<|tool_call|>", write.json_list("<|tool_call|>", ""), "<|tool_call|>"),
    "Phi 4": Hand("<|tool_call|> <|/tool_call|>", write.json_list("<|tool_call|>", "<|/tool_call|>"), "<|tool_call|>"),
    "Phi 4, without marks": Hand("functools[", write.json_list("functools", ""), "functools"),
    "Nemotron": Hand("<TOOLCALL>", write.json_list("<TOOLCALL>", "</TOOLCALL>"), "<TOOLCALL>"),
    "MiniMax M1": Hand("<tool_calls>", write.minimax_m1, "<tool_calls>"),
    "Apriel": Hand("<tool_calls>[", write.apriel, "<tool_calls>"),
    "Command A": Hand("<|START_ACTION|>", write.command_a, "<|START_ACTION|>"),
    "Command R": Hand("Action: ```json tool_name", write.command_r, "Action:"),
    "Functionary 3.1": Hand("<function= </function>", write.functionary, "<function="),
    "Functionary 3.2": Hand(">>>all", write.functionary_message, several=False, messages=True),
    "Apertus": Hand("<|tools_prefix|>", write.apertus, "<|tools_prefix|>"),
}  # fmt: skip
"""All notations that the engine reads itself."""


def answer(hand: Hand, random: Random) -> Answer:
    """Return a random answer with reasoning or without, text at any place, and up to four calls."""
    values = Values(random, hand.keys, hand.raw)
    names = dict.fromkeys(_name(random) for _ in range(random.randrange(1, 5)))  # in their order: a seed repeats it
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
