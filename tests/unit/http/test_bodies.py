"""Bodies of many parts: what is built of them is bounded, because all requests share one event loop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.requests import Request

from daemon.http.anthropic.request_types import MessagesRequest
from daemon.http.api import served
from daemon.http.bodies import MOST_PARTS, read_body
from daemon.http.errors import Problem
from daemon.http.ollama.chat_types import ChatRequest as OllamaRequest
from daemon.http.openai.chat_types import ChatRequest
from daemon.http.openai.completion_types import CompletionRequest
from daemon.http.parameters import Parameters
from daemon.http.responses.request_types import ResponseRequest

KINDS = dict.fromkeys(kind for api in served() for one in api.load().endpoints for kind in one.types.values())
MANY = 10_000
BIASES = {str(token): "high" for token in range(MANY)}


def schemas(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield all core schemas within one, itself first."""
    if isinstance(schema, dict):
        if isinstance(schema.get("type"), str):
            yield schema
        for inner in schema.values():
            yield from schemas(inner)
    elif isinstance(schema, list | tuple):
        for inner in schema:
            yield from schemas(inner)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_lists_of_requests_stop_at_their_first_error(kind: type[Parameters]) -> None:
    """Objects of any names as well, unless any value is right: `Items` and `Named` of `parameters.py` see to it."""
    for schema in schemas(kind.__pydantic_core_schema__):
        inner = {"list": "items_schema", "dict": "values_schema"}.get(schema["type"])
        if inner is not None and schema.get(inner, {"type": "any"})["type"] != "any":
            assert schema.get("fail_fast"), schema


@pytest.mark.parametrize(
    ("kind", "body", "field"),
    [
        (ChatRequest, {"messages": [{}] * MANY}, "messages"),
        (ChatRequest, {"messages": [{"role": "user", "content": [{}] * MANY}]}, "messages"),
        (ChatRequest, {"messages": [{"role": "user"}], "tools": [{}] * MANY}, "tools"),
        (
            ChatRequest,
            {"messages": [{"role": "user"}], "logit_bias": {str(one): "x" for one in range(MANY)}},
            "logit_bias",
        ),
        (CompletionRequest, {"prompt": [[]] * MANY}, "prompt"),
        (MessagesRequest, {"max_tokens": 1, "messages": [{}] * MANY}, "messages"),
        (MessagesRequest, {"max_tokens": 1, "messages": [{"role": "user", "content": [{}] * MANY}]}, "messages"),
        (OllamaRequest, {"messages": [{}] * MANY}, "messages"),
        (ResponseRequest, {"input": [{}] * MANY}, "input"),
    ],
)
def test_a_body_with_many_wrong_parts_has_few_errors(kind: type[Parameters], body: Any, field: str) -> None:
    """Each error takes microseconds to build, and the answer tells the first alone."""
    with pytest.raises(ValidationError) as caught:
        kind.model_validate_json(json.dumps({"model": "m", **body}))
    assert caught.value.errors()[0]["loc"][0] == field
    assert caught.value.error_count() <= 4


def request(body: bytes) -> Request:
    """Return a request with a body that is there already."""

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)


class Unread(Parameters):
    """A type that no body is validated as."""

    @classmethod
    def model_validate_json(cls, *_: Any, **__: Any) -> Any:
        """Fail the test."""
        raise AssertionError("a body with too many parts was validated")


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b",".join([b"{}"] * MOST_PARTS) + b"]",
        b"[" + b",".join([b"[]"] * MOST_PARTS) + b"]",
        b"[" + b",".join([b'""'] * MOST_PARTS) + b"]",
        b"[" + b",".join([b'"\\\\"'] * MOST_PARTS) + b"]",
        b"[" + b",".join([b'{"a":"["}'] * (MOST_PARTS // 3 + 1)) + b"]",
        b'"' * 4 * MOST_PARTS,
    ],
)
async def test_a_body_with_too_many_parts_is_refused_unread(body: bytes) -> None:
    """413, as a request that the daemon finds too large."""
    with pytest.raises(Problem, match="more than 131,072 texts, lists and objects") as caught:
        await read_body(request(body), Unread)
    assert (caught.value.status, caught.value.code) == (413, "request_too_large")


class AnyRequest(Parameters):
    """A body of a text and a list."""

    text: str = ""
    parts: tuple[Any, ...] = ()


@pytest.mark.parametrize("text", ["{" * MOST_PARTS, '"' * 3 * MOST_PARTS, "\\" * MOST_PARTS + '"[' * 2 * MOST_PARTS])
async def test_brackets_and_quotes_in_texts_are_no_parts(text: str) -> None:
    """Code has many of them."""
    found = await read_body(request(json.dumps({"text": text}).encode()), AnyRequest)
    assert found.text == text


async def test_a_body_has_as_many_parts_as_it_may() -> None:
    """The object, a name and a list, and what is in the list; numbers do not count."""
    body: dict[str, Any] = {"parts": [{}] * (MOST_PARTS - 3) + [1] * MOST_PARTS}
    found = await read_body(request(json.dumps(body).encode()), AnyRequest)
    assert len(found.parts) == 2 * MOST_PARTS - 3
