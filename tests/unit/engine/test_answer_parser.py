"""The answer parser: text, reasoning and tool calls do not depend on how an answer is cut, and nothing is lost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.engine.output.answer_parser import AnswerParser, AnswerRules, Parts
from daemon.engine.output.chat_markup import ChatMarkup
from daemon.engine.output.reader import MOST_KEPT as MOST_CHARACTERS
from tests.unit.engine.fake_tokenizer import FakeTokenizer
from tests.unit.engine.recorded_answers import HARMONY, HERMES, HERMES_CALL, RECORDED, THINKS, TOOLS, WEATHER


@dataclass
class Taken:
    """Text, reasoning and calls of a whole answer."""

    text: str
    reasoning: str
    calls: list[tuple[str, Any]]
    ids: list[str]


def take(
    marks: ChatMarkup, pieces: Sequence[str], tools: Sequence[Any] = TOOLS, *, opened: bool = False, ended: bool = True
) -> Taken:
    """Parse an answer that comes in pieces."""
    parser = AnswerParser(marks, tools, AnswerRules(opened=opened))
    parts: list[Parts] = [*map(parser.add, pieces), parser.finish(ended=ended)]
    calls = [call for part in parts for call in part.calls]
    assert [call.index for call in calls] == list(range(len(calls)))
    assert parser.calls == len(calls)
    return Taken(
        "".join(part.text for part in parts),
        "".join(part.reasoning for part in parts),
        [(call.name, json.loads(call.arguments_json)) for call in calls],
        [call.id for call in calls],
    )


def cuts(text: str) -> Iterator[list[str]]:
    """Yield a text cut in two at every position, and into single characters."""
    yield from ([text[:at], text[at:]] for at in range(len(text) + 1))
    yield list(text)


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_answer_parses_alike_at_any_cut(name: str) -> None:
    """A cut at every position, and a cut after every character, give the same result."""
    marks, answer, text, reasoning, calls = RECORDED[name]
    for pieces in cuts(answer):
        taken = take(marks, pieces)
        assert (taken.text, taken.reasoning, taken.calls) == (text, reasoning, calls), pieces


BROKEN = {
    "no json": "<tool_call>{name}</tool_call>",
    "no object": "<tool_call>[1]</tool_call>",
    "no name": '<tool_call>{"arguments": {}}</tool_call>',
    "a name that is no text": '<tool_call>{"name": ["search"]}</tool_call>',
    "no such tool": '<tool_call>{"name": "delete", "arguments": {}}</tool_call>',
    "arguments that are no object": '<tool_call>{"name": "search", "arguments": [1]}</tool_call>',
    "a number that is none": '<tool_call>{"name": "search", "arguments": {"a": NaN}}</tool_call>',
    "half a surrogate pair": '<tool_call>{"name": "search", "arguments": {"a": "\\ud800"}}</tool_call>',
    "nothing": "<tool_call></tool_call>",
    "too deep": f"<tool_call>{'[' * 50_000}</tool_call>",
    "too long": f'<tool_call>{{"name": "search", "arguments": {{"query": "{"a" * MOST_CHARACTERS}"}}}}</tool_call>',
    "a mark within a mark": "<tool_call><tool_call></tool_call></tool_call>",
}


@pytest.mark.parametrize("name", BROKEN)
def test_text_that_is_no_tool_call_is_passed_on(name: str) -> None:
    """A call that cannot be read is text, with its marks, and the call after it is read."""
    answer = f"So: {BROKEN[name]} and {HERMES_CALL} on."
    for pieces in cuts(answer) if len(answer) < 300 else [[answer], [answer[:20], answer[20:]]]:
        taken = take(HERMES, pieces)
        assert (taken.text, taken.calls) == (f"So: {BROKEN[name]} and  on.", [WEATHER])


def test_harmony_messages_without_calls_are_passed_on() -> None:
    """A call of another tool and a call without a message are text."""
    for call in ("to=functions.delete <|constrain|>json<|message|>{}", "to=functions.search json"):
        for pieces in cuts(f"<|channel|>commentary {call}"):
            taken = take(HARMONY, pieces)
            assert (taken.text, taken.calls) == (call, [])


@pytest.mark.parametrize("header", ["<|channel|>", "<|channel|>analysis", "<|start|>assistant<|channel|>fin"])
def test_truncated_harmony_header_is_no_text(header: str) -> None:
    """This holds for the first header and for that of a later message."""
    for pieces in cuts(header):
        assert take(HARMONY, pieces, ended=False).text == ""
    for pieces in cuts(f"<|channel|>final<|message|>So<|end|>{header}"):
        assert take(HARMONY, pieces, ended=False).text == "So"


def test_harmony_header_to_the_model_itself_is_no_text() -> None:
    """Seen before another channel."""
    to_itself = "<|channel|>commentary to=assistant"
    answer = (
        f"{to_itself}<|channel|>analysis<|message|>Hm<|end|><|start|>assistant{to_itself}<|channel|>final<|message|>So"
    )
    for pieces in cuts(answer):
        taken = take(HARMONY, pieces)
        assert (taken.text, taken.reasoning, taken.calls) == ("So", "Hm", [])


def test_answer_without_a_harmony_header_is_text() -> None:
    for pieces in cuts("So it is"):
        assert take(HARMONY, pieces).text == "So it is"


def test_gpt_oss_reasoning_leads_to_the_answer_header() -> None:
    thinking = HARMONY.thinking([], wanted=True)
    assert thinking is not None
    marks = ["<|channel|>analysis<|message|>", "<|end|>", "<|start|>assistant", "<|channel|>final<|message|>"]
    spans = (thinking.start, thinking.end, thinking.turn, HARMONY.answer_header([]))
    assert [*map(FakeTokenizer().decode, spans)] == marks


def test_gpt_oss_answer_is_followed_by_no_reasoning() -> None:
    """A prompt that ends with a whole message asks for its continuation, not for an answer."""
    for end in ("<|end|>", "<|return|>"):
        prompt = FakeTokenizer().encode(f"<|start|>user<|message|>So{end}")
        assert HARMONY.thinking(prompt, wanted=True) is None
        assert HARMONY.answer_header(prompt) == ()


def test_structured_answer_needs_no_harmony_header() -> None:
    parser = AnswerParser(HARMONY, TOOLS, AnswerRules(bare=True))
    assert parser.add('{"a": 1').text == '{"a": 1'


@pytest.mark.parametrize(
    "number", ["1.7976931348623157e308", "-1.7976931348623157E+308", "5e-324", "9" * 40, "-0", "1.50"]
)
def test_number_of_a_call_stays_as_it_is_written(number: str) -> None:
    """Up to the largest number that can be read, which models write for "no limit"."""
    (call,) = calls_in(f'<tool_call>{{"name": "search", "arguments": {{"query": {number}}}}}</tool_call>')
    assert call == f'{{"query": {number}}}'
    assert not calls_in('<tool_call>{"name": "search", "arguments": {"query": 1.8e308}}</tool_call>')


def calls_in(answer: str) -> list[str]:
    """Return the arguments of the calls of an answer."""
    parser = AnswerParser(HERMES, TOOLS)
    return [call.arguments_json for part in (parser.add(answer), parser.finish(ended=True)) for call in part.calls]


def test_unparsable_tool_call_makes_all_calls_text() -> None:
    """If a parser skips a call, all calls between the marks are text."""
    whole = '<|open|>call tool="search"<|sep|><|close|>call<|sep|>'
    broken = whole.replace("tool", "fool")
    tags = RECORDED["tags for everything"][0]
    answer = f"<|open|>tools<|sep|>{whole}{broken}<|close|>tools<|sep|>"
    assert take(tags, [answer]).text == answer


def test_two_functions_in_one_tag_are_two_calls() -> None:
    one = "<function=search>\n</function>"
    answer = f"<tool_call>\n{one}\n{one}\n</tool_call>"
    for pieces in cuts(answer):
        taken = take(RECORDED["xml parameters"][0], pieces)
        assert (taken.text, taken.calls) == ("", [("search", {}), ("search", {})])


def test_repetition_within_a_tool_call_stays_linear() -> None:
    """Without a time limit, this parser takes minutes."""
    marks = RECORDED["its own quotes, after a channel of reasoning"][0]
    answer = f"<|tool_call>{'call:search{x:1,' * 4000}<tool_call|>"
    assert take(marks, [answer]).text == answer


@pytest.mark.parametrize("at", range(len(HERMES_CALL)))
def test_truncated_tool_call_is_text(at: int) -> None:
    """A call that max_tokens or a stop string cuts is text. Only the model itself may leave out the last mark."""
    cut = "So: " + HERMES_CALL[:at]
    assert take(HERMES, [cut], ended=False).text == cut
    assert take(HERMES, [cut], ended=False).calls == []
    ended = take(HERMES, [cut])
    assert (ended.text, ended.calls) in [(cut, []), ("So: ", [WEATHER])]


def test_tool_call_without_end_mark_needs_eos() -> None:
    """A call that was cut before its mark may have lost text."""
    open_call = HERMES_CALL.removesuffix("</tool_call>")
    assert take(HERMES, [open_call]).calls == [WEATHER]
    assert take(HERMES, [open_call], ended=False).text == open_call


def test_without_tools_call_markup_is_text() -> None:
    """The text is not held back until the call is complete."""
    for pieces in cuts(f"So {HERMES_CALL}."):
        assert take(HERMES, pieces, tools=[]) == Taken(f"So {HERMES_CALL}.", "", [], [])
    parser = AnswerParser(HERMES, [])
    assert parser.add("<tool_call>abc").text == "<tool_call>abc"


def test_tool_call_keeps_its_id_or_gets_a_new_one() -> None:
    """New ids have nine letters and digits, as some templates require."""
    marks, answer = RECORDED["without an end mark"][:2]
    assert take(marks, [answer]).ids == ["abcdefghi"]
    made = [take(HERMES, [HERMES_CALL]).ids[0] for _ in range(50)]
    assert len(set(made)) == 50
    assert all(len(one) == 9 and one.isalnum() for one in made)


THOUGHTS = {
    "opened by the model": ("<think>\na < b\n</think>\n\nSo.", False, "\n\nSo.", "\na < b\n"),
    "opened by the prompt": ("Hm.\n</think>\n\nSo.", True, "\n\nSo.", "Hm.\n"),
    "opened by both": ("<think>Hm</think>So", True, "So", "<think>Hm"),
    "none": ("So </think> it is.", False, "So </think> it is.", ""),
    "after white space": ("\n <think>Hm</think>So", False, "\n So", "Hm"),
    "twice": ("<think>a</think>\n<think>b</think>c", False, "\nc", "ab"),
    "never closed": ("<think>Hm </thin", False, "", "Hm </thin"),
    "empty": ("<think>\n\n</think>\n\nSo.", False, "\n\nSo.", "\n\n"),
    "in the middle of text": ("Use <think>x</think> y", False, "Use <think>x</think> y", ""),
    "in the middle of text, never closed": ("Use <think> and <b>", False, "Use <think> and <b>", ""),
    "nearly a mark": ("<<think>>", False, "<<think>>", ""),
}


@pytest.mark.parametrize("name", THOUGHTS)
def test_reasoning_is_split_from_text_at_any_cut(name: str) -> None:
    """Only marks are removed, and only those before the text."""
    answer, opened, text, reasoning = THOUGHTS[name]
    for pieces in cuts(answer):
        taken = take(THINKS, pieces, opened=opened)
        assert (taken.text, taken.reasoning) == (text, reasoning), pieces


def test_a_call_mentioned_in_reasoning_is_reasoning() -> None:
    answer = f"<think>I ask {HERMES_CALL} now</think>So"
    for pieces in cuts(answer):
        taken = take(HERMES, pieces)
        assert (taken.reasoning, taken.calls, taken.text) == (f"I ask {HERMES_CALL} now", [], "So")


def test_calls_that_end_open_reasoning_are_calls() -> None:
    """The model forgot the mark that ends its reasoning; an answer that was cut has not ended."""
    for pieces in cuts(f"<think>I ask {HERMES_CALL}\n{HERMES_CALL}\n"):
        taken = take(HERMES, pieces)
        assert (taken.reasoning, taken.calls, taken.text) == ("I ask ", [WEATHER, WEATHER], "")
        cut = take(HERMES, pieces, ended=False)
        assert (cut.reasoning, cut.calls) == (f"I ask {HERMES_CALL}\n{HERMES_CALL}\n", [])


ALPHABET = st.sampled_from(["<think>", "</think>", "<tool_call>", "</tool_call>", "<", "think>", "a ", "\n", "{}",
                            '{"name": "search"}'])  # fmt: skip


@given(st.lists(ALPHABET, max_size=12), st.lists(st.integers(1, 9), max_size=20), st.booleans(), st.booleans())
def test_any_answer_parses_alike_whole_or_in_pieces(
    words: list[str], sizes: list[int], opened: bool, ended: bool
) -> None:
    """Without tools, text and reasoning together are the answer without the marks of reasoning."""
    answer = "".join(words)
    pieces, rest = [], answer
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    for tools in (TOOLS, []):
        whole = take(HERMES, [answer], tools, opened=opened, ended=ended)
        cut = take(HERMES, [*pieces, rest], tools, opened=opened, ended=ended)
        assert (cut.text, cut.reasoning, cut.calls) == (whole.text, whole.reasoning, whole.calls)
        if not whole.calls:
            gone = Counter(answer)
            gone.subtract(whole.text + whole.reasoning)
            closed = gone["/"]
            opened_too = gone["<"] - closed
            assert +gone == Counter("<think>" * opened_too) + Counter("</think>" * closed)
            assert min(gone.values(), default=0) >= 0
