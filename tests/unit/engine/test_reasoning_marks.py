"""Reasoning begins and ends by the marks of its model, whatever is mentioned in between."""

from __future__ import annotations

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from daemon.engine.output.answer_parser import AnswerParser, AnswerRules, Parts
from daemon.engine.output.chat_markup import ChatMarkup
from daemon.engine.output.harmony import understood
from daemon.engine.output.tool_calls import Tool
from tests.support.call_writer import HARMONY_WORDS
from tests.unit.engine.fake_tokenizer import FakeTokenizer

TOOLS = [Tool("add", "", {"type": "object", "properties": {"a": {"type": "integer"}}})]
THOUGHT = 'Calls are in <tool_call> or [TOOL_CALLS] or <|tool_call|> marks, "x" too. Not </thinking>.'
FAMILIES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "Qwen 3": (("<think>", "</think>"), "<tool_call>", "<think>\n{}\n</think>\n\n"),
    "DeepSeek": (("<think>", "</think>"), "<｜tool▁calls▁begin｜>", "<think>{}</think>"),
    "GLM": ((), "<arg_key> </think>", "<think>{}</think>\n"),
    "Kimi K2": (("<think>", "</think>"), "<|tool_calls_section_begin|>", "<think>{}</think>"),
    "MiniMax M2": (("<think>", "</think>"), "<minimax:tool_call>", "<think>\n{}\n</think>\n\n"),
    "MiniMax M3": ((), "]<]minimax[>[ </mm:think>", "<mm:think>{}</mm:think>"),
    "Magistral": (("[THINK]", "[/THINK]", "[ARGS]"), "[TOOL_CALLS]", "[THINK]{}[/THINK]"),
    "Seed-OSS": (("<seed:think>", "</seed:think>"), "<seed:tool_call>", "<seed:think>{}</seed:think>\n"),
    "Command A": (
        ("<|START_THINKING|>", "<|END_THINKING|>", "<|START_TEXT|>", "<|END_TEXT|>"),
        "<|START_ACTION|>",
        "<|START_THINKING|>{}<|END_THINKING|><|START_TEXT|>",
    ),
    "Hy3": (
        ("<think:opensource>", "</think:opensource>"),
        "<tool_calls{}> opensource",
        "<think:opensource>{}</think:opensource>",
    ),
    "Granite 3.3": ((), "<|tool_call|> <think></think> <response></response>", "<think>{}</think><response>"),
    "OLMo 3": ((), "<functions> <function_calls> <think>", "<think>{}</think>\n\n"),
    "Hunyuan": ((), "<tool_calls><tool_call> ```json </think> <answer> </answer>", "<think>\n{}\n</think>\n<answer>\n"),
    "Apriel": (
        (),
        "<tool_calls>[ [BEGIN FINAL RESPONSE] [END FINAL RESPONSE]",
        "Here are my reasoning steps:\n{}\n[BEGIN FINAL RESPONSE]\n",
    ),
    "gpt-oss": (
        HARMONY_WORDS,
        "",
        "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
}
"""Tokens, a text of the template, and how reasoning is written before an answer."""


def markup(name: str) -> ChatMarkup:
    words, template, _ = FAMILIES[name]
    return ChatMarkup(understood(TokenizerWrapper(FakeTokenizer(words, template))))


def parse(
    name: str, answer: str, tools: list[Tool], size: int, *, opened: bool = False, reasoned: bool = False
) -> Parts:
    parser, parts = AnswerParser(markup(name), tools, AnswerRules(opened=opened, reasoned=reasoned)), Parts()
    for at in range(0, len(answer), size):
        parts += parser.add(answer[at : at + size])
    parts += parser.finish(ended=True)
    return parts


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("tools", [[], TOOLS], ids=["alone", "tools"])
@pytest.mark.parametrize("name", FAMILIES)
def test_marks_in_reasoning_are_reasoning(name: str, tools: list[Tool], size: int) -> None:
    thought = THOUGHT.replace("[TOOL_CALLS]", "") if name == "Seed-OSS" else THOUGHT
    parts = parse(name, FAMILIES[name][2].format(thought) + "The answer is <b>4</b>.", tools, size)
    assert (parts.reasoning.strip("\n"), parts.text.strip("\n"), parts.calls) == (
        thought,
        "The answer is <b>4</b>.",
        [],
    )


@pytest.mark.parametrize("name", ["Qwen 3", "DeepSeek", "GLM", "MiniMax M3", "Hy3", "OLMo 3", "Apriel"])
def test_reasoning_may_begin_in_the_prompt(name: str) -> None:
    start, _, rest = FAMILIES[name][2].partition("{}")
    parts = parse(name, THOUGHT + rest + "4", TOOLS, 3, opened=True)
    assert (parts.reasoning.strip("\n"), parts.text.strip("\n")) == (THOUGHT, "4"), start


@pytest.mark.parametrize("name", ["Qwen 3", "GLM", "MiniMax M3"])
def test_turn_may_begin_with_the_end_mark(name: str) -> None:
    """A turn without reasoning. Later, the mark is text."""
    end = FAMILIES[name][2].partition("{}")[2].strip()
    assert parse(name, f"{end}4 {end}", TOOLS, 2) == Parts(text=f"4 {end}")


RESPONSES = {
    "<think>H</think><response>4</response>": "4",
    "<think>H</think>\n<response>4</response>\n": "\n4\n",
    "<think>H</think><response>The mark </response> ends it.</response>": "The mark </response> ends it.",
    "<think>H</think><response>4</response> So.": "4</response> So.",
    "<think>H</think><response>4": "4",
    "<think>H</think>4 <response>5</response>": "4 <response>5</response>",
    "<response>4</response>": "<response>4</response>",
    "<think>H</think><response><response>4</response>": "<response>4</response>",
}


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize("answer", RESPONSES)
def test_granite_answer_has_marks_of_its_own(answer: str, size: int) -> None:
    """They are removed directly around an answer that follows reasoning, and are text elsewhere."""
    expected = (
        "<response>4" if answer.count("<response>") == 2 and "><response><response>" in answer else RESPONSES[answer]
    )
    assert parse("Granite 3.3", answer, [], size).text == expected


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_hunyuan_answer_has_marks_of_its_own(size: int) -> None:
    """Also behind reasoning that the prompt has ended, as it does where thinking is switched off."""
    assert parse("Hunyuan", "<think>\nH\n</think>\n<answer>\n4\n</answer>", TOOLS, size).text == "\n\n4\n"
    assert parse("Hunyuan", "<answer>\n4\n</answer>", TOOLS, size, reasoned=True).text == "\n4\n"
    assert parse("Hunyuan", "<answer>4</answer>", TOOLS, size).text == "<answer>4</answer>"


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_apriel_answer_has_an_end_of_its_own(size: int) -> None:
    """Within the answer, the mark is text."""
    begun, end = FAMILIES["Apriel"][2].format("H"), "[END FINAL RESPONSE]"
    assert parse("Apriel", f"{begun}4\n{end}\n", TOOLS, size).text == "\n4\n\n"
    assert parse("Apriel", f"{begun}The mark {end} ends it.", TOOLS, size).text == f"\nThe mark {end} ends it."


def test_call_may_follow_granite_answer() -> None:
    answer = '<think>H</think><response>I add.</response><|tool_call|>[{"name": "add", "arguments": {"a": 1}}]'
    parts = parse("Granite 3.3", answer, TOOLS, 4)
    assert (parts.text, [call.arguments_json for call in parts.calls]) == ("I add.", ['{"a": 1}'])


@pytest.mark.parametrize("name", ["Qwen 3", "GLM", "MiniMax M3", "Granite 3.3"])
def test_continued_text_has_no_reasoning(name: str) -> None:
    """Its text has begun in the prompt, so a mark is spoken about."""
    answer = FAMILIES[name][2].format("a mark") + " is written"
    parser = AnswerParser(markup(name), TOOLS, AnswerRules(bare=True, before="So "))
    parts = parser.add(answer)
    parts += parser.finish(ended=True)
    assert (parts.text, parts.reasoning) == (answer, "")
