"""Errors of the daemon name the caller's own part of a request, where others are left out or put before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from daemon.http.access import Policy
from daemon.http.app import build
from daemon.http.daemon_client import DaemonClient
from mlx_sidecar import AsyncClient, InvalidArgument
from tests.support.asgi import Request

OPENAI_TOOL = {"type": "function", "function": {"name": "a"}}
FLAT_TOOL = {"type": "function", "name": "a"}
SEARCH = {"type": "web_search"}
TURN = {"role": "user", "content": "Hi"}
CHAT = {"model": "m", "messages": [TURN], "tools": [SEARCH, OPENAI_TOOL]}
SWITCH = {"chat_template_kwargs": {"enable_thinking": True}}
EFFORT = {"chat_template_kwargs": {"reasoning_effort": "low"}}
CALL = {"type": "function_call", "call_id": "c", "name": "n", "arguments": "{}"}
RESPONSE = {
    "model": "m",
    "instructions": "Be brief.",
    "tools": [SEARCH, SEARCH, FLAT_TOOL, {"type": "namespace", "name": "n", "tools": [FLAT_TOOL, FLAT_TOOL]}],
    "input": [
        {"role": "user", "content": "Hi"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"role": "assistant", "content": "I look."},
        CALL,
        {**CALL, "call_id": "d"},
        {"type": "function_call_output", "call_id": "c", "output": "wet"},
    ],
}
MESSAGES = {
    "model": "m",
    "max_tokens": 5,
    "system": "Be brief.",
    "messages": [TURN, TURN, {"role": "assistant", "content": "Yes?"}],
    "tools": [{"type": "web_search_20250305", "name": "s"}, {"name": "a", "input_schema": {}}],
}
PROMPT = {"model": "m", "prompt": "Hi"}
BILLING = "x-anthropic-billing-header: cc_version=2.1.197.4cb; cc_entrypoint=cli; cch=fa690;"
"""A system turn that prefix hygiene leaves out."""
BILLED = {"model": "m", "messages": [{"role": "system", "content": BILLING}, TURN, TURN], "max_tokens": 5}
BILLED_RESPONSE = {"model": "m", "instructions": BILLING, "input": [{"role": "user", "content": "Hi"}]}
BILLED_MESSAGES = {**MESSAGES, "system": BILLING}


def refusing(field: str, monkeypatch: pytest.MonkeyPatch) -> DaemonClient:
    """Return a client whose daemon refuses one field."""
    error = InvalidArgument(f"{field} has a fault", field=field)

    def generate(self: AsyncClient, *prompt: Any, **options: Any) -> Any:
        raise error

    async def tokenize(self: AsyncClient, *prompt: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(AsyncClient, "generate", generate)
    monkeypatch.setattr(AsyncClient, "tokenize", tokenize)
    return DaemonClient(Path("/nowhere/s.sock"))


CASES = [
    ("/v1/chat/completions", CHAT, "chat.tools[0].parameters_json", "tools[1].function.parameters"),
    ("/v1/chat/completions", CHAT, "chat.tools[0].name", "tools[1].function.name"),
    ("/v1/chat/completions", CHAT, "chat.messages[0].content", "messages[0].content"),
    ("/v1/chat/completions", {**CHAT, "max_completion_tokens": 9}, "max_tokens", "max_completion_tokens"),
    ("/v1/chat/completions", {**CHAT, "max_tokens": 9}, "max_tokens", "max_tokens"),
    (
        "/v1/chat/completions",
        {**CHAT, "max_tokens": 9, "max_completion_tokens": 8},
        "max_tokens",
        "max_completion_tokens",
    ),
    ("/v1/chat/completions", {**CHAT, "max_tokens": 8, "max_completion_tokens": 9}, "max_tokens", "max_tokens"),
    ("/v1/chat/completions", {**CHAT, "reasoning_effort": "none"}, "chat.enable_thinking", "reasoning_effort"),
    ("/v1/chat/completions", {**CHAT, **SWITCH}, "chat.enable_thinking", "chat_template_kwargs.enable_thinking"),
    ("/v1/chat/completions", {**CHAT, **EFFORT}, "chat.reasoning_effort", "chat_template_kwargs.reasoning_effort"),
    ("/v1/responses", RESPONSE, "chat.tools[0].parameters_json", "tools[2].parameters"),
    ("/v1/responses", RESPONSE, "chat.tools[2].parameters_json", "tools[3].tools[1].parameters"),
    ("/v1/responses", RESPONSE, "chat.tools[1].name", "tools[3].tools[0].name"),
    ("/v1/responses", RESPONSE, "chat.messages[0].content", "instructions"),
    ("/v1/responses", RESPONSE, "chat.messages[1].content", "input[0].content"),
    ("/v1/responses", RESPONSE, "chat.messages[2].tool_calls[1].arguments_json", "input[4].arguments"),
    ("/v1/responses", RESPONSE, "chat.messages[3].content", "input[5].content"),
    ("/v1/responses/input_tokens", RESPONSE, "chat.messages[3].content", "input[5].content"),
    ("/v1/messages", MESSAGES, "chat.tools[0].parameters_json", "tools[1].input_schema"),
    ("/v1/messages", MESSAGES, "chat.messages[2].content", "messages[2].content"),
    ("/v1/messages/count_tokens", MESSAGES, "chat.tools[0].name", "tools[1].name"),
    ("/api/generate", {**PROMPT, "system": "Be brief."}, "chat.messages[0].content", "system"),
    ("/api/generate", {**PROMPT, "system": "Be brief."}, "chat.messages[1].content", "prompt"),
    ("/api/generate", PROMPT, "chat.messages[0].content", "prompt"),
    ("/api/chat", {"model": "m", "messages": [TURN]}, "chat.messages[0].content", "messages[0].content"),
    ("/v1/chat/completions", BILLED, "chat.messages[1].content", "messages[2].content"),
    ("/v1/responses", BILLED_RESPONSE, "chat.messages[0].content", "input[0].content"),
    ("/v1/messages", BILLED_MESSAGES, "chat.messages[1].content", "messages[2].content"),
    ("/v1/messages/count_tokens", BILLED_MESSAGES, "chat.messages[0].content", "messages[0].content"),
]
"""Path and body of a request, the field that the daemon names, and the caller's parameter."""


@pytest.mark.parametrize(("path", "body", "field", "parameter"), CASES)
async def test_error_names_the_callers_own_part(
    path: str, body: Any, field: str, parameter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the text, which people read, and where an API has a place for it, there too."""
    app = build(refusing(field, monkeypatch), Policy(None, loopback_only=False))
    response = await Request("POST", path, json.dumps(body).encode()).to(app)
    error = response.json["error"]
    assert response.status == 400
    assert (error if isinstance(error, str) else error["message"]) == f"{parameter} has a fault"
    assert isinstance(error, str) or error.get("param", parameter) == parameter
