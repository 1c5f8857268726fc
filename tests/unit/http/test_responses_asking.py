"""OpenAI's responses: what a request asks of the daemon."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from daemon.http.errors import Problem
from daemon.http.generation import Ask
from daemon.http.parameters import check
from daemon.http.responses.asking import ask, counted, without_effort
from daemon.http.responses.reasoning import packed
from daemon.http.responses.request_types import CountRequest, ResponseRequest
from mlx_sidecar import Message, Tool, ToolCall

TOOL = {"type": "function", "name": "weather", "description": "of a city", "parameters": {"type": "object"}}
PATCH = {"type": "custom", "name": "patch", "description": "changes files", "format": {"type": "text"}}


def request(**fields: Any) -> ResponseRequest:
    """Return a request that was read from JSON."""
    read = ResponseRequest.model_validate_json(json.dumps({"model": "m", "input": "Hi", **fields}))
    check(read)
    return read


def asked(**fields: Any) -> Ask:
    """Return what a request asks for."""
    read = request(**fields)
    return ask(read, [], read.input)


def prompt(items: Sequence[Any], **fields: Any) -> Any:
    """Return the turns of a request."""
    return asked(input=items, **fields).prompt


STEPS: list[tuple[dict[str, Any], str]] = [
    (
        {"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "rain in Bergen"}},
        'web_search; action: {"type": "search", "query": "rain in Bergen"}',
    ),
    (
        {"type": "file_search_call", "status": "failed", "queries": ["rain"], "results": None},
        'file_search; queries: ["rain"]; status: failed',
    ),
    (
        {"type": "code_interpreter_call", "code": "print(1)", "outputs": [{"type": "logs", "logs": "1"}]},
        'code_interpreter; code: print(1); outputs: [{"type": "logs", "logs": "1"}]',
    ),
    ({"type": "image_generation_call", "result": "aGk=", "size": "big"}, "image_generation; result: a picture"),
    ({"type": "computer_call", "call_id": "c", "action": {"type": "click"}}, 'computer; action: {"type": "click"}'),
    (
        {"type": "mcp_list_tools", "server_label": "maps", "tools": [{"name": "route", "input_schema": {}}]},
        'mcp_list_tools; server_label: maps; tools: ["route"]',
    ),
    (
        {"type": "mcp_call", "server_label": "maps", "name": "route", "arguments": "{}", "output": "Left."},
        "mcp; server_label: maps; name: route; arguments: {}; output: Left.",
    ),
    (
        {"type": "mcp_approval_response", "approve": False, "reason": "no"},
        "mcp_approval_response; approve: false; reason: no",
    ),
]


@pytest.mark.parametrize(("item", "words"), STEPS, ids=[str(item["type"]) for item, _ in STEPS])
def test_step_of_another_server_is_told_in_words(item: dict[str, Any], words: str) -> None:
    """A session that began at OpenAI goes on: reasoning, step and message of one answer are one turn."""
    items = [thought("Hm. "), {"id": "s1", **item}, {"role": "assistant", "content": "It rains."}]
    told = f"[Earlier step on another server: {words}]\nIt rains."
    assert prompt(items) == [Message("assistant", told, "Hm. ", [])]
    assert prompt(items) == prompt([items[0], {"id": "s2", **item}, items[2]])


def thought(text: str) -> dict[str, Any]:
    """Return a reasoning."""
    return {"type": "reasoning", "summary": [{"type": "summary_text", "text": text}]}


def test_reasoning_and_steps_keep_their_order() -> None:
    """What the model thought of a result comes after the result; one that cannot be read parts no turn."""
    steps = [{"type": "mcp_call", "name": name} for name in ("look", "go")]
    line = "[Earlier step on another server: mcp; name: {}]\n"
    message = {"role": "assistant", "content": "Left."}
    look, go = (line.format(step["name"]) for step in steps)
    assert prompt([thought("A"), steps[0], thought("B"), thought("C"), steps[1], message]) == [
        Message("assistant", look, "A", []),
        Message("assistant", f"{go}Left.", "BC", []),
    ]
    unread = {"type": "reasoning", "summary": [], "encrypted_content": "gAAA"}
    assert prompt([steps[0], unread, steps[1], message]) == [Message("assistant", f"{look}{go}Left.", "", [])]


def test_call_that_a_client_ran_is_a_call_with_its_result() -> None:
    """The model reads a shell of OpenAI's as a tool of that name."""
    items = [
        {"type": "local_shell_call", "id": "l", "call_id": "c1", "status": "completed", "action": {"command": ["ls"]}},
        {"type": "local_shell_call_output", "id": "c1", "output": "a.txt"},
        {"type": "shell_call", "call_id": "c2", "action": {"commands": ["ls"]}},
        {"type": "shell_call_output", "call_id": "c2", "output": [{"stdout": "b", "stderr": ""}]},
        {"type": "apply_patch_call", "call_id": "c3", "operation": {"type": "delete_file", "path": "a"}},
        {"type": "apply_patch_call_output", "call_id": "c3", "status": "failed"},
    ]
    assert prompt(items) == [
        Message("assistant", "", "", [ToolCall("c1", "local_shell", '{"command": ["ls"]}')]),
        Message("tool", "a.txt", tool_call_id="c1"),
        Message("assistant", "", "", [ToolCall("c2", "shell", '{"commands": ["ls"]}')]),
        Message("tool", '[{"stdout": "b", "stderr": ""}]', tool_call_id="c2"),
        Message("assistant", "", "", [ToolCall("c3", "apply_patch", '{"type": "delete_file", "path": "a"}')]),
        Message("tool", "failed", tool_call_id="c3"),
    ]


def options(**fields: Any) -> dict[str, Any]:
    """Return the options that a request asks for, without those that are unset, and without what each has."""
    found = {name: value for name, value in asked(**fields).options.items() if value is not None}
    assert found.pop("model_defaults")
    return found


def test_items_of_an_answer_are_one_turn() -> None:
    """Ids and states of items are no part of the prompt."""
    items = [
        {"role": "developer", "content": [{"type": "input_text", "text": one} for one in ("Be ", "brief.")]},
        {"type": "message", "id": "m1", "role": "user", "content": "Rain?"},
        {"type": "reasoning", "id": "r1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "status": "completed", "phase": None,
         "content": [{"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}]},
        {"type": "function_call", "id": "f1", "call_id": "a1", "name": "weather", "arguments": "{}"},
        {"type": "function_call", "call_id": "a2", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a1", "output": "wet"},
        {"type": "function_call_output", "call_id": "a2", "output": [{"type": "input_text", "text": "dry"}]},
        {"type": "message", "role": "system", "content": "Late."},
    ]  # fmt: skip
    assert prompt(items, instructions="First.") == [
        Message("system", "First."),
        Message("developer", "Be brief."),
        Message("user", "Rain?"),
        Message("assistant", "I look.", "Hm.", [ToolCall("a1", "weather", "{}"), ToolCall("a2", "weather", "{}")]),
        Message("tool", "wet", tool_call_id="a1"),
        Message("tool", "dry", tool_call_id="a2"),
        Message("system", "Late."),
    ]


def test_messages_in_a_row_are_turns_of_their_own() -> None:
    """And a reasoning after a call begins a turn."""
    items = [
        {"role": "assistant", "content": "One."},
        {"role": "assistant", "content": "Two."},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"type": "function_call", "call_id": "a1", "name": "weather", "arguments": "{}"},
    ]
    assert prompt(items) == [
        Message("assistant", "One.", tool_calls=[]),
        Message("assistant", "Two.", tool_calls=[]),
        Message("assistant", "", "Hm.", [ToolCall("a1", "weather", "{}")]),
    ]


def test_output_without_a_call_is_a_users_turn() -> None:
    """Codex tells so what changed outside of the conversation; a tool's turn would answer no call."""
    item = {"type": "function_call_output", "id": "o1", "name": "goal", "namespace": "agent", "output": "Finish."}
    assert prompt([item]) == [Message("user", "goal: Finish.")]


def test_reasoning_is_read_from_where_it_is() -> None:
    """Another server's is left out and told."""
    summary = [{"type": "summary_text", "text": "Short."}]
    whole = {"type": "reasoning", "summary": summary, "encrypted_content": packed("Where?")}
    assert prompt([whole])[0].reasoning_content == "Where?"
    assert prompt([{**whole, "encrypted_content": "gAAA"}])[0].reasoning_content == "Short."
    foreign = [{"role": "user", "content": "Hi"}, {"type": "reasoning", "summary": [], "encrypted_content": "gAAA"}]
    assert asked(input=foreign).notes == ["input[1] is left out: its reasoning is another server's"]
    assert prompt(foreign) == [Message("user", "Hi")]


def test_custom_tools_are_functions_of_one_text() -> None:
    """Their calls and outputs in the history too; a grammar is told to the model."""
    (tool,) = options(tools=[PATCH])["tools"]
    assert tool.parameters["properties"] == {"input": {"type": "string"}}
    form = {"type": "grammar", "syntax": "lark", "definition": "start: /x/"}
    (tool,) = options(tools=[{**PATCH, "format": form}])["tools"]
    assert "start: /x/" in tool.parameters["properties"]["input"]["description"]
    items = [
        {"type": "custom_tool_call", "call_id": "a1", "name": "patch", "input": 'a "b"'},
        {"type": "custom_tool_call_output", "call_id": "a1", "output": "done"},
    ]
    call, output = prompt(items)
    assert json.loads(call.tool_calls[0].arguments) == {"input": 'a "b"'}
    assert output == Message("tool", "done", tool_call_id="a1")


def test_tools_of_a_namespace_are_told_under_both_names() -> None:
    """Of MCP servers, as Codex has them. Their calls in the history too, so that the model sees the names it wrote."""
    group = {"type": "namespace", "name": "mcp__met", "description": "Of the met office.", "tools": [TOOL, PATCH]}
    weather, patch = options(tools=[group])["tools"]
    assert weather == Tool("mcp__met__weather", "Of the met office.\n\nof a city", {"type": "object"})
    assert (patch.name, patch.description) == ("mcp__met__patch", "changes files")
    call = {"type": "function_call", "call_id": "a1", "namespace": "mcp__met", "name": "weather", "arguments": "{}"}
    custom = {"type": "custom_tool_call", "call_id": "a2", "namespace": "mcp__met", "name": "patch", "input": "x"}
    (turn,) = prompt([call, custom])
    assert [one.name for one in turn.tool_calls] == ["mcp__met__weather", "mcp__met__patch"]
    chosen = options(tools=[TOOL, group], tool_choice={"type": "function", "name": "mcp__met__weather"})
    assert chosen["required_tool"] == "mcp__met__weather"


def test_tools_of_other_kinds_are_left_out_and_told() -> None:
    """Whatever parameters they have."""
    group = {"type": "namespace", "name": "web", "tools": [{"type": "web_search"}]}
    found = asked(tools=[TOOL, {"type": "web_search", "filters": {}}, group])
    assert found.options["tools"] == [Tool("weather", "of a city", {"type": "object"})]
    assert [note.partition(":")[0] for note in found.notes] == ["tools[1] is left out", "tools[2].tools[0] is left out"]
    assert "tools" not in options(tools=[{"type": "web_search"}], tool_choice="auto")


def test_choice_of_tools_is_passed_on() -> None:
    """By kind or by name."""
    assert options(tools=[TOOL], tool_choice="required")["tool_choice"] == "required"
    chosen = options(tools=[TOOL], tool_choice={"type": "function", "name": "weather"})
    assert (chosen["tool_choice"], chosen["required_tool"]) == ("required", "weather")
    assert options(tool_choice="none") == {}
    assert asked(parallel_tool_calls=False).options["stop_at_tool_call"]


def test_form_beside_required_calls_is_left_out_and_told() -> None:
    """The answer is no text."""
    form = {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}}
    assert "json_schema" in options(tools=[TOOL], text=form)
    found = asked(tools=[TOOL], tool_choice="required", text=form)
    assert ("json_schema" in found.options, found.notes) == (False, ["text.format is left out: the answer is calls"])


def test_allowed_tools_are_passed_on() -> None:
    """By the names that the model knows. What is left out of the tools is left out of the choice."""
    group = {"type": "namespace", "name": "mcp__met", "tools": [TOOL, PATCH]}
    some = [{"type": "mcp", "server_label": "x"}, {"type": "custom", "name": "mcp__met__patch"}]
    choice = {"type": "allowed_tools", "mode": "required", "tools": some}
    found = options(tools=[TOOL, {"type": "mcp", "server_label": "x"}, group], tool_choice=choice)
    assert (len(found["tools"]), found["tool_choice"], found["allowed_tools"]) == (3, "required", ["mcp__met__patch"])


def test_options_of_the_answer_are_passed_on() -> None:
    """Values that ask for nothing are left out."""
    assert options(temperature=0.5, top_p=0.9, max_output_tokens=7) == {
        "temperature": 0.5, "top_p": 0.9, "max_tokens": 7
    }  # fmt: skip
    assert options(temperature=0, top_p=0.9) == {"temperature": 0.0}
    assert options(top_p=1, tools=[], text={"format": {"type": "text"}, "verbosity": "medium"}) == {}
    assert options(text={"format": {"type": "json_object"}}) == {"json_object": True}
    form = {"type": "json_schema", "name": "n", "strict": True, "schema": {"type": "object"}}
    assert options(text={"format": form}) == {"json_schema": {"type": "object"}}
    assert options(include=["message.output_text.logprobs"]) == {"top_logprobs": 0}
    assert options(top_logprobs=3) == {"top_logprobs": 3}
    assert options(prompt_cache_retention="24h") == {"keep": 86_400.0}


def test_effort_is_passed_on_and_can_be_left_out() -> None:
    """None is the switch of thinking."""
    assert options(reasoning={"effort": "low", "summary": "auto"}) == {"reasoning_effort": "low"}
    assert options(reasoning={"effort": "none"}) == {"enable_thinking": False}
    assert "reasoning_effort" not in without_effort(asked(reasoning={"effort": "low"})).options


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "c"}, "conversation"),
        ({"temprature": 1}, "temprature"),
        ({"stream_options": {}}, "stream_options"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "tools": []}}, "tool_choice.mode"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto"}}, "tool_choice.tools"),
        (
            {
                "tools": [TOOL],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "function", "name": "whether"}],
                },
            },
            "tool_choice.tools[0].name",
        ),
        (
            {"tools": [{"type": "namespace", "name": "n", "tools": [{**TOOL, "colour": "red"}]}]},
            "tools[0].tools[0].colour",
        ),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"input": []}, "input"),
        ({"input": [{"type": "compaction", "id": "c", "encrypted_content": "x"}]}, "input[0].type"),
        ({"input": [{"type": "computer_call_output", "call_id": "c", "output": {}}]}, "input[0].type"),
        ({"input": [{"type": "web_search_call", "id": "w", "frobnicate": 1}]}, "input[0].frobnicate"),
        ({"input": [{"role": "user", "content": "x", "colour": "red"}]}, "input[0].colour"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    """Nothing is silently ignored."""
    with pytest.raises(Problem) as error:
        asked(**fields)
    assert (error.value.status, error.value.field) == (400, field)


def counting(**fields: Any) -> Ask:
    """Return what a request to count tokens asks for."""
    read = CountRequest.model_validate_json(json.dumps({"model": "m", "input": "Hi", **fields}))
    check(read)
    return counted(read, [], read.input)


def test_prompt_is_counted_with_its_own_options_alone() -> None:
    """Those of an answer would be none of a prompt; the prompt is the answer's."""
    fields: dict[str, Any] = {
        "instructions": "First.", "tools": [TOOL, {"type": "web_search"}], "tool_choice": "auto",
        "reasoning": {"effort": "low"}, "text": {"format": {"type": "json_object"}},
    }  # fmt: skip
    found, answered = counting(**fields, parallel_tool_calls=False), asked(**fields)
    assert (found.prompt, found.notes) == (answered.prompt, answered.notes)
    assert set(found.options) == {"tools", "tool_choice", "reasoning_effort"}
    assert found.options.items() <= answered.options.items()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"personality": "friendly"}, "personality"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "c"}, "conversation"),
        ({"temperature": 1}, "temperature"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"input": []}, "input"),
    ],
)
def test_count_refuses_what_it_cannot_honour(fields: dict[str, Any], field: str) -> None:
    """By name, as a request for an answer is refused."""
    with pytest.raises(Problem) as error:
        counting(**fields)
    assert error.value.field == field
