"""
What the HTTP door costs beside gRPC: `python -m benchmarks.http_door`.

One daemon answers the same conversations by gRPC and through its door, in turns, both over Unix sockets. Their system
prompt is in the prefix cache, as it is for an agent's second session; the user's 32 words are new. A door of its own
shows the time of a start.
"""

from __future__ import annotations

import argparse
import http.client
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import machine, shapes, words
from benchmarks.page import RESULTS
from benchmarks.sidecar import Sidecar, streamed
from benchmarks.systems import Answer, closed_on_failure, wait_until
from daemon.server.supervision.http_door import door_command
from daemon.shared.config import Config
from daemon.shared.config_sources import load_config
from mlx_sidecar import Client, Message

PREFIXES = (2048, 12_000)
"""Tokens that are in the prefix cache."""
NEW, ANSWERED = 32, 64
"""Tokens that are new at the end of a prompt, and tokens of an answer."""
ROUNDS, STARTS = 9, 7
WANTED = {"first token, ratio": 1.3, "a token more, ms": 1.0, "resident memory, MB": 60.0, "start, ms": 300.0}
"""The most that each figure may be."""


class UnixConnection(http.client.HTTPConnection):
    """A connection to a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


@dataclass(frozen=True, slots=True)
class Door:
    """The door of a daemon, with a connection that stays, as SDKs have it."""

    connection: UnixConnection

    def ask(self, model: Path, beginning: str, words: str) -> Answer:
        """Stream the answer to a system prompt and a turn of the user."""
        body = {
            "model": str(model),
            "messages": [{"role": "system", "content": beginning}, {"role": "user", "content": words}],
            "max_tokens": ANSWERED,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        arrivals, texts = [], []
        usage: dict[str, Any] = {}
        sent = time.perf_counter()
        self.connection.request("POST", "/v1/chat/completions", json.dumps(body))
        for event in _events(self.connection.getresponse()):
            if text := "".join(choice["delta"].get("content") or "" for choice in event["choices"]):
                arrivals.append(time.perf_counter())
                texts.append(text)
            usage = event.get("usage") or usage
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return Answer(sent, tuple(arrivals), "".join(texts), usage["prompt_tokens"], cached, usage["completion_tokens"])


def _ask_daemon(client: Client, model: Path, beginning: str, words: str) -> Answer:
    """Do the same by gRPC."""
    messages = [Message("system", beginning), Message("user", words)]
    return streamed(client, model, messages, max_tokens=ANSWERED, temperature=0)


def _events(response: http.client.HTTPResponse) -> Iterator[Any]:
    if response.status != http.client.OK:
        raise RuntimeError(f"HTTP {response.status}: {response.read(300)!r}")
    for line in response:
        data = line.removeprefix(b"data: ").strip()
        if line.startswith(b"data: ") and data != b"[DONE]":
            yield json.loads(data)


def main() -> int:
    """Measure, print a table, and write JSON unless the run is quick."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a tiny model, few rounds: does it work?")
    quick = parser.parse_args().quick
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, it ends the servers
    if not quick:
        machine.preload_openblas("benchmarks.http_door")
    with tempfile.TemporaryDirectory(prefix="mlxs-", dir="/tmp") as name:
        figures = measure(Path(name), quick=quick)
    for what, value in figures.items():
        print(f"{what:<42} {value:8.2f}")
    missed = [name for what, most in WANTED.items() for name in figures if name.endswith(what) and figures[name] > most]
    print("missed:", ", ".join(missed) or "nothing")
    if not quick:
        report = {"benchmark": "the HTTP door beside gRPC", "rounds": ROUNDS, **machine.describe(), "figures": figures}
        (RESULTS / "http_door.json").write_text(json.dumps(report, indent=2) + "\n")
    return 0


def measure(folder: Path, *, quick: bool) -> dict[str, float]:
    """Return all figures, by name."""
    model = shapes.write(folder, "small", tiny=quick)
    (model / "chat_template.jinja").write_text("{% for turn in messages %}{{ turn.content }}{% endfor %}")
    with _served(folder / "daemon") as (sidecar, door):
        sidecar.client.load(str(model))
        figures: dict[str, float] = {}
        for tokens in (64, 128) if quick else PREFIXES:
            figures |= _compare(sidecar, door, model, tokens, rounds=2 if quick else ROUNDS)
        pid = sidecar.client.stats().daemon.http.pid
        figures["resident memory, MB"] = machine.resident_bytes([pid]) / 1e6
        figures["memory of its own, MB"] = machine.own_bytes(pid) / 1e6
        config = load_config({}, sidecar.environ, Path.home()).config
    figures["start, ms"] = median(_start(folder / f"{number}.sock", config) for number in range(1 if quick else STARTS))
    return figures


@contextmanager
def _served(folder: Path) -> Iterator[tuple[Sidecar, Door]]:
    sidecar = Sidecar(folder, settings={"MLX_SIDECAR_HTTP_LISTEN": "unix"})
    with closed_on_failure(sidecar), closing(sidecar):
        sidecar.wait()
        wait_until(lambda: sidecar.client.stats().daemon.http.state == "serving", sidecar.process)
        with closing(UnixConnection(folder / "http.sock")) as connection:
            yield sidecar, Door(connection)


def _compare(sidecar: Sidecar, door: Door, model: Path, tokens: int, *, rounds: int) -> dict[str, float]:
    beginning = words.prompt("door", tokens)
    by_grpc = partial(_ask_daemon, sidecar.client)
    by_grpc(model, beginning, words.prompt("first", NEW))
    door.connection.close()  # it may have been idle for longer than the door waits; the next request opens another
    answers: tuple[list[Answer], list[Answer]] = ([], [])
    for number in range(rounds + 1):
        for name, ask, seen in (("gRPC", by_grpc, answers[0]), ("door", door.ask, answers[1])):
            answer = ask(model, beginning, words.prompt(f"{number} {name}", NEW))
            assert answer.cached_tokens, "the beginning was not in the prefix cache"
            seen.append(answer)
    ours, doors = (seen[1:] for seen in answers)  # the first round warms both up
    first, first_door = (median(answer.first_token for answer in seen) for seen in (ours, doors))
    gap, gap_door = (median(_token_ms(answer) for answer in seen) for seen in (ours, doors))
    return {
        f"{tokens}: gRPC, first token, ms": first,
        f"{tokens}: door, first token, ms": first_door,
        f"{tokens}: first token, ratio": first_door / first,
        f"{tokens}: gRPC, a token, ms": gap,
        f"{tokens}: a token more, ms": gap_door - gap,
    }


def _token_ms(answer: Answer) -> float:
    """Return the milliseconds of each token after the first; a piece can have several, if it waited."""
    return 1000 * (answer.arrivals[-1] - answer.arrivals[0]) / (answer.tokens - 1)


def _start(path: Path, config: Config) -> float:
    """Return the milliseconds from the start of a door to its first answer."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        began = time.perf_counter()
        with subprocess.Popen(
            [*door_command(config), "--fd", str(listener.fileno())],
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ):
            with closing(UnixConnection(path)) as connection:
                connection.request("HEAD", "/")
                connection.getresponse().read()
            return 1000 * (time.perf_counter() - began)


if __name__ == "__main__":
    sys.exit(main())
