"""Helpers of OpenAI's and Anthropic's SDKs: streams that they collect, answers that they parse, loops for tools."""

from __future__ import annotations

from typing import Any

import pytest

from tests.http.conftest import Door
from tests.http.sdks import results
from tests.support.scripted_model import scripted_model
from tests.support.tool_conversation import ANSWERS, TEMPLATE


@pytest.fixture(name="seen", scope="module", params=["unix_door", "port_door"])
def _seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what the SDKs saw of a door."""
    door: Door = request.getfixturevalue(request.param)
    model = scripted_model(tmp_path_factory.mktemp("models") / "calls", ANSWERS, TEMPLATE)
    return results("helpers_program.py", door.base_url, door.token, door.unix, str(model))


def test_sdk_collects_a_streamed_chat(seen: dict[str, Any]) -> None:
    """Text, a call with its arguments parsed, usage, and the events that it makes of them."""
    found = seen["streamed"]
    assert (found["text"], found["cities"], found["reason"]) == ("I look.\n", ["Bergen"], "tool_calls")
    assert {"content.done", "tool_calls.function.arguments.done"} <= set(found["events"])
    assert found["used"]


def test_sdk_parses_calls_that_are_forced(seen: dict[str, Any]) -> None:
    """Any tool, or the one of a name. The arguments follow the class."""
    for found in seen["forced"]:
        assert found["reason"] == "tool_calls"
        assert found["cities"]
        assert set(found["cities"]) <= {"Bergen", "Oslo"}


def test_sdk_parses_answers(seen: dict[str, Any]) -> None:
    """Whole and streamed. An answer that is cut short has the reason for which the SDK raises."""
    assert seen["parsed"] == {"types": ["Form", "Form"], "cut": "LengthFinishReasonError"}
    assert seen["anthropic"] == {"types": ["Form", "Form"], "whole": True}


def test_scores_have_all_of_a_stopped_text(seen: dict[str, Any]) -> None:
    """Of each sample, whole and streamed. A token that the stop string cuts is the last one."""
    whole, streamed = seen["scored"]
    assert whole == streamed
    assert any("".join(tokens) != text for text, tokens in whole)
    for text, tokens in whole:
        assert "".join(tokens).startswith(text)
        assert text.startswith("".join(tokens[:-1]))


def test_sdk_runs_tools_over_responses(seen: dict[str, Any]) -> None:
    """Its loop refuses a server with an item, an id or an event that is not as OpenAI's."""
    assert seen["run_tools"] == ["It rains."] * 2


def test_sdk_goes_on_after_what_it_left(seen: dict[str, Any]) -> None:
    """A stream in its middle, and an answer that took too long."""
    assert seen["left"] == {"first": "assistant", "late": "APITimeoutError", "after": "length"}


def test_sdk_has_many_requests_at_once(seen: dict[str, Any]) -> None:
    """After as many that were given up; streams have the texts of whole answers."""
    assert seen["at_once"] == {"count": 50, "same": True}
