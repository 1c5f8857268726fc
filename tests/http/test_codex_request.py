"""A request of the shape that Codex sends: answered, and reused when it comes again with other ids."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.http import raw
from tests.http.conftest import Door
from tests.support.scripted_model import scripted_model
from tests.support.tool_conversation import ANSWERS, TEMPLATE

BLOCK = 16
"""Tokens of a block: the last ones of a prompt are always computed again."""


GROUPED = {
    "Snow there?": ['<tool_call>{"name": "mcp__met__snow", ', '"arguments": {"city": "Voss"}}', "\n</tool_call>"],
    "Voss is white": ["It snows."],
}
"""Of a tool in a namespace, and what its result brings."""


def message(name: str, role: str, *texts: str) -> dict[str, Any]:
    """Return a message with an id, as Codex sends it."""
    content = [{"type": "input_text", "text": text} for text in texts]
    return {"type": "message", "id": name, "role": role, "content": content}


def function(name: str) -> dict[str, Any]:
    """Return a tool."""
    properties = {"city": {"type": "string", "description": "Where"}, "mode": {"type": "string", "enum": ["a", "b"]}}
    schema = {"type": "object", "properties": properties, "required": ["city"], "additionalProperties": False}
    return {"type": "function", "name": name, "description": f"The {name}", "strict": False, "parameters": schema}


def body(model: str, session: str) -> dict[str, Any]:
    """Return the body of a request; what differs between sessions is its ids."""
    tools = [function(name) for name in ("weather", "shell", "plan", "view", "write", "ask", "wait")]
    agents = {"type": "namespace", "name": "agents", "description": "Others", "tools": [function("spawn")]}
    return {
        "model": model,
        "input": [
            message(f"msg_{session}1", "developer", "You are careful. " * 40, "You may write here."),
            message(f"msg_{session}2", "user", "The project's rules. " * 20),
            message(f"msg_{session}3", "developer", "Use the tools."),
            message(f"msg_{session}4", "user", "Does it rain?"),
        ],
        "tools": [*tools, {"type": "web_search", "external_web_access": False}, agents],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": session,
        "client_metadata": {"session": session},
    }


def events(answer: raw.Answer) -> list[Any]:
    """Return the events of a stream."""
    lines = [line for line in answer.body.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(line.removeprefix(b"data: ")) for line in lines]


@pytest.fixture(name="model", scope="module")
def _model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a model that calls a tool."""
    return str(scripted_model(tmp_path_factory.mktemp("models") / "calls", {**ANSWERS, **GROUPED}, TEMPLATE))


def test_codex_is_answered_and_its_prompt_reused(unix_door: Door, model: str) -> None:
    """The second session has other ids, and all of its prompt is there already."""
    seen = [raw.call(unix_door, "POST", "/v1/responses", body(model, session)) for session in ("a", "b")]
    for answer in seen:
        assert answer.status == 200
        assert "tools[7] is left out" in answer.headers["x-mlx-sidecar-note"]
        assert "tools[8]" not in answer.headers["x-mlx-sidecar-note"]
        types = [event["type"] for event in events(answer)]
        assert "response.reasoning_summary_text.delta" in types
        assert (types[0], types[-1]) == ("response.created", "response.completed")
        output = events(answer)[-1]["response"]["output"]
        assert [item["type"] for item in output] == ["reasoning", "message", "function_call"]
    usage = [events(answer)[-1]["response"]["usage"] for answer in seen]
    tokens, cached = usage[1]["input_tokens"], usage[1]["input_tokens_details"]["cached_tokens"]
    assert usage[0]["input_tokens_details"]["cached_tokens"] < BLOCK
    assert tokens - cached <= BLOCK


@pytest.mark.parametrize("streamed", [True, False])
def test_tool_of_an_mcp_server_is_called_by_its_namespace(unix_door: Door, model: str, streamed: bool) -> None:
    """Codex runs it by both names, and gives the call back as it came. The template matches call and result."""
    group = {"type": "namespace", "name": "mcp__met", "description": "Of the met office", "tools": [function("snow")]}
    given = {**body(model, "c"), "tools": [group], "stream": streamed}
    asked = message("m1", "user", "Snow there?")

    def output(items: list[Any]) -> list[Any]:
        answer = raw.call(unix_door, "POST", "/v1/responses", {**given, "input": items})
        assert answer.status == 200, answer.body
        found: list[Any] = events(answer)[-1]["response"]["output"] if streamed else answer.json["output"]
        return found

    (call,) = output([asked])
    assert (call["namespace"], call["name"], json.loads(call["arguments"])) == ("mcp__met", "snow", {"city": "Voss"})
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "white"}
    assert output([asked, call, result])[0]["content"][0]["text"] == "It snows."
