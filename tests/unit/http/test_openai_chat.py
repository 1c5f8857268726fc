"""OpenAI's chat completions: what a request asks of the daemon."""

from __future__ import annotations

import json
from typing import Any

import pytest

from daemon.http.errors import Problem
from daemon.http.openai.chat import ask
from daemon.http.openai.chat_types import ChatRequest
from daemon.http.parameters import check
from mlx_sidecar import (
    Message,
    Tool,
    ToolCall,
)

TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "of a city", "parameters": {"type": "object"}},
}


def request(**fields: Any) -> ChatRequest:
    """Return a request that was read from JSON."""
    given = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
    read = ChatRequest.model_validate_json(json.dumps(given))
    check(read)
    return read


def options(**fields: Any) -> dict[str, Any]:
    """Return the options that a request asks for, without those that are unset, and without what each has."""
    found = {name: value for name, value in ask(request(**fields)).options.items() if value is not None}
    assert found.pop("model_defaults")
    return found


def test_turns_keep_roles_text_and_calls() -> None:
    """`developer` is the system's other name; parts are joined; nulls are nothing."""
    call = {"id": "a1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": "Rain?", "name": "Ada"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "Hm.", "refusal": None},
        {"role": "tool", "tool_call_id": "a1", "content": "wet"},
        {"role": "assistant", "content": "Yes.", "reasoning": "Wet is rain."},
        {"role": "system", "content": "Late."},
    ]
    assert ask(request(messages=messages)).prompt == [
        Message("system", "Be brief.", tool_calls=[]),
        Message("user", "Rain?", tool_calls=[]),
        Message("assistant", "", "Hm.", [ToolCall("a1", "weather", "{}")]),
        Message("tool", "wet", tool_calls=[], tool_call_id="a1"),
        Message("assistant", "Yes.", "Wet is rain.", []),
        Message("system", "Late.", tool_calls=[]),
    ]


def test_null_in_a_turn_is_as_if_it_were_missing() -> None:
    """Clients that write all fields of their own types send it."""
    call = {"id": "a1", "function": {"name": "weather", "arguments": None}}
    parts = [{"type": "text", "text": None}, {"type": "refusal", "refusal": "No.", "text": None}]
    found = ask(request(messages=[{"role": "assistant", "content": parts, "tool_calls": [call]}]))
    assert found.prompt == [Message("assistant", "No.", tool_calls=[ToolCall("a1", "weather", "{}")])]


def test_sampling_parameters_are_passed_on() -> None:
    """Under the daemon's names."""
    given = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "seed": -1,
        "stop": "x",
        "logit_bias": {"7": 1},
    }
    assert options(**given, presence_penalty=1, frequency_penalty=-1, repetition_penalty=1.1, cache_salt="s") == {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "seed": 2**64 - 1,
        "stop": ["x"],
        "logit_bias": {7: 1.0},
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "repetition_penalty": 1.1,
        "salt": "s",
    }


def test_values_that_ask_for_nothing_are_left_out() -> None:
    """Clients send them all the time, and the daemon refuses options without effect."""
    assert options(temperature=0, top_p=0.9, top_k=5, min_p=0.1, seed=7) == {"temperature": 0.0}
    assert options(top_p=1, top_k=-1, n=1, logprobs=False, tools=[], response_format={"type": "text"}) == {}


def test_unset_sampling_is_the_models_own() -> None:
    """Also if some of it is set; a seed is for an answer that is not greedy."""
    assert options(top_p=0.9, seed=7) == {"top_p": 0.9, "seed": 7}
    assert options(top_k=5, temperature=0.5) == {"temperature": 0.5, "top_k": 5}


def test_template_arguments_are_passed_on() -> None:
    """Thinking under its own name; an effort of none turns it off."""
    arguments = {"enable_thinking": True, "tone": {"dry": 1}}
    assert options(chat_template_kwargs=arguments) == {"enable_thinking": True, "template_args": {"tone": {"dry": 1}}}
    assert options(reasoning_effort="low") == {"reasoning_effort": "low"}
    assert options(reasoning_effort="none") == {"enable_thinking": False}
    assert options(reasoning_effort="none", chat_template_kwargs={"enable_thinking": False}) == {
        "enable_thinking": False
    }
    effort = {"reasoning_effort": "low"}
    assert options(chat_template_kwargs=effort) == options(chat_template_kwargs=effort, **effort) == effort
    assert options(continue_final_message=True, add_generation_prompt=False) == {"continue_final_message": True}
    assert options(add_generation_prompt=False) == {"add_generation_prompt": False}
    assert options(prompt_cache_retention="24h") == {"keep": 86_400.0}


def test_samples_and_scores_are_asked_for() -> None:
    """Scores of the likeliest only with scores."""
    assert options(n=3, logprobs=True, top_logprobs=2) == {"samples": 3, "top_logprobs": 2}
    assert options(logprobs=True) == {"top_logprobs": 0}
    assert options(n=1, logprobs=False, top_logprobs=0) == {}


def test_answer_keeps_to_both_names_of_its_limit() -> None:
    """Each is an upper bound, so the smaller one holds."""
    assert options(max_tokens=5) == options(max_completion_tokens=5) == {"max_tokens": 5}
    assert options(max_tokens=5, max_completion_tokens=7) == {"max_tokens": 5}
    assert options(max_tokens=7, max_completion_tokens=5) == {"max_tokens": 5}


def test_tools_and_their_choice_are_passed_on() -> None:
    """A choice without tools is none, unless it requires one: the daemon refuses that."""
    offered = [Tool("weather", "of a city", {"type": "object"})]
    assert options(tools=[TOOL]) == {"tools": offered}
    assert options(tools=[TOOL], tool_choice="none") == {"tools": offered, "tool_choice": "none"}
    one = {"type": "function", "function": {"name": "weather"}}
    assert options(tools=[TOOL], tool_choice=one)["required_tool"] == "weather"
    assert options(tool_choice="auto") == {}
    assert options(tool_choice="required") == {"tool_choice": "required"}
    assert ask(request(tools=[TOOL], parallel_tool_calls=False)).options["stop_at_tool_call"]


def allowed(*names: str, mode: str = "auto", kind: str = "function") -> dict[str, Any]:
    """Return a choice of tools that may be called."""
    tools = [{"type": kind, **({"function": {"name": name}} if name else {})} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def test_allowed_tools_are_passed_on() -> None:
    """The model is told of all tools. What is left out of these is left out of the choice."""
    clock = {"type": "function", "function": {"name": "clock"}}
    for mode in ("auto", "required"):
        found = options(tools=[TOOL, clock], tool_choice=allowed("clock", mode=mode))
        assert (len(found["tools"]), found["tool_choice"], found["allowed_tools"]) == (2, mode, ["clock"])
    some = allowed("", "weather")
    some["allowed_tools"]["tools"][0] = {"type": "web_search"}
    assert options(tools=[{"type": "web_search"}, TOOL], tool_choice=some)["allowed_tools"] == ["weather"]


def test_tools_of_other_kinds_are_left_out_and_noted() -> None:
    """Whatever parameters they have: Codex brings some of its own, and without them it works."""
    others = [{"type": "web_search", "filters": {"a": 1}}, {"type": "custom", "custom": {"name": "patch"}}]
    asked = ask(request(tools=[*others, TOOL]))
    assert len(asked.options["tools"]) == 1
    assert asked.notes == [f"tools[{index}] is left out: only functions" for index in range(2)]


def test_forms_of_an_answer_are_passed_on() -> None:
    """A schema that is missing is an error of the request."""
    assert options(response_format={"type": "json_object"}) == {"json_object": True}
    form = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": {"type": "object"}}}
    assert options(response_format=form) == {"json_schema": {"type": "object"}}
    with pytest.raises(Problem, match="schema is missing"):
        options(response_format={"type": "json_schema"})


def test_form_beside_required_calls_is_left_out_and_noted() -> None:
    """The answer is no text. Beside calls that the model may make, the form stays."""
    form = {"type": "json_object"}
    assert options(tools=[TOOL], response_format=form)["json_object"]
    asked = ask(request(tools=[TOOL], tool_choice="required", response_format=form))
    assert "json_object" not in asked.options
    assert asked.notes == ["response_format is left out: the answer is calls"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"best_of": 2}, "best_of"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"frobnicate": 1}, "frobnicate"),
        ({"messages": [{"role": "user", "content": "x", "audio": {}}]}, "messages[0].audio"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "tool", "content": None}]}, "messages[1].content"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
        ({"tool_choice": allowed("w")}, "tool_choice.allowed_tools.tools[0].function.name"),
        (
            {"tools": [TOOL], "tool_choice": allowed("weather", "whether")},
            "tool_choice.allowed_tools.tools[1].function.name",
        ),
        ({"tools": [TOOL], "tool_choice": allowed("")}, "tool_choice.allowed_tools.tools[0].function.name"),
        (
            {"tools": [TOOL], "tool_choice": allowed("", kind="web_search")},
            "tool_choice.allowed_tools.tools[0].function.name",
        ),
        ({"tools": [TOOL], "tool_choice": allowed()}, "tool_choice.allowed_tools.tools"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"chat_template_kwargs": {"enable_thinking": 1}}, "chat_template_kwargs.enable_thinking"),
        ({"chat_template_kwargs": {"reasoning_effort": 1}}, "chat_template_kwargs.reasoning_effort"),
        ({"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "none"}, "reasoning_effort"),
        ({"chat_template_kwargs": {"reasoning_effort": "low"}, "reasoning_effort": "high"}, "reasoning_effort"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
        ({"modalities": ["text", "audio"]}, "modalities"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    """A parameter is never silently ignored."""
    with pytest.raises(Problem) as caught:
        ask(request(**fields))
    assert (caught.value.status, caught.value.field) == (400, field)
    assert field in caught.value.message
