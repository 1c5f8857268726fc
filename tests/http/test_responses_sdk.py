"""OpenAI's own Python SDK on the door's responses, over a port and over the Unix socket."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.http.conftest import Door
from tests.http.sdks import results
from tests.support.scripted_model import scripted_model
from tests.support.tool_conversation import ANSWERS, TEMPLATE

REUSED = 600
"""Tokens of the long text that both turns of a conversation begin with, at least."""


@pytest.fixture(name="seen", scope="module", params=["unix_door", "port_door"])
def _seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what the SDK saw of a door."""
    door: Door = request.getfixturevalue(request.param)
    model = scripted_model(tmp_path_factory.mktemp("models") / "calls", ANSWERS, TEMPLATE)
    return results("responses_program.py", door.base_url, door.token, door.unix, str(model))


def test_sdk_streams_reasoning_text_and_call(seen: dict[str, Any]) -> None:
    """The SDK checks the order of events and the identity of items itself."""
    streamed = seen["streamed"]
    assert streamed["numbers"] == list(range(len(streamed["numbers"])))
    assert (streamed["types"][0], streamed["types"][-1]) == ("response.created", "response.completed")
    assert (streamed["text"], streamed["status"]) == ("I look.\n", "completed")
    assert json.loads(streamed["arguments"]) == {"city": "Bergen"}
    assert [item["type"] for item in streamed["output"]] == ["reasoning", "message", "function_call"]
    assert streamed["output"][0]["content"][0]["text"] == "Where? In Bergen."
    assert streamed["usage"]["output_tokens_details"]["reasoning_tokens"] == 4


def test_sdk_retrieves_what_was_streamed(seen: dict[str, Any]) -> None:
    """The answer is kept as it came."""
    for name in ("streamed", "summary"):
        ids = [[item["id"] for item in seen[name][form]] for form in ("output", "kept")]
        assert ids[0] == ids[1]


def test_sdk_streams_reasoning_as_summary(seen: dict[str, Any]) -> None:
    """If a summary is asked for, which most clients show; the effort that the model has not is no error."""
    item = seen["summary"]["output"][0]
    assert [part["text"] for part in item["summary"]] == ["Where? In Bergen."]
    assert "response.reasoning_summary_text.delta" in seen["summary"]["types"]


def test_sdk_answers_a_call_by_previous_response(seen: dict[str, Any]) -> None:
    """The conversation is the server's; its prefix is reused, and its items are listed page by page."""
    turns = seen["with_previous"]
    assert (turns["text"], turns["status"]) == ("It rains.", "completed")
    assert turns["cached"] > REUSED
    assert turns["items"] == ["message", "reasoning", "message", "function_call", "function_call_output"]


def test_sdk_counts_the_tokens_of_a_prompt(seen: dict[str, Any]) -> None:
    """As many as the answers used, with tools, with instructions, and for a conversation that is kept."""
    counts = seen["counts"]
    assert counts["object"] == "response.input_tokens"
    assert counts["counted"] == counts["used"]
    assert 0 < counts["without_tools"] < counts["counted"][0]
    assert (counts["no_input"]["status"], counts["no_input"]["body"]["param"]) == (400, "input")


@pytest.mark.parametrize("form", ["with_items", "with_encrypted"])
def test_sdk_answers_a_call_by_items(seen: dict[str, Any], form: str) -> None:
    """The conversation is the client's; the items that came back are accepted as they are, nulls included."""
    assert seen[form]["text"] == "It rains."
    assert seen[form]["cached"] > REUSED
    (reasoning,) = seen[form]["reasoning"]
    assert (reasoning["encrypted_content"] is not None) == (form == "with_encrypted")


def test_sdk_answers_a_call_by_references(seen: dict[str, Any]) -> None:
    """The items are the server's."""
    assert seen["with_references"] == "It rains."


def test_sdk_parses_an_answer_of_a_schema(seen: dict[str, Any]) -> None:
    """Whatever the model would rather write."""
    assert seen["parsed"]


def test_sdk_can_ask_for_one_call(seen: dict[str, Any]) -> None:
    """`parallel_tool_calls` false ends an answer that would have two calls."""
    assert (seen["both_calls"], seen["one_call"]) == (["function_call"] * 2, ["function_call"])
    assert seen["one_call_usage"]["output_tokens_details"]["reasoning_tokens"] == 4


def test_sdk_can_allow_some_tools(seen: dict[str, Any]) -> None:
    """The scripted model would call the other tool; the choice comes back as it was."""
    assert set(seen["allowed"]["calls"]) == {"clock"}
    some = [{"type": "function", "name": "clock"}]
    assert seen["allowed"]["choice"] == {"type": "allowed_tools", "mode": "required", "tools": some}


def test_sdk_gets_calls_or_json(seen: dict[str, Any]) -> None:
    """With tools beside a schema."""
    text, calls = seen["either"]["text"], seen["either"]["calls"]
    assert set(calls) == {"clock"} if calls else type(json.loads(text)["a"]) is bool


def test_short_answer_is_incomplete_with_scores(seen: dict[str, Any]) -> None:
    """With the reason."""
    short = seen["short"]
    assert (short["status"], short["incomplete_details"]["reason"]) == ("incomplete", "max_output_tokens")
    (part,) = short["output"][0]["content"]
    assert "".join(score["token"] for score in part["logprobs"]) == part["text"]


def test_sdk_raises_the_errors_of_its_table(seen: dict[str, Any]) -> None:
    """Each with the parameter under the API's own name."""
    assert [seen[name]["class"] for name in ("no_model", "no_response")] == ["NotFoundError"] * 2
    assert seen["no_previous"]["body"]["code"] == "previous_response_not_found"
    for name, param in (
        ("no_previous", "previous_response_id"),
        ("background", "background"),
        ("image", "input[0].content[0].type"),
        ("too_hot", "temperature"),
        ("unknown_allowed", "tool_choice.tools[0].name"),
    ):
        assert (seen[name]["status"], seen[name]["body"]["param"]) == (400, param)
    assert seen["cancel"]["status"] == 400
