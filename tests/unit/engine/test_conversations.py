"""Conversations: reasoning and tool calls of a running model have fields of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from daemon.engine.output.chat_markup import ChatMarkup
from daemon.engine.prompt import preparation
from daemon.engine.prompt.answer_constraints import form_of
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import marked_model
from tests.unit.engine.harness import Answer, Harness

MARKS = {"<think>": False, "</think>": False, "<tool_call>": False, "</tool_call>": False}
THINK, END_THINK = 737, 738
EOS = 2
HERMES = "{# <tool_call> tool_call.name #}"
SEARCH = pb.Tool(name="search", parameters_json='{"type": "object"}')
CALL = '<tool_call>{"name": "search", "arguments": {"query": "a"}}</tool_call>'


@pytest.fixture(name="model")
def _model(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes a model."""
    return lambda marks=MARKS, template=HERMES: str(marked_model(tmp_path, marks, template))


def exactly(written: str, marks: Iterable[str]) -> pb.ResponseFormat:
    """Return the form of one text. Its marks are single tokens, which grammars name by their ids."""
    ids = {mark: f"<[{number}]>" for number, mark in enumerate(marks, 737)}
    words = re.split("(" + "|".join(map(re.escape, ids)) + ")", written)
    return pb.ResponseFormat(grammar="start: " + " ".join(ids.get(word, json.dumps(word)) for word in words if word))


def run(harness: Harness, request: pb.GenerateRequest, written: str, marks: Iterable[str] = MARKS) -> Answer:
    """Run a request whose model writes a text. No form was asked for, so marks in it mean what they say."""
    wanted = pb.GenerateRequest(response_format=exactly(written, marks))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "form_of", lambda _, tokenizer, *others: form_of(wanted, tokenizer, None, {}, ()))
        patch.setattr(ChatMarkup, "thinking", lambda *_, wanted: None)  # it holds from the first token on
        return harness.run(request)


def ask(harness: Harness, model: str, written: str = "", **fields: Any) -> Answer:
    """Ask a model, which writes a text if one is given."""
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="Hello")], **fields.pop("chat", {}))
    fields = {"model": model, "max_tokens": 200, **fields}
    request = pb.GenerateRequest(**fields if "text" in fields else {**fields, "chat": chat})
    return run(harness, request, written) if written else harness.run(request)


def parts_of(answer: Answer) -> tuple[str, str, list[tuple[str, Any]]]:
    """Return an answer's text, reasoning and calls."""
    deltas = [event.generate.delta for event in answer.events if event.generate.HasField("delta")]
    calls = [call for delta in deltas for call in delta.tool_calls]
    assert [call.index for call in calls] == list(range(len(calls)))
    named = [(call.name, json.loads(call.arguments_json)) for call in calls]
    return answer.text, "".join(delta.reasoning for delta in deltas), named


def test_chat_reasoning_is_separate_from_text(harness: Harness, model: Callable[..., str]) -> None:
    """All tokens are listed, those of marks included."""
    answer = ask(harness, model(), "<think>\nHm</think>\n\nSo.")
    assert parts_of(answer) == ("\n\nSo.", "\nHm", [])
    assert {THINK, END_THINK} <= set(answer.ids)
    assert len(answer.ids) == answer.finished.usage.completion_tokens - 1
    assert answer.finished.reason == pb.FINISH_REASON_STOP


def test_raw_prompt_gets_text_only(harness: Harness, model: Callable[..., str]) -> None:
    """Marks in such an answer are text."""
    written = f"<think>Hm</think>{CALL}"
    answer = ask(harness, model(), written, text="Hello")
    assert parts_of(answer) == (written, "", [])


def test_chat_template_may_open_the_reasoning(harness: Harness, model: Callable[..., str]) -> None:
    """The prompt ends with the start mark, and the answer has the end mark only."""
    path = model(template=HERMES + "{{ '<think>\n' }}")
    biased = pb.Sampling(logit_bias={END_THINK: 100, EOS: 50})
    answer = ask(harness, path, sampling=biased, response_format=exactly("So.", MARKS))
    assert parts_of(answer) == ("So.", "", [])
    assert answer.ids[0] == END_THINK


def test_reasoning_mark_in_user_text_opens_nothing(harness: Harness, model: Callable[..., str]) -> None:
    """A mark counts only at the end of the prompt."""
    path = model()
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="What is <think>")], enable_thinking=False)
    form = pb.ResponseFormat(regex="A mark")
    answer = harness.run(pb.GenerateRequest(model=path, chat=chat, max_tokens=50, response_format=form))
    assert parts_of(answer) == ("A mark", "", [])


def test_tool_call_is_sent_and_ends_the_answer(harness: Harness, model: Callable[..., str]) -> None:
    """The text of a call is not in the answer, but its tokens are listed."""
    answer = ask(harness, model(), f"I look.{CALL}", chat={"tools": [SEARCH]})
    assert parts_of(answer) == ("I look.", "", [("search", {"query": "a"})])
    assert answer.finished.reason == pb.FINISH_REASON_TOOL_CALLS
    assert len(answer.ids) == answer.finished.usage.completion_tokens - 1


def test_call_like_text_is_sent_as_text(harness: Harness, model: Callable[..., str]) -> None:
    """The reason is that of an answer without calls."""
    written = "<tool_call>search(a)</tool_call>"
    answer = ask(harness, model(), written, chat={"tools": [SEARCH]})
    assert parts_of(answer) == (written, "", [])
    assert answer.finished.reason == pb.FINISH_REASON_STOP


def test_tool_call_cut_by_max_tokens_is_text(harness: Harness, model: Callable[..., str]) -> None:
    """The text has all of the call."""
    path, chat = model(), {"tools": [SEARCH]}
    whole = ask(harness, path, CALL, chat=chat)
    cut = ask(harness, path, CALL, chat=chat, max_tokens=len(whole.ids) - 1)
    assert parts_of(cut) == (CALL.removesuffix("</tool_call>"), "", [])
    assert cut.finished.reason == pb.FINISH_REASON_LENGTH


def test_stop_string_is_found_in_a_tool_call(harness: Harness, model: Callable[..., str]) -> None:
    """Stop strings are looked for in text, reasoning and calls."""
    answer = ask(harness, model(), CALL, chat={"tools": [SEARCH]}, stop=pb.Stop(strings=["arguments"]))
    assert parts_of(answer) == ('<tool_call>{"name": "search", "', "", [])
    assert answer.finished.reason == pb.FINISH_REASON_STOP


def test_special_tokens_of_calls_are_text_without_tools(harness: Harness, model: Callable[..., str]) -> None:
    """Some notations of calls consist of special tokens. Nothing that the model wrote vanishes."""
    marks = {"[TOOL_CALLS]": True, "[ARGS]": True, "<think>": True, "</think>": True}
    path = model(marks, "{# [TOOL_CALLS] #}")
    written = '<think>Hm</think>So[TOOL_CALLS]search[ARGS]{"query": "a"}'
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="Hello")])
    request = pb.GenerateRequest(model=path, chat=chat, max_tokens=50)
    assert parts_of(run(harness, request, written, marks)) == ('So[TOOL_CALLS]search[ARGS]{"query": "a"}', "Hm", [])
    request.chat.tools.append(SEARCH)
    assert parts_of(run(harness, request, written, marks)) == ("So", "Hm", [("search", {"query": "a"})])


@pytest.mark.parametrize("opened", [True, False])
def test_grammar_applies_after_the_reasoning(harness: Harness, model: Callable[..., str], opened: bool) -> None:
    """Prompt or model may open the reasoning, which has no form."""
    path = model(template="{{ '<think>\n' }}" if opened else "")
    bias = {} if opened else {THINK: 6}
    sampling = pb.Sampling(temperature=1, seed=4, logit_bias={**bias, END_THINK: 4})
    form = pb.ResponseFormat(json_schema='{"type": "array", "items": {"type": "boolean"}, "maxItems": 3}')
    answer = ask(harness, path, response_format=form, sampling=sampling, max_tokens=600)
    text, reasoning, _ = parts_of(answer)
    assert answer.finished.reason == pb.FINISH_REASON_STOP
    assert all(isinstance(item, bool) for item in json.loads(text))
    assert reasoning


def test_structured_answer_cannot_end_in_reasoning(harness: Harness, model: Callable[..., str]) -> None:
    """Such an answer would not have the form."""
    bias = pb.Sampling(logit_bias={EOS: 100})
    form = pb.ResponseFormat(json_object=pb.JsonObject())
    answer = ask(harness, model(template="{{ '<think>\n' }}"), response_format=form, sampling=bias, max_tokens=30)
    assert answer.finished.reason == pb.FINISH_REASON_LENGTH


def test_grammar_applies_at_once_without_reasoning(harness: Harness, model: Callable[..., str]) -> None:
    """The request can forbid the reasoning, and the template can close it."""
    form, bias = pb.ResponseFormat(regex="[ab]{3}"), pb.Sampling(logit_bias={THINK: 100})
    closed = model(template="{{ '<think>\n\n</think>\n\n' }}")
    for chat in ({}, {"enable_thinking": False}):
        answer = ask(harness, closed, response_format=form, sampling=bias, chat=chat)
        assert re.fullmatch("[ab]{3}", answer.text)
