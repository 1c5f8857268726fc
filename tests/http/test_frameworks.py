"""litellm and langchain-openai on the door, over a port and over the Unix socket: `make frameworks`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.http.conftest import Door
from tests.http.sdks import FRAMEWORKS, results
from tests.support.scripted_model import scripted_model
from tests.support.tool_conversation import ANSWERS, TEMPLATE

pytestmark = pytest.mark.slow
"""Their environment takes minutes to make."""


@pytest.fixture(name="seen", scope="module", params=["unix_door", "port_door"])
def _seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what the frameworks saw of a door."""
    door: Door = request.getfixturevalue(request.param)
    model = scripted_model(tmp_path_factory.mktemp("models") / "calls", ANSWERS, TEMPLATE)
    return results("frameworks_program.py", door.base_url, door.token, door.unix, str(model), pins=FRAMEWORKS)


def test_litellm_runs_a_tool_loop(seen: dict[str, Any]) -> None:
    """A stream that it puts together, and the answer to it."""
    found = seen["litellm"]
    assert (found["content"], found["reasoning"], found["text"]) == ("I look.\n", "Where? In Bergen.", "It rains.")
    assert (found["call"], found["reason"]) == ({"city": "Bergen"}, "tool_calls")


@pytest.mark.parametrize("api", ["langchain", "langchain_responses", "langchain_previous"])
def test_langchain_runs_a_tool_loop(seen: dict[str, Any], api: str) -> None:
    """By chat completions, by responses, and by responses whose conversation is the server's."""
    assert (seen[api]["call"], seen[api]["text"]) == ({"city": "Bergen"}, "It rains.")
    assert seen[api]["tokens"] > 0
