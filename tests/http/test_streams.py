"""Streams through the door when a client goes away, lags or comes in crowds, and when the daemon or its engine ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import short_folder
from tests.http import raw
from tests.http.conftest import Door
from tests.support.daemons import RunningDaemon, alive, wait_until

FAKE = [sys.executable, "-m", "tests.support.serve_fake"]
CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"


def serving(daemon: RunningDaemon) -> RunningDaemon:
    """Wait until the door of a daemon serves, and return the daemon."""
    with daemon.client() as client:
        wait_until(lambda: client.stats().daemon.http.state == "serving", "the door serves")
    return daemon


@pytest.fixture(name="fake", scope="module")
def _fake() -> Iterator[RunningDaemon]:
    """Return a daemon with the fake engine that serves HTTP on its Unix socket; the tests of this module share it."""
    with short_folder() as folder:
        daemon = RunningDaemon.start(folder, FAKE, http_listen="unix", test_journal=str(folder / "journal"))
        yield serving(daemon)
        assert daemon.stop() == 0


@pytest.fixture(name="mortal")
def _mortal(start_daemon: Callable[..., RunningDaemon]) -> RunningDaemon:
    """Return a daemon of the test's own."""
    return serving(start_daemon(FAKE, http_listen="unix"))


def door_of(daemon: RunningDaemon) -> Door:
    """Return the door of a daemon."""
    return Door(str(daemon.socket.with_name("http.sock")), "none")


@pytest.fixture(name="door")
def _door(fake: RunningDaemon) -> Door:
    """Return the door of the shared daemon."""
    return door_of(fake)


def body(model: str, words: str = "one two three", **more: Any) -> dict[str, Any]:
    """Return the body of a chat request."""
    return {"model": model, "messages": [{"role": "user", "content": words}], "stream": True, **more}


def pieces(answer: raw.Answer) -> list[Any]:
    """Return the events of a stream, without its end."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix(b"data: ") for line in answer.body.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(event) for event in events if event != b"[DONE]"]


def text(answer: raw.Answer) -> str:
    """Return the text of a stream."""
    return "".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces(answer))


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize("stream", [True, False])
def test_client_that_goes_away_cancels_its_call(fake: RunningDaemon, door: Door, stream: bool, path: str) -> None:
    """The engine's slot is free again; nothing is left in the daemon."""
    journal = fake.folder / "journal"
    words = f"stay {stream} at {path}"
    with fake.client() as client, raw.connected(door) as connection:
        before = client.stats().engine.cancelled
        connection.sendall(raw.request(door, "POST", path, body("hold", words, stream=stream, max_tokens=99)))
        if stream:
            assert b"200 OK" in connection.recv(65536)
        wait_until(lambda: journal.exists() and words in journal.read_text(), "the call runs")
        connection.close()
        wait_until(lambda: client.stats().engine.cancelled == before + 1, "the call is cancelled")


def test_engine_death_ends_a_stream_with_an_error(door: Door) -> None:
    """The status was sent already, so the stream has the error, which SDKs raise."""
    found = raw.call(door, "POST", CHAT, body("die"))
    assert found.status == 200
    assert pieces(found)[-1]["error"]["code"] == "engine_restarted"
    assert b"[DONE]" not in found.body


def test_engine_death_ends_a_message_with_an_event(door: Door) -> None:
    """Anthropic's SDKs raise what is called `error`, with the request's id."""
    found = raw.call(door, "POST", MESSAGES, body("die2", max_tokens=99))
    assert found.status == 200
    assert found.body.split(b"\n\n")[-2].startswith(b"event: error\ndata: ")
    last = pieces(found)[-1]
    assert (last["type"], last["error"]["type"]) == ("error", "api_error")
    assert last["request_id"] == found.headers["request-id"]


def test_engine_death_ends_responses_as_failed(door: Door) -> None:
    """Their streams have an end for it, with the answer so far."""
    found = raw.call(door, "POST", "/v1/responses", {"model": "die3", "input": "one", "stream": True})
    assert found.status == 200
    seen = pieces(found)
    assert [one["sequence_number"] for one in seen] == list(range(len(seen)))
    assert (seen[0]["type"], seen[-1]["type"]) == ("response.created", "response.failed")
    assert seen[-1]["response"]["error"]["code"] == "engine_restarted"


def test_unary_engine_death_is_503_with_a_retry(door: Door) -> None:
    """SDKs wait as long as the header says."""
    found = raw.call(door, "POST", CHAT, body("die", stream=False))
    assert (found.status, found.json["error"]["code"]) == (503, "engine_restarted")
    assert int(found.headers["retry-after"]) >= 1


def test_failure_before_the_first_event_has_its_status(fake: RunningDaemon, door: Door) -> None:
    """A stream that fails at once is no stream. One that waits for an engine that starts anew is one."""
    with fake.client() as client:
        client.complete("ok", "one")
    found = raw.call(door, "POST", CHAT, body("no-such-model"))
    assert (found.status, found.json["error"]["code"]) == (404, "model_not_found")


def test_no_log_has_words_of_a_request(fake: RunningDaemon, door: Door) -> None:
    """Of an answered one, a failed one, a refused one, and one that is no HTTP."""
    canary = "xylophone-canary"
    for asked in (body("ok", canary), body("die", canary), body("ok", temperature=canary), {canary: canary}):
        raw.call(door, "POST", CHAT, asked, x_canary=canary)
    raw.call(door, "GET", f"/{canary}", origin=f"http://{canary}")
    with raw.connected(door) as connection:
        connection.sendall(canary.encode() + b"\r\n\r\n")
        raw.received(connection)
    wait_until(lambda: any(line["event"] == "http_refused" for line in fake.log()), "the refusal was logged")
    assert canary not in (fake.folder / "daemon.log").read_text()


def test_64_streams_at_once_are_all_answered(door: Door) -> None:
    """Each with its own words."""
    words = [f"this is number {number} of many" for number in range(64)]
    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(lambda one: raw.call(door, "POST", CHAT, body("ok", one)), words))
    assert [text(answer) for answer in found] == words


def test_reader_that_lags_loses_nothing(door: Door) -> None:
    """Ten thousand pieces wait in the daemon and in the door until they are read."""
    with raw.connected(door) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(raw.request(door, "POST", CHAT, body("burst", max_tokens=10_000)))
        first = connection.recv(1000)
        assert raw.call(door, "POST", CHAT, body("ok")).status == 200, "others are served meanwhile"
        answer = raw.answer(first + raw.received(connection))
    assert text(answer) == "".join(f"{number} " for number in range(10_000))


def test_requests_in_a_row_share_a_connection(door: Door) -> None:
    """Keep-alive, as SDKs use it; a stream ends with its last chunk, not with the connection."""
    with raw.connected(door) as connection:
        for _ in range(3):
            connection.sendall(raw.request(door, "POST", CHAT, body("ok", stream=False), {"connection": None}))
            answer = raw.next_answer(connection)
            assert answer.json["choices"][0]["message"]["content"] == "one two three"


def test_door_is_started_again_when_it_ends(mortal: RunningDaemon) -> None:
    """Its socket stays: a client that connects meanwhile waits and is answered."""
    door = door_of(mortal)
    with mortal.client() as client:
        before = client.stats().daemon.http
        assert before.address == door.address
        os.kill(before.pid, signal.SIGKILL)
        wait_until(lambda: client.stats().daemon.http.state != "serving", "the death is seen")
        assert raw.call(door, "POST", CHAT, body("ok", stream=False)).status == 200
        after = client.stats().daemon.http
        assert after.restarts == 1
        assert after.pid != before.pid


def test_door_ends_with_a_killed_daemon(mortal: RunningDaemon) -> None:
    """It notices the end of the pipe."""
    with mortal.client() as client:
        pid = client.stats().daemon.http.pid
    mortal.process.kill()
    mortal.wait()
    wait_until(lambda: not alive(pid), "the door ends")


def test_door_does_not_hold_the_daemons_lock(mortal: RunningDaemon) -> None:
    """It may outlive the daemon by seconds, and the next daemon is not to wait for it."""
    with mortal.client() as client:
        pid = client.stats().daemon.http.pid
    if not Path(f"/proc/{pid}").exists():
        pytest.skip("there is no /proc on this system")
    held = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()]
    assert not [path for path in held if path.endswith(".lock")]


def test_stopped_daemon_removes_the_door_and_its_socket(mortal: RunningDaemon) -> None:
    """Nothing is left behind."""
    with mortal.client() as client:
        pid = client.stats().daemon.http.pid
    assert mortal.stop() == 0
    assert not alive(pid)
    assert not Path(door_of(mortal).address).exists()
    assert [line for line in mortal.log() if line["level"] == "error"] == []


def test_without_a_daemon_the_door_says_so(
    folder: Path, daemon: RunningDaemon, start_door: Callable[..., Door]
) -> None:
    """As 503, with a time to retry; the door itself needs no daemon to start."""
    lonely = RunningDaemon(
        folder, {**daemon.environ, "MLX_SIDECAR_SOCKET": str(folder / "run" / "s.sock")}, daemon.process
    )
    door = start_door(lonely, "--unix", str(folder / "run" / "h.sock"))
    for answer in (raw.call(door, "GET", "/health"), raw.call(door, "POST", CHAT, body("ok"))):
        assert answer.status == 503
        assert "mlx-sidecar serve" in answer.json["error"]["message"]
        assert answer.headers["retry-after"] == "1"
