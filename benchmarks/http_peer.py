"""Peers with OpenAI's HTTP API: `mlx_lm.server`, a part of mlx-lm, and `vllm-mlx` from its own environment."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.systems import Answer, Request, System, closed_on_failure, end, wait_until

MLX_LM = "mlx_lm.server"
VLLM_MLX = "vllm-mlx"


@dataclass
class HttpPeer:
    """A server process that offers completions over HTTP."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def wait(self) -> None:
        """Wait until its health check succeeds."""
        wait_until(self.healthy, self.process)

    def ask(self, request: Request) -> Answer:
        """
        Stream a completion; see `System.ask`.

        Raises:
            RuntimeError: If the status is not 200, or the answer has no text: a fault can look like an empty answer.
        """
        body: dict[str, Any] = {
            "model": str(request.model),
            "prompt": request.prompt,
            "max_tokens": request.tokens,
            "temperature": request.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.seed is not None:
            body["seed"] = request.seed
        arrivals, texts = [], []
        usage: dict[str, Any] = {}
        sent = time.perf_counter()
        for event in self._events(body):
            text = "".join(choice.get("text", "") for choice in event["choices"])
            if text:
                arrivals.append(time.perf_counter())
                texts.append(text)
            usage = event.get("usage") or usage
        if not arrivals or not usage:
            raise RuntimeError(f"{self.name} ended a stream without text or usage")
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        return Answer(sent, tuple(arrivals), "".join(texts), usage["prompt_tokens"], cached, usage["completion_tokens"])

    def get(self, path: str) -> bytes:
        """
        Return the body of a GET.

        Raises:
            RuntimeError: If the status is not 200.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            connection.request("GET", path)
            return _ok(connection.getresponse()).read()
        finally:
            connection.close()

    def pids(self) -> list[int]:
        """Return the id of its process."""
        return [self.process.pid]

    def close(self) -> None:
        """End the process."""
        end(self.process)

    def healthy(self) -> bool:
        """Whether its health check succeeds."""
        try:
            self.get("/health")
        except (OSError, RuntimeError):
            return False
        return True

    def _events(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            for line in _ok(connection.getresponse()):
                data = line.removeprefix(b"data: ").strip()
                if line.startswith(b"data: ") and data != b"[DONE]":
                    yield json.loads(data)
        finally:
            connection.close()


@dataclass(frozen=True)
class StartsMlxLm:
    """Starts `mlx_lm.server` with its defaults and optional flags."""

    name: str = MLX_LM
    flags: tuple[str, ...] = ()

    def __call__(self, folder: Path, models: Sequence[Path]) -> System:
        """Start a server with the first model. A request for another model replaces it."""
        port = free_port()
        command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(models[0]), "--port", str(port)]
        return _started(self.name, [*command, *self.flags], port, folder)


@dataclass(frozen=True)
class StartsVllmMlx:
    """Starts vllm-mlx from its own environment, with continuous batching, which is off by default."""

    venv: Path
    name: str = VLLM_MLX

    def __call__(self, folder: Path, models: Sequence[Path]) -> System:
        """Start a server with the first model; it serves no other."""
        port = free_port()
        command = [str(self.venv / "bin" / "vllm-mlx"), "serve", str(models[0]), "--port", str(port)]
        return _started(self.name, [*command, "--host", "127.0.0.1", "--continuous-batching"], port, folder)


def _started(name: str, command: list[str], port: int, folder: Path) -> HttpPeer:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "peer.log"
    # vllm-mlx keeps its prefixes below the home directory: gigabytes for each model, which outlive the run there.
    environ = {**os.environ, "HOME": str(folder)}
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environ, stdout=file, stderr=file)
    peer = HttpPeer(name, process, port, log)
    with closed_on_failure(peer):
        peer.wait()
    return peer


def _ok(response: http.client.HTTPResponse) -> http.client.HTTPResponse:
    if response.status != http.client.OK:
        raise RuntimeError(f"HTTP {response.status}: {response.read(300)!r}")
    return response


def free_port() -> int:
    """Return a port of the loopback address that was free just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
