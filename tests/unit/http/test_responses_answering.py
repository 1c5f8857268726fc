"""OpenAI's responses: what the events of a generation become."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from daemon.http.errors import Problem
from daemon.http.generation import Ask
from daemon.http.responses.answering import Answer
from daemon.http.responses.reasoning import packed
from daemon.http.responses.request_types import ResponseRequest
from mlx_sidecar import (
    Delta,
    Finished,
    GeneratedToolCall,
    GenerateEvent,
    Started,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)

TIMINGS = Timings(0.1, 0.0, 0.0, 0.0, 0.1, 0.2, 0.2)
BERGEN = GeneratedToolCall(0, "a1", "weather", '{"city": "Bergen"}')
END = Finished("tool_calls", "", Usage(12, 8, 6, reasoning_tokens=1), TIMINGS)
EVENTS: list[GenerateEvent] = [
    Started("req-7", "org/model", 12, 8),
    Delta("", (1,), (), "Where? "),
    Delta("I ", (2,), ()),
    Delta("look.", (2,), ()),
    Delta("", (3,), (), tool_call_deltas=(ToolCallDelta(0, "a1", "weather", '{"city": ', False),)),
    Delta("", (4,), (), "", (BERGEN,), tool_call_deltas=(ToolCallDelta(0, "", "", '"Bergen"}', False),)),
    END,
]
"""A recorded generation with all that an answer can have."""
TOOL = {"type": "function", "name": "weather", "description": "of a city", "parameters": {"type": "object"}}
PATCH = {"type": "custom", "name": "patch", "description": "changes files", "format": {"type": "text"}}


def request(**fields: Any) -> ResponseRequest:
    """Return a request that was read from JSON."""
    return ResponseRequest.model_validate_json(json.dumps({"model": "m", "input": "Hi", **fields}))


def stream(events: Sequence[GenerateEvent] = EVENTS, **fields: Any) -> list[dict[str, Any]]:
    """Return a generation as a client gets it."""
    answer = Answer(request(**fields), Ask("m", "", request_id="r"), now=1000.0)
    return [json.loads(one.model_dump_json(exclude_unset=True)) for event in events for one in answer.add(event)]


def test_events_come_in_their_whole_order() -> None:
    """Numbered without gaps, each with the place that it is about."""
    seen = stream()
    assert [one["sequence_number"] for one in seen] == list(range(len(seen)))
    assert [(one["type"].removeprefix("response."), one.get("output_index")) for one in seen] == [
        ("created", None),
        ("in_progress", None),
        ("output_item.added", 0),
        ("content_part.added", 0),
        ("reasoning_text.delta", 0),
        ("reasoning_text.done", 0),
        ("content_part.done", 0),
        ("output_item.done", 0),
        ("output_item.added", 1),
        ("content_part.added", 1),
        ("output_text.delta", 1),
        ("output_text.delta", 1),
        ("output_text.done", 1),
        ("content_part.done", 1),
        ("output_item.done", 1),
        ("output_item.added", 2),
        ("function_call_arguments.delta", 2),
        ("function_call_arguments.delta", 2),
        ("function_call_arguments.done", 2),
        ("output_item.done", 2),
        ("completed", None),
    ]
    done = [one["item"] for one in seen if one["type"] == "response.output_item.done"]
    assert seen[-1]["response"]["output"] == done
    assert [item["type"] for item in done] == ["reasoning", "message", "function_call"]
    assert all(item["status"] == "completed" for item in done)
    assert done[2]["arguments"] == '{"city": "Bergen"}'


def test_answer_tells_what_was_asked_and_counted() -> None:
    """With the id of the daemon's log."""
    response = stream(metadata={"a": "b"}, tools=[TOOL, {"type": "web_search"}], instructions="Be brief.")[-1][
        "response"
    ]
    assert (response["id"], response["model"], response["status"]) == ("resp_r", "org/model", "completed")
    assert (response["metadata"], response["instructions"]) == ({"a": "b"}, "Be brief.")
    assert [tool["name"] for tool in response["tools"]] == ["weather"]
    assert response["usage"] == {
        "input_tokens": 12,
        "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 4},
        "output_tokens": 6,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 18,
    }


def test_reasoning_comes_as_summary_and_to_give_back() -> None:
    """If that is asked for."""
    seen = stream(reasoning={"summary": "auto"}, include=["reasoning.encrypted_content"])
    kinds = [one["type"] for one in seen if "reasoning" in one["type"]]
    assert kinds == [
        f"response.reasoning_summary_{kind}" for kind in ("part.added", "text.delta", "text.done", "part.done")
    ]
    item = seen[-1]["response"]["output"][0]
    assert item["summary"] == [{"type": "summary_text", "text": "Where? "}]
    assert (item["content"], item["encrypted_content"]) == ([], packed("Where? "))


def test_answer_that_is_cut_short_is_incomplete() -> None:
    """And so is its last item."""
    seen = stream([*EVENTS[:3], Finished("length", "", END.usage, TIMINGS)])
    assert seen[-1]["type"] == "response.incomplete"
    assert seen[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in seen[-1]["response"]["output"]] == ["completed", "incomplete"]


def test_withdrawn_call_is_never_done() -> None:
    """It keeps its place as incomplete; what the model wrote is text. The next call has a place of its own."""
    events = [
        EVENTS[0],
        Delta("", (3,), (), tool_call_deltas=(ToolCallDelta(0, "a0", "weather", '{"city', False),)),
        Delta("<call>", (3,), (), tool_call_deltas=(ToolCallDelta(0, "", "", "", True),)),
        Delta("", (3,), (), "", (BERGEN,), tool_call_deltas=(ToolCallDelta(0, "a1", "weather", "{}", False),)),
        END,
    ]
    seen = stream(events)
    done = [one["item"]["type"] for one in seen if one["type"] == "response.output_item.done"]
    assert done == ["message", "function_call"]
    items = [(item["type"], item["status"]) for item in seen[-1]["response"]["output"]]
    assert items == [("function_call", "incomplete"), ("message", "completed"), ("function_call", "completed")]
    answer = Answer(request(), Ask("m", "", request_id="r"))
    for event in events:
        list(answer.add(event))
    assert [item.type for item in answer.kept().output] == ["message", "function_call"]


def test_pieces_after_a_withdrawn_call_are_not_its_own() -> None:
    """Its number is used again, here by a custom tool, whose text comes once it is whole."""
    pieces = [
        ToolCallDelta(0, "a0", "weather", '{"city', False),
        ToolCallDelta(0, "", "", "", True),
        ToolCallDelta(0, "a1", "patch", '{"input": "x"}', False),
    ]
    call = GeneratedToolCall(0, "a1", "patch", '{"input": "x"}')
    seen = stream([EVENTS[0], Delta("", (3,), (), "", (call,), tool_call_deltas=tuple(pieces)), END], tools=[PATCH])
    assert [item.get("arguments", item.get("input")) for item in seen[-1]["response"]["output"]] == ['{"city', "x"]


def test_white_space_between_calls_is_no_message() -> None:
    """White space before text is part of it, and white space alone is an answer."""
    blank = Delta("\n", (1,), ())
    calls = [EVENTS[0], blank, *EVENTS[4:6], blank, END]
    assert [item["type"] for item in stream(calls)[-1]["response"]["output"]] == ["function_call"]
    assert stream([EVENTS[0], blank, EVENTS[2], END])[-1]["response"]["output"][0]["content"][0]["text"] == "\nI "
    assert stream([EVENTS[0], blank, END])[-1]["response"]["output"][0]["content"][0]["text"] == "\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [('{"input": "a\\nb"}', "a\nb"), ('{"input": 1}', '{"input": 1}'), ('{"x": "a"}', '{"x": "a"}')],
)
def test_custom_call_comes_whole(arguments: str, text: str) -> None:
    """As text; arguments of another form are the text."""
    call = GeneratedToolCall(0, "a1", "patch", arguments)
    piece = ToolCallDelta(0, "a1", "patch", arguments, False)
    seen = stream([EVENTS[0], Delta("", (3,), (), "", (call,), tool_call_deltas=(piece,)), END], tools=[PATCH])
    assert [one["type"].removeprefix("response.") for one in seen[2:-1]] == [
        "output_item.added",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
    ]
    (item,) = seen[-1]["response"]["output"]
    assert (item["type"], item["call_id"], item["input"]) == ("custom_tool_call", "a1", text)


@pytest.mark.parametrize(("tool", "kind"), [(TOOL, "function_call"), (PATCH, "custom_tool_call")])
def test_call_of_a_namespace_has_its_own_name_and_that_of_the_namespace(tool: dict[str, Any], kind: str) -> None:
    """From its first event on. A tool of the same name without a namespace has none."""
    group = {"type": "namespace", "name": "mcp__met", "tools": [tool]}
    name = f"mcp__met__{tool['name']}"
    events = []
    for number, one in enumerate((name, tool["name"])):
        call = GeneratedToolCall(number, f"a{number}", one, '{"input": "x"}')
        piece = ToolCallDelta(number, f"a{number}", one, '{"input": "x"}', False)
        events.append(Delta("", (3,), (), "", (call,), tool_call_deltas=(piece,)))
    seen = stream([EVENTS[0], *events, END], tools=[tool, group])
    items = [one["item"] for one in seen if one["type"] == "response.output_item.added"]
    for found in (items, seen[-1]["response"]["output"]):
        names = [(item["type"], item.get("namespace"), item["name"]) for item in found]
        assert names == [(kind, "mcp__met", tool["name"]), (kind, None, tool["name"])]
        assert "namespace" not in found[1]


def test_call_tells_that_nothing_is_encrypted_where_its_tool_asks() -> None:
    """Codex takes what a model wrote to a sub-agent as encrypted, unless the call says so. Others are as they were."""
    schema = {"type": "object", "properties": {"city": {"type": "string", "encrypted": True}}}
    for tool, said in ((TOOL, None), ({**TOOL, "parameters": schema}, [])):
        seen = stream(tools=[tool])
        items = [one["item"] for one in seen if one["type"].startswith("response.output_item.")]
        calls = [item for item in [*items, *seen[-1]["response"]["output"]] if item["type"] == "function_call"]
        assert [item.get("encrypted_function_args") for item in calls] == [said] * 3


def test_scores_are_those_of_the_text() -> None:
    """In each piece, and all of them at the end."""
    score = TokenLogprob(7, -0.5, (), " é")
    seen = stream([EVENTS[0], Delta("é", (7,), (score,)), Delta("", (7,), (score,), "Hm."), END])
    delta = next(one for one in seen if one["type"] == "response.output_text.delta")
    assert delta["logprobs"] == [{"token": " é", "logprob": -0.5, "bytes": [32, 195, 169], "top_logprobs": []}]
    assert seen[-1]["response"]["output"][0]["content"][0]["logprobs"] == delta["logprobs"]


def token(text: str) -> TokenLogprob:
    """Return a token with a score."""
    return TokenLogprob(7, -0.5, (), text)


def scored(*deltas: Delta) -> tuple[list[str], list[str]]:
    """Return the tokens whose scores come in a stream of deltas, and those of the whole messages."""
    seen = stream([EVENTS[0], *deltas, END], tools=[TOOL])
    pieces = [one["logprobs"] for one in seen if one["type"] == "response.output_text.delta"]
    messages = [item for item in seen[-1]["response"]["output"] if item["type"] == "message"]
    whole = [score for item in messages for score in item["content"][0]["logprobs"]]
    return [score["token"] for piece in pieces for score in piece], [score["token"] for score in whole]


def test_scores_wait_for_the_text_of_their_tokens() -> None:
    """A sign that may begin a mark is held back, and so is the text of what looks like a call and is none."""
    held = [Delta("a", (1,), (token("a"),)), Delta("", (2,), (token(" <"),)), Delta(" <b", (3,), (token("b"),))]
    assert scored(*held) == (["a", " <", "b"],) * 2
    call = ToolCallDelta(0, "a0", "weather", '{"city', False)
    void = ToolCallDelta(0, "", "", "", True)
    none = [
        Delta("", (1,), (token("<call>"),)),
        Delta("", (2,), (token("x"),), tool_call_deltas=(call,)),
        Delta("<call>xy", (3,), (token("y"),), tool_call_deltas=(void,)),
    ]
    assert scored(*none) == (["<call>", "x", "y"],) * 2
    parts = [Delta("", (number,), (token("\ufffd"),)) for number in (1, 2)]
    assert scored(*parts, Delta("é", (3,), (token("\ufffd"),))) == (["\ufffd"] * 3,) * 2, "of one character"


def test_scores_of_reasoning_and_calls_are_none_of_the_text() -> None:
    """They have no place in this API."""
    first = ToolCallDelta(0, "a1", "weather", '{"city": ', False)
    last = ToolCallDelta(0, "", "", '"Bergen"}', False)
    deltas = [
        Delta("", (1,), (token("<think>"),)),
        Delta("", (2,), (token("Hm."),), "Hm."),
        Delta("", (3,), (token("</think>"),)),
        Delta("a", (3,), (token("a"),)),
        Delta("", (4,), (token("<call>"),)),
        Delta("", (5,), (token("{"),), tool_call_deltas=(first,)),
        Delta("", (6,), (token("}"),), "", (BERGEN,), tool_call_deltas=(last,)),
        Delta("b", (7,), (token("b"),)),
    ]
    assert scored(*deltas) == (["a", "b"],) * 2
    together = Delta("a", (1, 2, 3), (token("."), token("</think>"), token("a")), ".")
    assert scored(together) == (["a"],) * 2


@pytest.mark.parametrize("begun", [True, False])
def test_failed_stream_has_one_end(begun: bool) -> None:
    """With its beginning, if that was not sent before."""
    answer = Answer(request(), Ask("m", "", request_id="r"), now=1000.0)
    sent = list(answer.add(EVENTS[0])) if begun else []
    sent += answer.failed(Problem(503, "it ended", code="engine_restarted"))
    assert [one.type for one in sent] == ["response.created", "response.in_progress", "error", "response.failed"]
    assert [one.sequence_number for one in sent] == [0, 1, 2, 3]
    assert sent[2].error is not None
    assert (sent[2].error.type, sent[2].error.code) == ("server_error", "engine_restarted")
    failure = sent[-1].response
    assert failure is not None
    assert failure.error is not None
    assert (failure.status, failure.error.code) == ("failed", "engine_restarted")
