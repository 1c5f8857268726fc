"""What prefix hygiene did is shown by `mlx-sidecar stats`, as the daemon's own door tells it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from daemon.cli.output.door_health import steadied
from daemon.http.token import read_token
from mlx_sidecar import HttpStats
from tests.http import raw
from tests.http.conftest import Door
from tests.support.daemons import RunningDaemon, wait_until

FAKE = [sys.executable, "-m", "tests.support.serve_fake"]
LINE = "x-anthropic-billing-header: cc_version=2.1.197.4cb; cc_entrypoint=cli; cch=fa690;"


def test_stats_shows_what_hygiene_did(start_daemon: Callable[..., RunningDaemon]) -> None:
    """In text and in JSON. The door is known to serve, however little the daemon logs."""
    daemon = start_daemon(FAKE, http_listen="unix", log_level="error")
    with daemon.client() as client:
        wait_until(lambda: client.stats().daemon.http.state == "serving", "the door serves")
    messages = [{"role": "system", "content": f"{LINE}\nYou help."}, {"role": "user", "content": "Hello."}]
    door = Door(str(daemon.socket.with_name("http.sock")), "none")
    asked = raw.call(door, "POST", "/v1/chat/completions", {"model": "ok", "messages": messages})
    assert asked.status == 200

    def shown(*options: str) -> str:
        command = [sys.executable, "-m", "daemon", "stats", *options]
        return subprocess.run(command, env=daemon.environ, capture_output=True, text=True, check=True).stdout

    assert "claude attribution in 1 request" in shown()
    assert json.loads(shown("--json"))["daemon"]["http"]["steadied"] == {"claude_attribution": 1}


def test_a_changed_line_does_not_hinder_reuse(unix_door: Door) -> None:
    """The second prompt differs in its first line alone, and is reused; its answer is that of a prompt without it."""
    rules = "The river runs from the hills down to the sea, and the ships follow it. " * 20

    def asked(line: str, salt: str) -> tuple[str, int, int]:
        messages = [{"role": "system", "content": line + rules}, {"role": "user", "content": "Go on."}]
        body = {"model": "embedded", "messages": messages, "max_tokens": 8, "temperature": 0, "cache_salt": salt}
        answer = raw.call(unix_door, "POST", "/v1/chat/completions", body).json
        usage = answer["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return answer["choices"][0]["message"]["content"], usage["prompt_tokens"], cached

    without = asked("", "hygiene, cold")
    first = asked(LINE + "\n", "hygiene")
    second = asked(LINE.replace("fa690", "00b1e").replace("4cb", "931") + "\n", "hygiene")
    assert (without[2], first[2]) == (0, 0)
    assert second[2] >= second[1] - 16
    assert without[:2] == first[:2] == second[:2]


class Answering(BaseHTTPRequestHandler):
    """Answers each request with the server's answer, if its token is right."""

    def do_GET(self) -> None:
        """Answer."""
        token, body = self.server.told  # type: ignore[attr-defined]
        right = self.headers["Authorization"] == f"Bearer {token}"
        self.send_response(200 if right else 401)
        self.end_headers()
        self.wfile.write(body if right else b"{}")

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@pytest.fixture(name="server")
def _server() -> Iterator[HTTPServer]:
    """Return a server on a port."""
    server = HTTPServer(("127.0.0.1", 0), Answering)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (b'{"status": "ok", "steadied": {"a_rule": 3}}', {"a_rule": 3}),
        (b'{"status": "ok"}', {}),
        (b"[1]", {}),
        (b"", {}),
    ],
)
def test_a_door_on_a_port_is_asked_with_the_token(
    server: HTTPServer, tmp_path: Path, answer: bytes, found: dict[str, int]
) -> None:
    """A door of another version, or no door, tells nothing; nor is a token made for it."""
    door = HttpStats("serving", f"127.0.0.1:{server.server_port}", 1)
    assert steadied(door, tmp_path) == {}
    assert not list(tmp_path.iterdir())
    server.told = (read_token(tmp_path), answer)  # type: ignore[attr-defined]
    assert steadied(door, tmp_path) == found
    assert steadied(HttpStats("restarting", door.address), tmp_path) == {}


def test_a_door_that_is_gone_tells_nothing(tmp_path: Path) -> None:
    """The rest of the state is shown all the same."""
    assert steadied(HttpStats("serving", str(tmp_path / "http.sock"), 1), tmp_path) == {}
