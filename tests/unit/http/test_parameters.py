"""Parameters that no type has: each is refused with its name and place."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.http.errors import Problem
from daemon.http.openai.chat_types import ChatRequest
from daemon.http.openai.completion_types import CompletionRequest, PlainPrompt
from daemon.http.parameters import Parameters, _nested, check, objects
from daemon.http.responses.request_types import ResponseRequest


def test_unknown_parameter_is_refused_with_the_likely_one() -> None:
    """At its place, also in an object of the request; a name that is like none has no hint."""
    turn = {"role": "user", "content": "Hi", "contnt": "Hi"}
    for given, field, hint in (
        ({"temprature": 1}, "temprature", "; did you mean temperature?"),
        ({"messages": [turn]}, "messages[0].contnt", "; did you mean content?"),
        ({"zzz": 1}, "zzz", ""),
        ({"<zzz>": 1}, "<zzz>", ""),
    ):
        whole = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **given}
        with pytest.raises(Problem) as caught:
            check(ChatRequest.model_validate(whole))
        assert (caught.value.field, caught.value.message) == (field, f"{field} is no known parameter{hint}")


def test_values_that_hold_no_objects_are_not_visited() -> None:
    """A prompt can be a million token ids: only what may have parameters of its own is looked at, in order."""
    ids = [[1, 2, 3], [4]]
    (whole, *prompts) = objects(CompletionRequest.model_validate({"model": "m", "prompt": ids, "logit_bias": {"5": 1}}))
    assert whole[0] == ()
    assert [(steps, type(one)) for steps, one in prompts] == [(("prompt", number), PlainPrompt) for number in range(2)]
    assert _nested(enumerate([1, "x", None, [2], {"a": 1}])) == [(3, [2])]


def test_error_has_only_the_beginning_of_a_long_name() -> None:
    """It may be megabytes of a prompt whose quotes went wrong."""
    turn = {"role": "user", "content": "Hi", "x" * 1_000_000: 1}
    with pytest.raises(Problem) as caught:
        check(ChatRequest.model_validate({"model": "m", "messages": [turn]}))
    field = f"messages[0].{'x' * 64}…"
    assert (caught.value.field, caught.value.message) == (field, f"{field} is no known parameter")


@pytest.mark.parametrize(
    ("given", "field", "why"),
    [
        ({"store": True}, "store", "answers are not kept"),
        ({"functions": [{}]}, "functions", "use `tools`"),
        (
            {"messages": [{"role": "user", "content": "Hi", "audio": {}}]},
            "messages[0].audio",
            "models answer with text",
        ),
    ],
)
def test_refused_parameter_is_told_with_what_to_do(given: dict[str, Any], field: str, why: str) -> None:
    """Leaving it out is right for all of them; what to do instead comes behind."""
    whole = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **given}
    with pytest.raises(Problem) as caught:
        check(ChatRequest.model_validate(whole))
    assert (caught.value.field, caught.value.code) == (field, "unsupported_parameter")
    assert caught.value.message == f"{field} is not supported, leave it out: {why}"


@pytest.mark.parametrize(
    ("kind", "given", "field", "types"),
    [
        (
            ChatRequest,
            {"tool_choice": {"type": "required", "function": {"name": "f"}}},
            "tool_choice.function",
            "`function`",
        ),
        (
            ChatRequest,
            {"tool_choice": {"type": "auto", "allowed_tools": {"mode": "auto", "tools": []}}},
            "tool_choice.allowed_tools",
            "`allowed_tools`",
        ),
        (
            ChatRequest,
            {"response_format": {"type": "json_object", "json_schema": {"schema": {}}}},
            "response_format.json_schema",
            "`json_schema`",
        ),
        (
            ResponseRequest,
            {"tool_choice": {"type": "required", "name": "f"}},
            "tool_choice.name",
            "`function` or `custom`",
        ),
        (ResponseRequest, {"tool_choice": {"type": "auto", "tools": []}}, "tool_choice.tools", "`allowed_tools`"),
        (
            ResponseRequest,
            {"text": {"format": {"type": "json_object", "schema": {"type": "object"}}}},
            "text.format.schema",
            "`json_schema`",
        ),
        (
            ResponseRequest,
            {"tools": [{"type": "custom", "name": "c", "format": {"type": "text", "syntax": "lark"}}]},
            "tools[0].format.syntax",
            "`grammar`",
        ),
    ],
)
def test_parameter_of_another_type_of_its_object_is_refused(
    kind: type[Parameters], given: dict[str, Any], field: str, types: str
) -> None:
    """A schema beside `json_object`, or a tool beside `required`, would be ignored without a word."""
    whole = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **given}
    if kind is ResponseRequest:
        whole = {"model": "m", "input": "Hi", **given}
    with pytest.raises(Problem) as caught:
        check(kind.model_validate(whole))
    assert (caught.value.status, caught.value.field) == (400, field)
    assert caught.value.message == f"{field} is only for type {types}; name that, or leave it out"


def test_null_of_another_type_asks_for_nothing() -> None:
    """Programs that write all fields of an object send it."""
    turn = {"role": "user", "content": "Hi"}
    form = {"type": "json_object", "json_schema": None}
    check(ChatRequest.model_validate({"model": "m", "messages": [turn], "response_format": form}))
