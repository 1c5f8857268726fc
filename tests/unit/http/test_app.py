"""The application of the door: requests that no API answers are told what is wrong, and refusals leave a log line."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from daemon.http.access import Policy
from daemon.http.app import build
from daemon.shared.log_fields import HTTP_REFUSALS, Words, permitted
from mlx_sidecar import AsyncClient
from tests.support.asgi import Request


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"transfer-encoding": "chunked"}, "invalid_framing"),
        ({"host": "a.example"}, "invalid_host"),
        ({"origin": "http://a.example"}, "invalid_origin"),
        ({}, "invalid_api_key"),
        ({"authorization": "Bearer t", "content-length": "1" * 12}, "request_too_large"),
    ],
)
async def test_refusal_of_the_door_is_logged_with_its_reason(headers: dict[str, str], reason: str) -> None:
    """The allow list of log fields knows all of them. A flood of refusals leaves one line."""
    app = build(AsyncClient("/nowhere/s.sock"), Policy("t", loopback_only=True))
    with capture_logs() as lines:
        for _ in range(3):
            answer = await Request("POST", "/v1/chat/completions", headers=headers).to(app)
    (line,) = [permitted({**line, "event": Words(line["event"])}) for line in lines]
    assert answer.json["error"]["code"] == reason
    assert (line["reason"], line["status"], line["calls"]) == (reason, answer.status, 1)
    assert reason in HTTP_REFUSALS


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("authorization", "Bearer t", 404),
        ("authorization", "bearer t", 404),
        ("x-api-key", "t", 404),
        ("authorization", "Basic t", 401),
        ("authorization", "Bearer u", 401),
    ],
)
async def test_token_is_taken_in_any_spelling_of_its_scheme(header: str, value: str, status: int) -> None:
    """The name of a scheme has no case (RFC 9110, 11.1); the token has."""
    app = build(AsyncClient("/nowhere/s.sock"), Policy("t", loopback_only=True))
    answer = await Request("POST", "/v1/none", headers={header: value}).to(app)
    assert answer.status == status


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("POST", "/v1/none", 404, "there is no such path here; docs/http.md lists them"),
        (
            "POST",
            "/v1/v1/chat/completions",
            404,
            "there is no such path here: it has /v1 twice, so leave it out of the base URL",
        ),
        (
            "POST",
            "/chat/completions",
            404,
            "there is no such path here: a base URL for OpenAI's SDKs ends with /v1; docs/http.md lists all paths",
        ),
        ("GET", "/v1/chat/completions", 405, "this path is not served with this method, but with POST"),
        ("POST", "/v1/responses/r", 405, "this path is not served with this method, but with DELETE, GET, HEAD"),
    ],
)
async def test_wrong_path_or_method_is_told(method: str, path: str, status: int, text: str) -> None:
    """With the type that OpenAI gives them."""
    app = build(AsyncClient("/nowhere/s.sock"), Policy(None, loopback_only=True))
    answer = await Request(method, path).to(app)
    assert answer.status == status
    assert answer.json["error"]["message"] == text
    assert answer.json["error"]["type"] == "invalid_request_error"
