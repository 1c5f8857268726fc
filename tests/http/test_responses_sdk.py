"""OpenAI's own Python SDK on the door's responses, over a port and over the Unix socket."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.http.conftest import Door
from tests.http.sdks import results
from tests.integration.test_tool_calls import ANSWERS, TEMPLATE
from tests.support.scripted_model import scripted_model


@pytest.fixture(name="seen", scope="module", params=["unix_door", "port_door"])
def _seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what the SDK saw of a door."""
    door: Door = request.getfixturevalue(request.param)
    model = scripted_model(tmp_path_factory.mktemp("models") / "calls", ANSWERS, TEMPLATE)
    return results("responses_program.py", door.base_url, door.token, door.unix, str(model))


def test_all(seen):
    print(json.dumps(seen, indent=1))
    assert 0
