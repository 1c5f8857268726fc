"""mlx-sidecar as a system under test: its daemon, called through its Python client."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.figures import OURS
from benchmarks.systems import Answer, Request, closed_on_failure, end, wait_until
from mlx_sidecar import Client, Delta, GenerateOptions, Prompt

SERVICE = "mlx_sidecar.v1.SidecarService"


@dataclass
class Sidecar:
    """A daemon with the default configuration, but for `settings`, and all its files in one folder."""

    folder: Path
    name: str = OURS
    settings: Mapping[str, str] = field(default_factory=dict)
    environ: dict[str, str] = field(init=False, repr=False)
    process: subprocess.Popen[bytes] = field(init=False, repr=False)
    client: Client = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MLX_SIDECAR_")}
        own = {
            "MLX_SIDECAR_SOCKET": str(self.folder / "s.sock"),
            "MLX_SIDECAR_STATE_DIR": str(self.folder),
            "MLX_SIDECAR_LOG_FILE": str(self.folder / "sidecar.log"),
            **self.settings,
        }
        self.environ = {**clean, **own}
        self.process = subprocess.Popen([sys.executable, "-m", "daemon", "serve"], env=self.environ)
        self.client = Client(own["MLX_SIDECAR_SOCKET"], timeout=60)

    def wait(self, service: str = SERVICE) -> None:
        """Wait until a service is SERVING in the health service; "" is the process itself."""
        with grpc.insecure_channel(f"unix:{self.client.socket}") as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            request = health_pb2.HealthCheckRequest(service=service)

            def serving() -> bool:
                try:
                    answer = check(request, wait_for_ready=False)
                except grpc.RpcError:
                    return False
                return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

            wait_until(self.client.socket.exists, self.process, 0.005)
            wait_until(serving, self.process, 0.005)

    def wait_until_warm(self) -> None:
        """Wait until the engine has imported its libraries."""
        wait_until(lambda: self.client.stats().engine.state == "ready", self.process, 0.005)

    def ask(self, request: Request) -> Answer:
        """Stream a completion; see `System.ask`."""
        return asked(self.client, request)

    def pids(self) -> list[int]:
        """Return the ids of the parent and of the engine."""
        return [self.process.pid, self.client.stats().engine.pid]

    def close(self) -> None:
        """End the daemon."""
        self.client.close()
        end(self.process)


class StartsSidecar:
    """Starts daemons."""

    name = OURS

    def __call__(self, folder: Path, models: Sequence[Path]) -> Sidecar:
        """Start a daemon and load the models."""
        sidecar = Sidecar(folder)
        with closed_on_failure(sidecar):
            sidecar.wait()
            for model in models:
                sidecar.client.load(str(model))
        return sidecar


def asked(client: Client, request: Request) -> Answer:
    """
    Stream a completion through a client; see `System.ask`.

    No token is guessed ahead: models with random weights repeat themselves, so that guesses would be right too often.
    The workload "guesses" has texts of its own.
    """
    options = GenerateOptions(max_tokens=request.tokens, temperature=request.temperature, seed=request.seed)
    options["speculation"] = "off"
    return streamed(client, request.model, request.prompt, **options)


def streamed(client: Client, model: Path, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Answer:
    """Stream the answer to any prompt, such as a conversation."""
    arrivals, texts = [], []
    sent = time.perf_counter()
    with client.generate(str(model), prompt, **options) as stream:
        for event in stream:
            if isinstance(event, Delta) and event.text:
                arrivals.append(time.perf_counter())
                texts.append(event.text)
        usage = stream.result().usage
    return Answer(
        sent, tuple(arrivals), "".join(texts), usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens
    )
