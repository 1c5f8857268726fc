"""Each notation of tool calls: what models write becomes calls and text, however it is cut, and nothing is lost."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from daemon.engine.output.answer_parser import AnswerParser, AnswerRules, Parts
from daemon.engine.output.chat_markup import ChatMarkup
from daemon.engine.output.harmony import understood
from daemon.engine.output.tool_calls import CallPiece, Tool, standing
from tests.unit.engine.fake_tokenizer import FakeTokenizer

REPORTED = json.loads(Path(__file__).with_name("reported_tool_calls.json").read_text())
"""Answers that other servers were reported to read wrongly, with the right result."""

TOOLS = [
    Tool(name, "", parameters)
    for name, parameters in {
        "get_weather": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "tags": {"type": "array", "items": {"type": "string"}},
                "opts": {
                    "type": "object",
                    "properties": {"unit": {"type": "string"}, "n": {"type": "null"}, "ok": {"type": "boolean"}},
                },
            },
        },
        "ns.get:time-now": {"type": "object", "properties": {}},
    }.items()
]
ARGUMENTS = {"city": 'Köln "x"\n</b>', "days": 3, "tags": ["a", "b"], "opts": {"unit": "C", "n": None, "ok": True}}
FIRST: tuple[str, Any] = ("get_weather", ARGUMENTS)
SECOND: tuple[str, Any] = ("ns.get:time-now", {})
WRITTEN = tomllib.loads(Path(__file__).with_name("written_calls.toml").read_text())
"""For each notation, how it is recognised, and an answer of both calls."""

NO_TEXT = (
    "Llama 3",
    "pythonic Llama",
    "Functionary 3.2",
    "Gemma 4, without its first mark",
    "Hermes, without end marks",
)
"""Calls that begin the answer without a mark, so no text can come before them, or have no end mark before more text."""


UNSTREAMED = ("Mistral, older", "Apriel", "Nemotron", "Hermes, without end marks, and keys in another order")
"""Answers whose arguments come before the id or the name, or are JSON within a string."""


def cuts(text: str) -> Iterator[list[str]]:
    """Yield a text whole, in single characters, and in pieces of several lengths."""
    yield [text]
    for size in (1, 2, 3, 5, 8, 13, 21, 34, 55):
        yield [text[at : at + size] for at in range(0, len(text), size)]


def markup(written: Mapping[str, Any]) -> ChatMarkup:
    """Return the marks of a model that is recognised by a text of its template and by its tokens."""
    return ChatMarkup(understood(TokenizerWrapper(FakeTokenizer(written["words"], written["template"]))))


def parse(
    marks: ChatMarkup, pieces: Sequence[str], tools: Sequence[Tool] = TOOLS, *, ended: bool = True, before: str = ""
) -> Parts:
    """Return the parts of an answer. The pieces of a call are the call; withdrawn ones never had whole arguments."""
    parser = AnswerParser(marks, tools, AnswerRules(bare=bool(before), before=before))
    parts = Parts()
    for piece in pieces:
        parts += parser.add(piece)
    parts += parser.finish(ended=ended)
    streamed: dict[int, list[str]] = {}
    for part in parts.pieces:
        if part.withdrawn:
            *_, arguments = streamed.pop(part.index)
            with pytest.raises(json.JSONDecodeError):
                json.loads(arguments)
        elif part.name:
            streamed[part.index] = [part.id, part.name, part.arguments_json]
        else:
            streamed[part.index][2] += part.arguments_json
    assert [[call.id, call.name, call.arguments_json] for call in parts.calls] == list(streamed.values())
    return parts


def calls_of(parts: Parts) -> list[tuple[str, Any]]:
    """Return names and arguments of calls."""
    return [(call.name, json.loads(call.arguments_json)) for call in parts.calls]


@pytest.mark.parametrize("case", REPORTED, ids=[case["case"] for case in REPORTED])
def test_reported_answers_are_read_right(case: dict[str, Any]) -> None:
    tools = [Tool(tool["name"], tool["description"], tool["parameters"]) for tool in case["tools"]]
    marks = markup({"template": case["template_must_contain"], "words": ()})
    for pieces in cuts(case["model_writes"]):
        parts = parse(marks, pieces, tools)
        if isinstance(case["right_calls"], list):
            assert [list(call) for call in calls_of(parts)] == case["right_calls"]
            assert parts.text == case["right_text"]
        else:  # each call is a call, or its whole text is in the answer
            for tool in tools:
                assert tool.name in {call.name for call in parts.calls} or tool.name in parts.text


@pytest.mark.parametrize("name", WRITTEN)
def test_each_notation_is_read_at_any_cut(name: str) -> None:
    written = WRITTEN[name]
    answer, marks = written["answer"], markup(written)
    for pieces in cuts(answer):
        parts = parse(marks, pieces)
        assert (calls_of(parts), parts.text) == ([FIRST, SECOND], ""), pieces


@pytest.mark.parametrize("name", [name for name in WRITTEN if not name.startswith(NO_TEXT)])
def test_text_around_calls_is_kept(name: str) -> None:
    written = WRITTEN[name]
    prose = "So. " if name != "gpt-oss" else "<|channel|>final<|message|>So. <|end|><|start|>assistant"
    parts = parse(markup(written), [prose + written["answer"], "\n\nLet me see."])
    assert calls_of(parts) == [FIRST, SECOND]
    assert parts.text == "So. \n\nLet me see."


@pytest.mark.parametrize("name", ["Llama 3", "pythonic Llama"])
def test_text_in_the_prompt_begins_the_answer(name: str) -> None:
    """Calls without a mark do not begin a message that has begun; white space is no beginning."""
    answer, marks = WRITTEN[name]["answer"], markup(WRITTEN[name])
    for pieces in cuts(answer):
        assert parse(marks, pieces, before="An example: ").text == answer
        assert calls_of(parse(marks, pieces, before=" \n")) == [FIRST, SECOND]


@pytest.mark.parametrize("tools", [[], TOOLS], ids=["alone", "tools"])
def test_functionary_text_loses_its_recipient(tools: list[Tool]) -> None:
    """The prompt ends with `>>>`, whether the request has tools or not."""
    marks = markup(WRITTEN["Functionary 3.2"])
    for pieces in cuts("all\nHello >>>all\nYou >>> all, >>>none\n{}"):
        parts = parse(marks, pieces, tools)
        assert (parts.text, parts.calls) == ("Hello You >>> all, >>>none\n{}", [])
    assert parse(marks, ["all of it"], tools).text == "all of it"
    assert parse(marks, ["all\nof it"], tools, before="Yes, ").text == "all\nof it"
    assert parse(marks, [WRITTEN["Functionary 3.2"]["answer"]], []).text == WRITTEN["Functionary 3.2"]["answer"]


@pytest.mark.parametrize("name", WRITTEN)
def test_a_cut_call_is_text_or_whole(name: str) -> None:
    """Whatever is cut off, no call has other arguments, and the names of calls that are none are in the text."""
    answer, marks = WRITTEN[name]["answer"], markup(WRITTEN[name])
    for at in range(0, len(answer), 2):
        for ended in (True, False):
            parts = parse(marks, [answer[:at]], ended=ended)
            calls = calls_of(parts)
            assert calls in ([], [FIRST], [FIRST, SECOND]), answer[:at]
            for count, tool in enumerate(("get_weather", "ns.get:time-now"), 1):
                assert len(calls) >= count or tool not in answer[:at] or tool in parts.text, answer[:at]


@pytest.mark.parametrize("name", [name for name in WRITTEN if name not in UNSTREAMED])
def test_arguments_are_streamed_as_they_are_written(name: str) -> None:
    """The city is known before the call ends."""
    answer = WRITTEN[name]["answer"]
    parser = AnswerParser(markup(WRITTEN[name]), TOOLS)
    parts = Parts()
    for character in answer[: answer.index("days")]:
        parts += parser.add(character)
    assert parts.calls == []
    assert "Köln" in "".join(piece.arguments_json for piece in parts.pieces)


def test_model_ids_of_calls_are_kept() -> None:
    ids = {
        "Kimi K2": ["functions.get_weather:0", "functions.ns.get:time-now:1"],
        "Mistral, with ids": ["abcdefghi", "123456789"],
        "Mistral, older": ["abcdefghi", "123456789"],
        "Command A": ["0", "1"],
        "Apriel": ["call00001", "call00002"],
    }
    for name, expected in ids.items():
        parts = parse(markup(WRITTEN[name]), [WRITTEN[name]["answer"]])
        assert [call.id for call in parts.calls] == expected


def test_calls_of_an_answer_have_ids_of_their_own() -> None:
    """Callers tell the results of calls apart by their ids. A call that was withdrawn leaves its id to the next one."""
    call = "<|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
    section = f"<|tool_calls_section_begin|>{call}{call}<|tool_calls_section_end|>"
    marks = markup(WRITTEN["Kimi K2"])
    first, second = (one.id for one in parse(marks, [section]).calls)
    assert first == "functions.get_weather:0"
    assert second.isalnum()
    broken = section.replace("{}<|tool_call_end|>", "{,", 1)
    assert parse(marks, [broken, section]).calls[0].id == first


def test_only_pieces_of_a_withdrawn_call_are_left_out() -> None:
    """Whole calls before it stay, and so does the end of a call that was announced earlier."""
    whole = [CallPiece(0, "a", "weather", "{}")]
    begun = [CallPiece(1, "b", "weather", '{"c'), CallPiece(1, arguments_json="ity")]
    withdrawn, again = CallPiece(1, withdrawn=True), CallPiece(1, "c", "weather", "{}")
    assert standing([*whole, *begun, withdrawn]) == whole
    assert standing([begun[1], withdrawn, *begun, withdrawn, again]) == [withdrawn, again]
    assert standing([*whole, *begun]) == [*whole, *begun]


@pytest.mark.parametrize(
    ("schema", "written", "value"),
    [
        ({"type": ["string", "integer"]}, "3.10", "3.10"),
        ({"type": ["string", "integer"]}, "3", 3),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "1e3", "1e3"),
        ({"type": ["string", "number"]}, "3.10", 3.1),
        ({"enum": ["a", 1]}, "1.5", "1.5"),
        ({"enum": ["a", 1.5]}, "1.5", 1.5),
        ({"type": "integer"}, "3.5", 3.5),
        ({}, "3.10", 3.1),
    ],
)
def test_number_that_is_no_integer_is_a_text_where_it_can_be(schema: dict[str, Any], written: str, value: Any) -> None:
    """A version, such as 3.10, is no number where the schema allows integers and texts."""
    tool = Tool("f", "", {"type": "object", "properties": {"a": schema}})
    answer = f"<tool_call>f<arg_key>a</arg_key><arg_value>{written}</arg_value></tool_call>"
    (call,) = parse(markup(WRITTEN["GLM 4.7"]), [answer], [tool]).calls
    assert json.loads(call.arguments_json) == {"a": value}


@pytest.mark.parametrize(
    ("written", "value"),
    [
        (r"\ud83d\ude42 \u00e9", "🙂 é"),
        (r"\U0001F642\/", "🙂/"),
        (r"\ud83d", None),
        (r"\ud83d\ud83d", None),
        (r"\ude42", None),
        (r"\ud83d\n", None),
    ],
)
def test_escaped_halves_of_a_character_are_joined(written: str, value: str | None) -> None:
    """A list of calls as Python may have strings of JSON; half a character is no text, and the call none."""
    answer = f'<|tool_call_start|>[get_weather(city="{written}")]<|tool_call_end|>'
    for pieces in cuts(answer):
        parts = parse(markup(WRITTEN["LFM2"]), pieces)
        expected = ([("get_weather", {"city": value})], "") if value is not None else ([], answer)
        assert (calls_of(parts), parts.text) == expected


@pytest.mark.parametrize(
    ("name", "answer"), [("pythonic Llama", "[{}]"), ("OLMo 3", "<function_calls>{}</function_calls>")]
)
def test_call_that_is_not_read_to_its_end_is_text(name: str, answer: str) -> None:
    """Strings may have quotes without an escape. An argument that ends at one of them is another one."""
    tool = Tool("run", "", {"type": "object", "properties": {"code": {"type": "string"}}})
    answer = answer.format("run(code='python -c \"f(a='x')\"')")
    for pieces in cuts(answer):
        parts = parse(markup(WRITTEN[name]), pieces, [tool])
        assert (parts.calls, parts.text) == ([], answer)


def test_call_without_a_mark_needs_an_end() -> None:
    """Gemma 4 leaves out the mark at the beginning of its answer alone."""
    for said in ("call:get_weather{city:1} calls it.", "Call call:get_weather{}<tool_call|>.", "call: me {x}", "call:"):
        for pieces in cuts(said):
            parts = parse(markup(WRITTEN["Gemma 4"]), pieces)
            assert (parts.calls, parts.text) == ([], said)


def test_example_of_a_call_is_text_without_the_mark_behind_it() -> None:
    """Qwen 3 Coder leaves out the mark that begins a block, but not the mark that ends it."""
    example = "<function=get_weather>\n<parameter=city>\nBergen\n</parameter>\n</function>"
    said = f"Write {example} for that, or <function=get_weather>."
    for pieces in cuts(said):
        parts = parse(markup(WRITTEN["Qwen 3 Coder"]), pieces)
        assert (parts.calls, parts.text) == ([], said)
