"""Anthropic's own Python SDK on the door, over a port and over the Unix socket."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.http.conftest import Door
from tests.http.sdks import results
from tests.http.thinking_model import ANSWERS, TEMPLATE
from tests.support.scripted_model import scripted_model


@pytest.fixture(name="seen", scope="module", params=["unix_door", "port_door"])
def _seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what the SDK saw of a door."""
    door: Door = request.getfixturevalue(request.param)
    model = scripted_model(tmp_path_factory.mktemp("models") / "calls", ANSWERS, TEMPLATE)
    base_url = door.base_url.removesuffix("/v1")
    return results("anthropic_program.py", base_url, door.token, door.unix, str(model))


def test_anthropic_sdk_lists_and_retrieves_models(seen: dict[str, Any]) -> None:
    """The version that it sends tells its list from OpenAI's."""
    assert "embedded" in seen["models"]
    assert (seen["model"]["type"], seen["model"]["id"]) == ("model", "embedded")


def test_anthropic_sdk_streams_thinking_text_and_call(seen: dict[str, Any]) -> None:
    """As blocks of one message, the arguments piece by piece."""
    types = seen["streamed"]["types"]
    assert types[:2] == ["message_start", "content_block_start"]
    assert types[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert types.count("content_block_start") == types.count("content_block_stop") == 3
    assert json.loads(seen["streamed"]["json"]) == {"city": "Bergen"}
    message = seen["streamed"]["message"]
    thinking, text, call = message["content"]
    assert (thinking["thinking"], text["text"]) == ("Where? In Bergen.", "I look.\n")
    assert thinking["signature"].startswith("mlx-sidecar.sum.")
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "weather", {"city": "Bergen"})
    assert message["stop_reason"] == "tool_use"
    assert message["usage"]["input_tokens"] > 0
    assert message["usage"]["output_tokens_details"]["thinking_tokens"] > 0


def test_anthropic_sdk_runs_tools_without_a_thread(seen: dict[str, Any]) -> None:
    """Its own loop asks for a thread of the server first, and goes on without one; whole and streamed."""
    assert seen["run_tools"] == [["tool_use", "end_turn"]] * 2


def test_anthropic_sdk_loops_over_tools_with_the_cache(seen: dict[str, Any]) -> None:
    """The content that came back is accepted as it is; the second turn computes little of the prompt."""
    first, second = seen["loop"]
    assert [block["type"] for block in first["content"]] == ["thinking", "text", "tool_use"]
    assert (second["content"][0]["text"], second["stop_reason"]) == ("It rains.", "end_turn")
    created = first["usage"]["cache_creation_input_tokens"]
    assert created == first["usage"]["cache_creation"]["ephemeral_1h_input_tokens"] > 600
    assert second["usage"]["cache_read_input_tokens"] >= created - 32
    assert second["usage"]["cache_creation_input_tokens"] < 100


def test_anthropic_sdk_can_ask_for_one_call(seen: dict[str, Any]) -> None:
    """`disable_parallel_tool_use` ends an answer that would have two calls."""
    assert (seen["both_calls"].count("tool_use"), seen["one_call"].count("tool_use")) == (2, 1)
    assert seen["one_call_usage"]["output_tokens_details"]["thinking_tokens"] == 4


def test_prefilled_answer_is_continued(seen: dict[str, Any]) -> None:
    """The answer is the rest of it alone."""
    assert [block["text"] for block in seen["prefill"]["content"]] == [" wet today."]


def test_answers_tell_why_they_ended(seen: dict[str, Any]) -> None:
    """With the text that stopped one."""
    stopped = seen["stopped"]
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "HEY")
    assert [block["text"] for block in stopped["content"]] == ["Hey! "]
    assert seen["short"] == "max_tokens"
    assert seen["longer_than_context"] in ("end_turn", "max_tokens")


def test_thinking_has_a_budget_and_can_be_omitted(seen: dict[str, Any]) -> None:
    """Its mark is forced at the budget. An omitted text is in the signature, which the second turn gives back."""
    thinking, text = seen["omitted"]
    assert (thinking["thinking"], text["text"].strip()) == ("", "Done.")
    assert thinking["signature"].startswith("mlx-sidecar.text.")
    short = seen["budget"][0]
    assert short["type"] == "thinking"
    assert "Two" not in short["thinking"]


def test_anthropic_sdk_gets_json_of_a_schema(seen: dict[str, Any]) -> None:
    """Whatever the model would rather write."""
    assert type(json.loads(seen["json"])["a"]) is bool


def test_counted_tokens_are_those_of_the_prompt(seen: dict[str, Any]) -> None:
    """The same request is billed as counted: the sum of all three."""
    used = seen["used"]
    parts = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    assert sum(used[name] for name in parts) == seen["counted"] > 600


def test_answers_tell_their_id_and_what_was_left_out_of_them(seen: dict[str, Any]) -> None:
    """A tool of the server's, and an effort that the template does not read."""
    assert seen["id"] == f"msg_{seen['headers']['request-id']}"
    assert seen["headers"]["x-mlx-sidecar-note"] == (
        "tools[0] is left out: only custom tools; output_config.effort is left out: the model's template reads none"
    )


def test_anthropic_sdk_raises_the_errors_of_its_table(seen: dict[str, Any], request: pytest.FixtureRequest) -> None:
    """Each with the type that belongs to its class."""
    expected = {
        "no_model": ("NotFoundError", "not_found_error", "no/such"),
        "image": ("BadRequestError", "invalid_request_error", "messages[0].content[0].type"),
        "wrong_type": ("BadRequestError", "invalid_request_error", "stop_sequences"),
        "wrong_call": ("BadRequestError", "invalid_request_error", "tool_choice.name"),
        "long_prompt": ("BadRequestError", "invalid_request_error", "prompt is too long: "),
        "no_token": ("AuthenticationError", "authentication_error", "token"),
    }
    for name, (kind, told, words) in expected.items():
        if seen[name] is not None:  # a Unix socket needs no token
            assert (seen[name]["class"], seen[name]["body"]["error"]["type"]) == (kind, told)
            assert words in seen[name]["body"]["error"]["message"]
    assert (seen["no_token"] is None) == ("unix" in request.node.name)
