"""The door's client: steady prompts reach the daemon, and are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from daemon.http.access import Policy
from daemon.http.app import build
from daemon.http.daemon_client import DaemonClient
from mlx_sidecar import AsyncClient, Message
from tests.support.asgi import Request

LINE = "x-anthropic-billing-header: cc_version=2.1.197.4cb; cc_entrypoint=cli; cch=fa690;"
TURNS = [Message("system", f"{LINE}\nYou help."), Message("user", "Hello.")]


@pytest.fixture(name="sent")
def _sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the prompts that would have been sent to the daemon."""
    sent: list[Any] = []

    async def tokenize(self: AsyncClient, model: str, prompt: Any, **options: Any) -> None:
        sent.append(prompt)

    monkeypatch.setattr(AsyncClient, "generate", lambda self, model, prompt, **options: sent.append(prompt))
    monkeypatch.setattr(AsyncClient, "tokenize", tokenize)
    return sent


async def test_prompts_are_steadied_where_it_is_on(sent: list[Any]) -> None:
    """And are counted as they are computed."""
    client = DaemonClient(Path("/nowhere"))
    client.generate("m", TURNS)
    await client.tokenize("m", TURNS)
    assert sent == [[Message("system", "You help."), TURNS[1]]] * 2
    assert client.steadied == {"claude_attribution": 1}


async def test_a_request_is_counted_once(sent: list[Any]) -> None:
    """It is sent again with fewer tokens, where its answer would not fit."""
    client = DaemonClient(Path("/nowhere"))
    for request in ("a", "a", "b"):
        client.generate("m", TURNS, request_id=request)
    assert (len(sent), client.steadied) == (3, {"claude_attribution": 2})


async def test_prompts_stay_where_it_is_off(sent: list[Any]) -> None:
    """`http_hygiene` says so."""
    client = DaemonClient(Path("/nowhere"), hygiene=False)
    client.generate("m", TURNS)
    assert (sent, client.steadied) == ([TURNS], {})


@pytest.mark.parametrize("prompt", ["x-anthropic-billing-header: cc_version=1; cch=0;", [1, 2, 3]])
async def test_plain_prompts_stay(sent: list[Any], prompt: Any) -> None:
    """Only conversations have a system turn."""
    DaemonClient(Path("/nowhere")).generate("m", prompt)
    assert sent == [prompt]


async def test_health_tells_the_counts(sent: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """For `mlx-sidecar stats`."""

    async def stats(self: AsyncClient, **options: Any) -> None:
        pass

    monkeypatch.setattr(AsyncClient, "stats", stats)
    client = DaemonClient(Path("/nowhere"))
    client.generate("m", TURNS)
    app = build(client, Policy(token=None, loopback_only=False))
    response = await Request("GET", "/health").to(app)
    assert response.json == {"status": "ok", "steadied": {"claude_attribution": 1}}


@pytest.mark.parametrize(("host", "status"), [("host.docker.internal:80", 200), ("localhost", 200), ("a.example", 421)])
async def test_more_host_names_can_be_allowed(monkeypatch: pytest.MonkeyPatch, host: str, status: int) -> None:
    """Such as that by which containers know this machine; others stay refused."""

    async def stats(self: AsyncClient, **options: Any) -> None:
        pass

    monkeypatch.setattr(AsyncClient, "stats", stats)
    policy = Policy("a token", loopback_only=True, hosts=("host.docker.internal",))
    app = build(DaemonClient(Path("/nowhere")), policy)
    given = {"host": host, "authorization": "Bearer a token"}
    assert (await Request("GET", "/health", headers=given).to(app)).status == status
