"""The door lets in what its policy says, and nothing else: over a port, and over a Unix socket."""

from __future__ import annotations

import gzip
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.http import raw
from tests.http.conftest import Door
from tests.support.daemons import RunningDaemon

MODELS = ("GET", "/v1/models")


def test_port_needs_the_token(port_door: Door) -> None:
    """As a bearer token or as x-api-key, and no other."""
    assert raw.call(port_door, *MODELS).status == 200
    assert raw.call(port_door, *MODELS, authorization=None, x_api_key=port_door.token).status == 200
    for given in (None, "Bearer ", "Bearer wrong", port_door.token[:-1], f"Basic {port_door.token}", "Bearer \xe9"):
        refused = raw.call(port_door, *MODELS, authorization=given)
        assert refused.status == 401, given
        assert refused.json["error"]["code"] == "invalid_api_key"
        assert port_door.token.encode() not in refused.body


def test_refusal_reaches_a_client_that_still_sends(port_door: Door) -> None:
    """A connection that is closed too early is reset, and the client sees no refusal."""
    head = raw.request(
        port_door, "POST", "/v1/chat/completions", b"", {"authorization": None, "content-length": "9999999"}
    )
    with raw.connected(port_door) as connection:
        connection.sendall(head)
        connection.sendall(b" " * 9_999_999)
        assert raw.answer(raw.received(connection)).status == 401


def test_unix_socket_needs_no_token(unix_door: Door) -> None:
    """Only this user can reach it: mode 0600, in a directory of 0700."""
    assert raw.call(unix_door, *MODELS, authorization=None).status == 200
    path = Path(unix_door.address)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_token_file_is_private(port_door: Door, daemon: RunningDaemon) -> None:
    """A file that others may read is refused, and so is no token."""
    path = daemon.folder / "http_token"
    assert path.read_text().strip() == port_door.token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "169.254.1.1", "[::2]", ""],
)
def test_foreign_host_name_is_refused(port_door: Door, host: str) -> None:
    """A page whose name is made to lead to this machine (DNS rebinding) still sends its own name."""
    assert raw.call(port_door, *MODELS, host=host).status in (400, 421)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8080", "[::1]", "[::1]:8080"])
def test_loopback_host_names_are_accepted(port_door: Door, host: str) -> None:
    """With any port: a tunnel may have another one."""
    assert raw.call(port_door, *MODELS, host=host).status == 200


def test_two_hosts_are_refused(port_door: Door) -> None:
    """Which of them counts would be a guess."""
    with raw.connected(port_door) as connection:
        content = raw.request(port_door, *MODELS).replace(b"host: ", b"host: localhost\r\nHost: ", 1)
        connection.sendall(content)
        assert raw.answer(raw.received(connection)).status == 400


@pytest.mark.parametrize("door_name", ["port_door", "unix_door"])
def test_pages_of_a_browser_are_refused(request: pytest.FixtureRequest, door_name: str) -> None:
    """A form, a fetch, an image: each has an origin or tells that another site caused it. The token does not help."""
    door: Door = request.getfixturevalue(door_name)
    chat = ("POST", "/v1/chat/completions")
    form = "application/x-www-form-urlencoded"
    assert raw.call(door, *chat, b"a=b", content_type=form, origin="null").status == 403
    assert raw.call(door, *chat, {"model": "embedded"}, origin="https://evil.example").status == 403
    assert raw.call(door, *MODELS, sec_fetch_site="cross-site").status == 403
    preflight = raw.call(door, "OPTIONS", "/v1/models", origin="https://a.example", access_control_request_method="GET")
    assert preflight.status == 403
    assert "access-control-allow-origin" not in preflight.headers


def test_configured_origin_may_call(
    daemon: RunningDaemon, start_door: Callable[..., Door], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The browser asks first, without the token; then it sends the token."""
    origin = "http://localhost:3000"
    monkeypatch.setitem(daemon.environ, "MLX_SIDECAR_HTTP_ORIGINS", origin)
    door = start_door(daemon, "--port", "0")
    preflight = raw.call(
        door,
        "OPTIONS",
        "/v1/models",
        authorization=None,
        origin=origin,
        access_control_request_method="GET",
        access_control_request_headers="authorization",
    )
    assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (200, origin)
    answer = raw.call(door, *MODELS, origin=origin)
    assert answer.headers["access-control-allow-origin"] == origin
    shown = answer.headers["access-control-expose-headers"]
    assert {"x-request-id", "retry-after", "x-mlx-sidecar-note"} <= set(shown.split(", "))
    assert raw.call(door, *MODELS, origin=origin, authorization=None).status == 401
    assert raw.call(door, *MODELS, origin="http://localhost:3001").status == 403


@pytest.mark.parametrize(
    "framing",
    [
        b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"transfer-encoding: chunked\r\ncontent-length: 0\r\n\r\n0\r\n\r\n",
        b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        b"content-length: +2\r\n\r\n{}",
        b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        b" content-length: 2\r\n\r\n{}",
    ],
)
def test_ambiguous_framing_ends_the_connection(port_door: Door, framing: bytes) -> None:
    """What follows could be read as another request by one of two readers (request smuggling)."""
    head = raw.request(port_door, "POST", "/v1/chat/completions", b"", {"connection": None}).removesuffix(b"\r\n")
    with raw.connected(port_door) as connection:
        connection.sendall(head + framing + raw.request(port_door, *MODELS))
        content = raw.received(connection)
    assert raw.answer(content).status in (400, 401, 501)  # 401: a folded line belongs to the header before it
    assert content.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "path",
    [
        "/../etc/passwd",
        "/v1/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/v1",
        "/docs",
        "/openapi.json",
        "/static/",
        "//",
    ],
)
def test_there_are_no_files_and_no_pages(port_door: Door, path: str) -> None:
    """No listing, no documentation page, no version."""
    found = raw.call(port_door, "GET", path)
    assert found.status == 404
    assert found.json["error"]["code"] == "not_found"
    assert "server" not in found.headers


def test_names_of_models_lead_to_no_file(port_door: Door) -> None:
    """A path is looked up in the list of models."""
    for name in ("../../etc/passwd", "%2e%2e%2fetc%2fpasswd", "/etc/passwd"):
        assert raw.call(port_door, "GET", f"/v1/models/{name}").status == 404


def test_root_answers_a_look_without_the_token(port_door: Door) -> None:
    """Claude Code sends HEAD before anything else. It learns that a server is there, and no more."""
    found = raw.call(port_door, "HEAD", "/", authorization=None)
    assert (found.status, found.body) == (200, b"")
    assert "server" not in found.headers
    assert raw.call(port_door, "GET", "/health").json == {"status": "ok", "steadied": {}}
    assert raw.call(port_door, "GET", "/health", authorization=None).status == 401


def test_wrong_method_is_told(port_door: Door) -> None:
    """In the API's own shape."""
    found = raw.call(port_door, "GET", "/v1/chat/completions")
    assert (found.status, found.json["error"]["type"]) == (405, "invalid_request_error")
    assert found.headers["allow"] == "POST"
    found = raw.call(port_door, "POST", "/health")
    assert (found.status, found.headers["allow"]) == (405, "GET, HEAD")


def test_large_bodies_are_refused(port_door: Door) -> None:
    """By the length that is announced; and by what is received, where none is."""
    chat = ("POST", "/v1/chat/completions")
    assert raw.call(port_door, *chat, b"", content_length=str(17 << 20)).status == 413
    with raw.connected(port_door) as connection:
        connection.sendall(raw.request(port_door, *chat, b"", {"transfer-encoding": "chunked"}))
        piece = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
        try:
            for _ in range(17):
                connection.sendall(piece)
        except OSError:
            pass  # it has refused already
        assert raw.answer(raw.received(connection)).status == 413


def test_ten_megabytes_of_prompt_are_refused_by_the_daemon(port_door: Door) -> None:
    """Its limit is 8 MiB; the door survives both."""
    body = {"model": "embedded", "messages": [{"role": "user", "content": "x" * (10 << 20)}]}
    found = raw.call(port_door, "POST", "/v1/chat/completions", body)
    assert found.status == 413
    assert raw.call(port_door, *MODELS).status == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": "embedded"}', b"{" * 100_000])
def test_broken_bodies_are_refused(port_door: Door, body: bytes) -> None:
    """As 400, in the API's shape."""
    found = raw.call(port_door, "POST", "/v1/chat/completions", body)
    assert found.status == 400
    assert found.json["error"]["message"]


def test_compressed_body_is_refused_for_what_it_is(port_door: Door) -> None:
    """And not as JSON that is broken."""
    body = gzip.compress(b'{"model": "embedded"}')
    found = raw.call(port_door, "POST", "/v1/messages", body, content_encoding="gzip")
    assert (found.status, "compressed" in found.json["error"]["message"]) == (415, True)
    assert raw.call(port_door, "POST", "/v1/messages", b"{}", content_encoding="identity").status == 400


def test_long_heads_are_refused(port_door: Door) -> None:
    """A head has at most 32 KiB."""
    found = raw.call(port_door, *MODELS, x_long="x" * 200_000)
    assert found.status in (400, 431)


def test_door_refuses_other_addresses(daemon: RunningDaemon) -> None:
    """Loopback only; another process at the same socket is refused as well."""
    for value in ("0.0.0.0:8080", "[::]:8080", "localhost:8080", "127.0.0.1:0", "127.0.0.1:70000", "8080"):
        environ = {**daemon.environ, "MLX_SIDECAR_HTTP_LISTEN": value}
        done = subprocess.run([sys.executable, "-m", "daemon", "config"], env=environ, capture_output=True, text=True)
        assert done.returncode == 2, value
        assert "http_listen" in done.stderr


def test_second_door_at_a_socket_is_refused(unix_door: Door, daemon: RunningDaemon) -> None:
    """The first keeps it."""
    command = [sys.executable, "-m", "daemon", "http"]
    done = subprocess.run(command, env=daemon.environ, capture_output=True, text=True)
    assert done.returncode == 1
    assert "already running" in done.stderr
    assert "choose another place with --unix, or a --port" in done.stderr
    assert raw.call(unix_door, *MODELS).status == 200


def test_socket_in_a_directory_of_others_is_refused(daemon: RunningDaemon, folder: Path) -> None:
    """The rules are those of the daemon's own socket."""
    os.chmod(folder, 0o755)
    command = [sys.executable, "-m", "daemon", "http", "--unix", str(folder / "http.sock")]
    done = subprocess.run(command, env=daemon.environ, capture_output=True, text=True)
    assert done.returncode == 2
    assert "0700" in done.stderr
