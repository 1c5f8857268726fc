"""Requests to Anthropic's API that its SDK does not make: the shape of Claude Code's, streams as bytes, wrong paths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.http import raw
from tests.http.conftest import Door
from tests.http.thinking_model import ANSWERS, TEMPLATE
from tests.support.scripted_model import scripted_model

VERSION = {"anthropic_version": "2023-06-01"}
MARK = {"type": "ephemeral"}
SCHEMAS: list[dict[str, Any]] = [
    {"type": "string", "minLength": 1, "maxLength": 400, "pattern": "^[a-z/]+$", "title": "Path"},
    {"type": "integer", "minimum": 0, "maximum": 9, "exclusiveMinimum": -1, "default": 3},
    {"anyOf": [{"type": "string", "enum": ["a", "b"]}, {"const": None}], "default": "a"},
    {"type": "array", "items": {"type": "string", "format": "uri"}, "maxItems": 4},
    {"type": "object", "propertyNames": {"pattern": "^x"}, "additionalProperties": {"type": "number"}},
]
"""What arguments of an agent's tools are declared with."""


@pytest.fixture(name="model", scope="module")
def _model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model that thinks and calls tools."""
    return scripted_model(tmp_path_factory.mktemp("models") / "calls", ANSWERS, TEMPLATE)


def agents(model: Path, words: str) -> dict[str, Any]:
    """Return a request as an agent's: three system blocks, 24 tools, and a system turn after the user's."""
    tools = [
        {
            "name": f"tool_{number}",
            "description": "Does one thing.",
            "input_schema": {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "type": "object",
                "properties": {"one": SCHEMAS[number % len(SCHEMAS)], "two": {"type": "boolean"}},
                "required": ["one"],
                "additionalProperties": False,
            },
        }
        for number in range(24)
    ]
    return {
        "model": str(model),
        "max_tokens": 32000,
        "system": [
            {"type": "text", "text": "An agent's header."},
            {"type": "text", "text": "An agent.", "cache_control": MARK},
            {"type": "text", "text": "It works with care. " * 20, "cache_control": {**MARK, "scope": "global"}},
        ],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Notes."}, {"type": "text", "text": "Work."}]},
            {"role": "system", "content": words},
        ],
        "tools": tools,
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": "a session's name"},
        "stream": True,
    }


def ask(door: Door, body: Any, path: str = "/v1/messages?beta=true") -> raw.Answer:
    """Send a request as agents do, with the names of many betas."""
    return raw.call(door, "POST", path, body, **VERSION, anthropic_beta="one-2025-01-01,two-2026-01-01")


def events(answer: raw.Answer) -> list[tuple[str, Any]]:
    """Return names and data of a stream's events; comments are skipped, as by all clients."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in answer.body.decode().split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            name, data = (line.partition(": ")[2] for line in lines)
            found.append((name, json.loads(data)))
    return found


def test_agents_request_is_answered_twice(unix_door: Door, model: Path) -> None:
    """The second session reuses the first one's beginning, with other words at its end; the answers are the same."""
    usage = []
    for words in ("Shout", "Again. Shout"):
        answer = ask(unix_door, agents(model, words))
        assert answer.status == 200
        seen = events(answer)
        assert [name for name, _ in seen] == [data["type"] for _, data in seen]
        assert "".join(data["delta"].get("text", "") for name, data in seen if name == "content_block_delta") == (
            "Hey! HEY! HO!"
        )
        assert seen[-2][1]["delta"]["stop_reason"] == "end_turn"
        usage.append(seen[0][1]["message"]["usage"])
        assert b": output_config.effort is left out" in answer.body
    assert usage[0]["cache_read_input_tokens"] == 0
    prompt = usage[1]["cache_read_input_tokens"] + usage[1]["cache_creation_input_tokens"]
    assert usage[1]["cache_read_input_tokens"] > prompt * 0.9


def test_paths_and_methods_have_errors_of_the_api(unix_door: Door) -> None:
    """Also those that this server has not."""
    for method, path, status, kind in (
        ("POST", "/v1/messages/batches", 404, "not_found_error"),
        ("POST", "/v1/v1/messages", 404, "not_found_error"),
        ("GET", "/v1/messages", 405, "invalid_request_error"),
        ("GET", "/v1/models/none", 404, "not_found_error"),
        ("GET", "/v1/models?limit=0", 400, "invalid_request_error"),
    ):
        answer = raw.call(unix_door, method, path, b"", **VERSION)
        assert (answer.status, answer.json["type"], answer.json["error"]["type"]) == (status, "error", kind)
    assert "object" in raw.call(unix_door, "GET", "/v1/models").json


def test_access_is_refused_in_the_shape_of_the_api(port_door: Door) -> None:
    """No token, a page of a browser, and too large a body."""
    for headers, status, kind in (
        ({"authorization": None}, 401, "authentication_error"),
        ({"origin": "http://evil.example"}, 403, "permission_error"),
        ({"content_length": str(1 << 30)}, 413, "request_too_large"),
    ):
        answer = raw.call(port_door, "POST", "/v1/messages", b"{}", **headers)
        assert (answer.status, answer.json["error"]["type"]) == (status, kind)


def test_key_of_the_sdk_is_the_token(port_door: Door) -> None:
    """It comes as `x-api-key`."""
    given = {"authorization": None, "x_api_key": port_door.token, **VERSION}
    answer = raw.call(port_door, "GET", "/v1/models/embedded", b"", **given)
    assert answer.json["id"] == "embedded"


@pytest.mark.parametrize("body", [b"", b"[", b"[]", b"{}", b'{"model": "m"}'])
def test_broken_bodies_are_refused(unix_door: Door, body: bytes) -> None:
    """Each with what is wrong."""
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        answer = ask(unix_door, body, path)
        assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error")
