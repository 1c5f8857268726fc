"""The SDKs of npm on the door, over a port and over the Unix socket: `openai`, `ollama`, `ai` with its tool loops."""

from __future__ import annotations

from typing import Any

import pytest

from tests.http.conftest import Door
from tests.http.npm import results
from tests.support.scripted_model import scripted_model
from tests.support.tool_conversation import ANSWERS, TEMPLATE


@pytest.fixture(name="seen", scope="module", params=["unix_door", "port_door"])
def _seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what the SDKs saw of a door."""
    door: Door = request.getfixturevalue(request.param)
    model = scripted_model(tmp_path_factory.mktemp("models") / "calls", ANSWERS, TEMPLATE)
    return results(door.base_url, door.token, door.unix, str(model))


def test_openai_puts_a_stream_together_and_goes_on(seen: dict[str, Any]) -> None:
    """Of chat completions, whose arguments come in pieces, and of responses, whose conversation is the server's."""
    for api in ("chat", "responses"):
        assert (seen[api]["content"], seen[api]["text"]) == ("I look.\n", "It rains.")
        assert seen[api]["call"] == {"city": "Bergen"}
        assert seen[api]["tokens"] > 0
    assert seen["chat"]["pieces"] > 1
    assert seen["chat"]["reason"] == "tool_calls"
    assert seen["responses"]["ends"] == ["response.created", "response.completed"]


@pytest.mark.parametrize("provider", ["ai_compatible", "ai_chat", "ai_responses", "ai_own_history", "ai_anthropic"])
def test_ai_runs_its_tool_loop(seen: dict[str, Any], provider: str) -> None:
    """
    By each API of OpenAI and by Anthropic's.

    Of responses, with references to kept items and with items of the client's own.
    """
    loop = seen[provider]
    assert loop["errors"] == []
    assert (loop["calls"], loop["steps"], loop["text"]) == ([{"city": "Bergen"}], 2, "It rains.")
    assert {"tool-input-delta", "tool-call", "tool-result", "finish"} <= set(loop["types"])
    if provider != "ai_chat":  # the provider for OpenAI alone reads no reasoning of chat completions
        assert loop["reasoning"] == "Where? In Bergen."


def test_ollama_goes_on_with_a_tool(seen: dict[str, Any]) -> None:
    """A stream with its thinking, given back with the result."""
    read = {"content": "I look.\n", "thinking": "Where? In Bergen.", "calls": [{"city": "Bergen"}], "text": "It rains."}
    assert seen["ollama"] == read


def test_ai_reads_objects_of_a_schema(seen: dict[str, Any]) -> None:
    """By both APIs."""
    assert seen["ai_object"] == ["boolean", "boolean"]


def test_npm_openai_raises_errors_with_the_parameter(seen: dict[str, Any]) -> None:
    """As the Python SDK does."""
    assert seen["refused"] == {"name": "BadRequestError", "status": 400, "param": "background"}
    assert "embedded" in seen["models"]
