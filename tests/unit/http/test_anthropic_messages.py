"""Anthropic's messages: what a request asks of the daemon, and what of it is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from daemon.http.anthropic import API
from daemon.http.anthropic.messages import asked, counted
from daemon.http.anthropic.request_types import CountRequest, MessagesRequest
from daemon.http.anthropic.signatures import signature
from daemon.http.errors import Problem, problem
from daemon.http.generation import Ask
from daemon.http.parameters import check
from mlx_sidecar import Message, Tool, ToolCall
from tests.unit.http.no_daemon import status
from tests.unit.http.wrong_values import VALUES, places, replaced

HI = {"role": "user", "content": "Hi"}
TOOL = {"name": "weather", "description": "of a city", "input_schema": {"type": "object"}}
MARK = {"type": "ephemeral"}
RESULT = {"type": "tool_result", "tool_use_id": "a"}
USE = {"type": "tool_use", "id": "a", "name": "weather", "input": {}}


def text(words: str, **more: Any) -> dict[str, Any]:
    """Return a text block."""
    return {"type": "text", "text": words, **more}


def ask(**fields: Any) -> Ask:
    """Return what a request asks for, read from JSON."""
    given = {"model": "m", "max_tokens": 9, "messages": [HI], **fields}
    read = MessagesRequest.model_validate_json(json.dumps(given))
    check(read)
    return asked(read)


def options(**fields: Any) -> dict[str, Any]:
    """Return the options that a request asks for, without those that are unset and those of each request."""
    found = {name: value for name, value in ask(**fields).options.items() if value is not None}
    assert found.pop("max_tokens") == 9
    assert found.pop("model_defaults")
    return found


def turns(*messages: dict[str, Any], **fields: Any) -> list[Any]:
    """Return the turns of a conversation, calls as a list."""
    prompt = ask(messages=list(messages), **fields).prompt
    return list(prompt)


def refusal(**fields: Any) -> Problem:
    """Return why a request is refused."""
    with pytest.raises((Problem, ValidationError)) as caught:
        ask(**fields)
    found = problem(caught.value)
    assert found is not None
    return found


def test_system_and_turns_are_paragraphs_of_their_blocks() -> None:
    """Also a system turn after the user's, as Claude Code sends one; empty texts are none."""
    found = turns(
        {"role": "user", "content": [text("One."), text(""), text("Two.", cache_control=MARK)]},
        {"role": "system", "content": [text("Late.")]},
        system=[text("Be brief."), text("Be kind.", cache_control=MARK)],
    )
    assert found == [
        Message("system", "Be brief.\n\nBe kind."),
        Message("user", "One.\n\nTwo."),
        Message("system", "Late."),
    ]
    assert turns(HI, system="Be.") == [Message("system", "Be."), Message("user", "Hi")]
    assert turns(HI, system="") == [Message("user", "Hi")]


def test_calls_and_results_become_turns_of_tools() -> None:
    """In the order of the blocks, the user's words after the results; an error says that it is one."""
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": "from elsewhere"}
    call = {"type": "tool_use", "id": "a1", "name": "weather", "input": {"city": "Oslo"}, "caller": {"type": "direct"}}
    results = [
        {"type": "tool_result", "tool_use_id": "a1", "content": [text("wet"), text("cold")]},
        {"type": "tool_result", "tool_use_id": "a2", "content": "gone", "is_error": True},
        {"type": "tool_result", "tool_use_id": "a3"},
        {"type": "tool_result", "tool_use_id": "a4", "content": "An error: no", "is_error": True},
        text("And?"),
    ]
    found = turns(
        HI,
        {"role": "assistant", "content": [thinking, text("I "), call, text("look.")]},
        {"role": "user", "content": results},
    )
    assert found[1:] == [
        Message("assistant", "I look.", "Hm.", [ToolCall("a1", "weather", {"city": "Oslo"})]),
        Message("tool", "wet\n\ncold", tool_call_id="a1"),
        Message("tool", "Error: gone", tool_call_id="a2"),
        Message("tool", "", tool_call_id="a3"),
        Message("tool", "An error: no", tool_call_id="a4"),
        Message("user", "And?"),
    ]


def test_turns_of_one_side_are_one() -> None:
    """As Anthropic has it: many templates want the sides to take turns."""
    said = [{"role": "assistant", "content": words} for words in ("It ", "is")]
    assert turns(HI, {"role": "user", "content": "Ho"}, *said) == [
        Message("user", "Hi\n\nHo"),
        Message("assistant", "It is", tool_calls=[]),
    ]


def test_answer_at_the_end_is_continued() -> None:
    """A prefilled answer; the count of its tokens has it too."""
    prefilled = [HI, {"role": "assistant", "content": "It is"}]
    assert options(messages=prefilled) == {"continue_final_message": True}
    read = CountRequest.model_validate({"model": "m", "messages": prefilled})
    assert counted(read).options == {"continue_final_message": True}
    thinks = {"messages": prefilled, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    assert options(**thinks) == {"continue_final_message": True, "enable_thinking": True}
    (note,) = ask(**thinks).notes
    assert note.startswith("thinking.budget_tokens is left out")


def test_thinking_comes_back_from_its_signature() -> None:
    """If its text was left out; a signature of another text is refused."""
    omitted = {"type": "thinking", "thinking": "", "signature": signature("Hm. Ø", omitted=True)}
    whole = {"type": "thinking", "thinking": "Hm. Ø", "signature": signature("Hm. Ø", omitted=False)}
    for block in (omitted, whole):
        assert turns(HI, {"role": "assistant", "content": [block, text("A")]})[1].reasoning_content == "Hm. Ø"
    for block in (
        {**whole, "thinking": "Hm."},
        {**omitted, "thinking": "Hm."},
        {**omitted, "signature": "mlx-sidecar.text.*"},
    ):
        found = refusal(messages=[HI, {"role": "assistant", "content": [block, text("A")]}])
        assert (found.status, found.field) == (400, "messages[1].content[0].signature")


def test_encrypted_thinking_is_left_out_and_noted() -> None:
    """What another server encrypted cannot be read."""
    blocks = [{"type": "redacted_thinking", "data": "x"}, text("A")]
    found = ask(messages=[HI, {"role": "assistant", "content": blocks}])
    assert found.notes == ["messages[1].content[0] is left out: its thinking is encrypted"]


def test_tools_and_their_choice_are_passed_on() -> None:
    """Under the daemon's names; a choice without tools is none, unless it requires one."""
    offered = [Tool("weather", "of a city", {"type": "object"})]
    assert options(tools=[TOOL]) == {"tools": offered}
    assert options(tools=[TOOL], tool_choice={"type": "auto"}) == {"tools": offered, "tool_choice": "auto"}
    assert options(tools=[TOOL], tool_choice={"type": "none"}) == {"tools": offered, "tool_choice": "none"}
    assert options(tools=[TOOL], tool_choice={"type": "any"})["tool_choice"] == "required"
    one = options(tools=[TOOL], tool_choice={"type": "tool", "name": "weather"})
    assert (one["tool_choice"], one["required_tool"]) == ("required", "weather")
    assert options(tool_choice={"type": "auto"}) == {}
    asked = ask(tools=[TOOL], tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert asked.options["stop_at_tool_call"]
    examples = [{"city": "Bodø"}, {}]
    assert options(tools=[{**TOOL, "type": "custom", "strict": True, "input_examples": examples}])["tools"] == [
        Tool("weather", 'of a city\nExample: {"city": "Bodø"}\nExample: {}', {"type": "object"})
    ]


def test_form_beside_required_calls_is_left_out_and_noted() -> None:
    """The answer is no text."""
    form = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    assert "json_schema" in options(tools=[TOOL], output_config=form)
    asked = ask(tools=[TOOL], tool_choice={"type": "any"}, output_config=form)
    assert "json_schema" not in asked.options
    assert asked.notes == ["output_config.format is left out: the answer is calls"]


def test_tools_of_the_server_are_left_out_and_noted() -> None:
    """With all their parameters: they are Anthropic's own."""
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3, "user_location": {"city": "Oslo"}}
    found = ask(tools=[search, TOOL, {"type": "computer_toolset_20260801"}])
    assert len(found.options["tools"]) == 1
    assert found.notes == [
        "tools[0] is left out: only custom tools",
        "tools[2] is left out: only custom tools",
    ]


def test_marks_keep_the_prompt_for_the_longest_of_their_times() -> None:
    """Wherever they are."""
    hour = {"type": "ephemeral", "ttl": "1h"}
    result = {**RESULT, "content": [text("x", cache_control=hour)]}
    assert options() == {}
    assert options(cache_control=MARK) == {"keep": 300.0}
    assert options(system=[text("x", cache_control={**MARK, "ttl": "5m"})]) == {"keep": 300.0}
    assert options(tools=[{**TOOL, "cache_control": hour}], cache_control=MARK)["keep"] == 3600.0
    assert options(messages=[{"role": "user", "content": [result]}]) == {"keep": 3600.0}


def test_thinking_and_effort_are_passed_on() -> None:
    """Adaptive thinking is as the model's template has it."""
    assert options(thinking={"type": "adaptive", "display": "omitted"}, output_config={"effort": "high"}) == {
        "reasoning_effort": "high"
    }
    assert options(thinking={"type": "disabled"}) == {"enable_thinking": False}
    assert options(thinking={"type": "enabled", "budget_tokens": 1024}) == {
        "enable_thinking": True,
        "reasoning_budget": 1024,
    }


@pytest.mark.parametrize("display", ["summarized", "updates", "highlights"])
def test_thinking_that_would_be_shortened_is_shown_whole(display: str) -> None:
    """Claude Code asks for the short forms, and twice more after each refusal."""
    binding = {"prefix_mismatch_behavior": "drop_block"}
    assert options(thinking={"type": "adaptive", "display": display, "block_binding": binding}) == {}
    assert refusal(thinking={"type": "adaptive", "display": "pictures"}).field == "thinking.display"


def test_sampling_and_form_are_passed_on() -> None:
    """Greedy answers have no choice among tokens; what is unset is the model's own."""
    assert options(temperature=0.5, top_p=0.9, top_k=4, stop_sequences=["x"]) == {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "stop": ["x"],
    }
    assert options(temperature=0, top_p=0.9, top_k=4, stop_sequences=[]) == {"temperature": 0.0}
    form = {"type": "json_schema", "schema": {"type": "object"}}
    assert options(output_config={"format": form}) == {"json_schema": {"type": "object"}}


def test_what_is_of_no_use_here_is_harmless() -> None:
    """Claude Code sends much of it."""
    assert (
        options(
            metadata={"user_id": "u"},
            context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            service_tier="auto",
            betas=["x"],
            speed="fast",
            container=None,
            mcp_servers=[],
            fallbacks="default",
        )
        == {}
    )


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"frobnicate": 1}, "frobnicate"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": []}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [HI, {"role": "assistant", "content": [USE]}]}, "messages[1]"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": ["text"]}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [text("a"), {"type": "text"}]}]}, "messages[0].content[1].text"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [text("a", id="b")]}]}, "messages[0].content[0].id"),
        (
            {"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}]},
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": [{**RESULT, "content": [{"type": "video"}]}]}]},
            "messages[0].content[0].content[0].type",
        ),
        ({"tools": [{"name": "x"}]}, "tools[0].input_schema"),
        ({"tools": [{"type": 1}]}, "tools[0].type"),
        ({"tools": [1]}, "tools[0]"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "auto", "name": "x"}}, "tool_choice.name"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "adaptive", "budget_tokens": 1}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"cache_control": {"type": "ephemeral", "ttl": "1d"}}, "cache_control.ttl"),
        ({"output_config": {"task_budget": {"total": 1}}}, "output_config.task_budget"),
        ({"output_config": {"effort": ""}}, "output_config.effort"),
        ({"mcp_servers": [{"name": "x"}]}, "mcp_servers"),
        ({"container": "x"}, "container"),
        ({"top_p": 2}, "top_p"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    """A parameter is never silently ignored."""
    found = refusal(**fields)
    assert (found.status, found.field) == (400, field)
    assert field in found.message


def test_refused_image_says_what_models_read() -> None:
    """Not only what a parser expects."""
    found = refusal(messages=[{"role": "user", "content": [{"type": "image"}]}])
    assert "no images" in found.message


EVERY_KIND = {
    "model": "m",
    "max_tokens": 9,
    "system": [text("Be.", cache_control=MARK)],
    "messages": [
        {"role": "user", "content": [text("Rain?")]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Oslo"}, "cache_control": MARK},
            ],
        },
        {"role": "user", "content": [{**RESULT, "content": [text("wet")], "is_error": False}]},
    ],
    "tools": [{**TOOL, "type": "custom", "input_examples": [{}]}, {"type": "web_search_20250305", "max_uses": 1}],
}


async def test_wrong_types_in_blocks_of_every_kind_are_refused() -> None:
    """Or accepted: the daemon is asked then, and there is none (503). The fuzz of all types has texts alone."""
    endpoint = next(one for one in API.load().endpoints if one.path == "/v1/messages")
    assert (await status(endpoint, json.dumps(EVERY_KIND).encode()))[0] == 503
    for steps in places(EVERY_KIND):
        for value in VALUES:
            found, answer = await status(endpoint, json.dumps(replaced(EVERY_KIND, steps, value)).encode())
            assert found in (400, 503), (steps, value, answer)
            assert answer["error"]["message"]
