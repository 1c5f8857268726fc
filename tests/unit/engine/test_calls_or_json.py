"""A form of JSON beside tools: for any weights, the answer is calls, or JSON of the form, and never both."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from daemon.engine.output.answer_parser import AnswerParser, AnswerRules
from daemon.engine.output.notations.detection import HARMONY_MARKS
from daemon.engine.output.tool_calls import Tool
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.harness import Answer, Harness
from tests.unit.engine.marked_calls import FIRST, MARKS, SCHEMA_OF, _model, calls_of, request
from tests.unit.engine.recorded_answers import HARMONY, HERMES, HERMES_CALL, RECORDED, TOOLS, WEATHER

__all__ = ["_model"]

EOS = 2
FORM = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "why": {"type": "array", "items": {"type": "boolean"}}},
    "required": ["mood", "why"],
    "additionalProperties": False,
}
JSON = pb.ResponseFormat(json_schema=json.dumps(FORM))


def ask(harness: Harness, model: str, *, bias: dict[int, float], **fields: Any) -> Answer:
    """Ask for calls or JSON. The answer ends where it may."""
    chat = {"enable_thinking": False, **fields.pop("chat", {})}
    wanted = {"response_format": JSON, "max_tokens": 400, **fields}
    return harness.run(request(model, chat=chat, sampling={"logit_bias": {EOS: 100.0, **bias}}, **wanted))


def check(answer: Answer) -> str:
    """Check an answer, and return which of both it is."""
    if answer.finished.reason == pb.FINISH_REASON_TOOL_CALLS:
        assert not answer.text.strip("\n")
        for tool, arguments in calls_of(answer):
            jsonschema.validate(arguments, SCHEMA_OF[tool])
        return "calls"
    assert (answer.finished.reason, calls_of(answer)) == (pb.FINISH_REASON_STOP, []), answer.failure
    jsonschema.validate(json.loads(answer.text), FORM)
    return "JSON"


@pytest.mark.parametrize("name", ["Hermes", "Qwen 3 Coder", "Kimi K2", "Gemma 4"])
def test_answer_is_calls_or_json(harness: Harness, model: Callable[..., str], name: str) -> None:
    """The mark that begins a call decides. Line ends before it, which models write before text as well, do not."""
    path = model(*MARKS[name])
    assert check(ask(harness, path, bias={FIRST: 80.0})) == "calls"
    assert check(ask(harness, path, bias={FIRST: -100.0})) == "JSON"


def test_answer_behind_reasoning_is_calls_or_json(harness: Harness, model: Callable[..., str]) -> None:
    """The reasoning has no form."""
    path = model(["<tool_call>", "<think>", "</think>"], "<tool_call>", opened="{{ '<think>\n' }}")
    for mark, kind in ((80.0, "calls"), (-100.0, "JSON")):
        answer = ask(harness, path, bias={FIRST: mark, FIRST + 2: 90.0}, chat={"enable_thinking": None})
        assert check(answer) == kind


def test_gpt_oss_writes_the_header_of_what_it_chooses(harness: Harness, model: Callable[..., str]) -> None:
    """Calls and text are messages with different headers."""
    path = model(list(HARMONY_MARKS), "")
    end = FIRST + list(HARMONY_MARKS).index("<|end|>")
    kinds = set()
    for seed in range(6):
        answer = harness.run(
            request(
                path,
                response_format=JSON,
                max_tokens=400,
                sampling={"seed": seed, "logit_bias": {end: 9.0, EOS: 100.0}},
            )
        )
        kinds.add(check(answer))
    assert kinds == {"calls", "JSON"}, "seeds 0 to 5 show both"


def test_continued_text_has_no_calls(harness: Harness, model: Callable[..., str]) -> None:
    """It has begun already, so the rest of it is in the form."""
    turns = [pb.ChatMessage(role="user", content="Hi"), pb.ChatMessage(role="assistant", content="So: ")]
    wanted = request(
        model(*MARKS["Hermes"]),
        response_format=JSON,
        chat={"continue_final_message": True},
        sampling={"logit_bias": {FIRST: 80.0, EOS: 100.0}},
        max_tokens=400,
    )
    del wanted.chat.messages[:]
    wanted.chat.messages.extend(turns)
    assert check(harness.run(wanted)) == "JSON"


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("tools", [TOOLS, []], ids=["tools", "no tools"])
def test_marks_in_json_are_its_text(name: str, tools: list[Tool]) -> None:
    """A whole answer that is quoted in a string would be reasoning, headers and calls elsewhere."""
    markup, quoted = RECORDED[name][:2]
    text = json.dumps({"escaped": quoted}, ensure_ascii=False) + f'{{"raw": "{quoted}"}}'
    header = "<|channel|>final<|message|>" if markup is HARMONY else ""
    for pieces in ([header + text], list(header + text)):
        parser = AnswerParser(markup, tools, AnswerRules(bare=not header, in_form=True))
        parts = [*map(parser.add, pieces), parser.finish(ended=True)]
        read = [("".join(part.text for part in parts), "".join(part.reasoning for part in parts)), parser.calls]
        assert read == [(text, ""), 0]


def test_call_in_place_of_json_is_read() -> None:
    parser = AnswerParser(HERMES, TOOLS, AnswerRules(bare=True, in_form=True))
    (call,) = [*parser.add(HERMES_CALL).calls, *parser.finish(ended=True).calls]
    assert (call.name, json.loads(call.arguments_json)) == WEATHER


@pytest.mark.parametrize(
    ("tool", "form", "marks", "field"),
    [
        ('{"not": {}}', JSON, MARKS["Hermes"], "chat.tools[0].parameters_json"),
        ("{}", pb.ResponseFormat(json_schema='{"not": {}}'), MARKS["Hermes"], "response_format.json_schema"),
        ("{}", JSON, (["<none>"], ""), "chat.tools"),
    ],
)
def test_what_cannot_be_kept_to_is_refused_by_its_field(
    harness: Harness,
    model: Callable[..., str],
    tool: str,
    form: pb.ResponseFormat,
    marks: tuple[list[str], str],
    field: str,
) -> None:
    """The tool's schema, the form, or tools of which no call could be told from text."""
    tools = [pb.Tool(name="t", parameters_json=tool)]
    answer = ask(harness, model(*marks), bias={}, chat={"tools": tools}, response_format=form)
    assert (answer.failure.reason, answer.failure.field) == ("INVALID_ARGUMENT", field)
