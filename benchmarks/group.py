"""
Benchmark of a group: `python -m benchmarks.group [--rounds N] [--ranks N]`.

It asks a group of mlx-sidecar and `mlx_lm.server` in its distributed mode for the same answers, in turns, each with a
process for each rank on loopback. The figures are tokens per second of one stream and of eight, and the ratio of both
systems in each round: the least, the median and the most. Before that, it measures how long two ranks take to agree to
a turn without a model, in milliseconds.

On Linux it preloads OpenBLAS, as other benchmarks do: with the BLAS of MLX's wheel, rows of a batch share no work. Each
rank has its share of the cores, as a machine of its own would have: OpenBLAS of one rank takes no core of another.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import machine
from benchmarks.group_turns import agreement_seconds
from benchmarks.http_peer import HttpPeer, free_port
from benchmarks.sidecar import asked
from benchmarks.systems import Answer, Request, System, ask_all, end, throughput, wait_until
from mlx_sidecar import Client
from tests.support.groups import RunningGroup
from tests.support.models import wide_model

TOKENS = 64
STREAMS = (1, 8)
TURNS = 2000


@dataclass
class GroupSystem:
    """A group as a system under test; what starts it ends it."""

    client: Client
    name: str = "mlx-sidecar"

    def ask(self, request: Request) -> Answer:
        """Stream a completion; see `System.ask`."""
        return asked(self.client, request)

    def pids(self) -> list[int]:
        """Return the id of the first rank's engine."""
        return [self.client.stats().group.pid]

    def close(self) -> None:
        """Do nothing."""


class MlxLmSystem(HttpPeer):
    """
    `mlx_lm.server` in its distributed mode. It is stopped while another system is measured.

    Its ranks wait for requests in an operation of MLX's ring, which keeps a core busy. The other system would get the
    rest of it.

    Args:
        running: Its processes, the first rank first.
        port: The port of the first.
        log: Its output.
    """

    def __init__(self, running: list[subprocess.Popen[bytes]], port: int, log: Path) -> None:
        super().__init__("mlx_lm.server", running[0], port, log)
        self._running = running

    def go_on(self) -> None:
        """Let its processes run."""
        self._send(signal.SIGCONT)

    def pause(self) -> None:
        """Stop its processes."""
        self._send(signal.SIGSTOP)

    def _send(self, number: int) -> None:
        for process in self._running:
            process.send_signal(number)


def main() -> int:
    """Measure, and print the medians and their ratios as JSON."""
    arguments = _parser().parse_args()
    threads = max(1, (os.cpu_count() or 1) // arguments.ranks)
    machine.preload_openblas("benchmarks.group", *sys.argv[1:], threads=threads)
    agreement = round(1e3 * agreement_seconds(TURNS), 3)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception it ends the servers
    with tempfile.TemporaryDirectory(prefix="mlxs-", dir="/tmp") as name:
        folder = Path(name)
        model = wide_model(folder, "wide", 7, layers=4)
        with ExitStack() as held:
            systems = [
                held.enter_context(_ours(folder, model, arguments.ranks)),
                held.enter_context(_mlx_lm(folder, model, arguments.ranks)),
            ]
            figures = {streams: _measured(systems, model, streams, arguments.rounds) for streams in STREAMS}
    speeds = {f"{streams} streams": figure for streams, figure in figures.items()}
    print(json.dumps({"turn agreement, ms": agreement, **speeds}, indent=1))
    return 0


def _measured(systems: list[System], model: Path, streams: int, rounds: int) -> dict[str, list[float]]:
    """Return the tokens per second of each system, and the ratio of the first to the second: least, median and most."""
    speeds: dict[str, list[float]] = {system.name: [] for system in systems}
    for turn in range(rounds + 1):
        for system in systems[:: 1 if turn % 2 else -1]:
            requests = [Request(model, f"{turn} {number} is the number of", TOKENS) for number in range(streams)]
            with _alone(system):
                speed = throughput(ask_all(system, requests))
            if turn:  # the first round loads, and compiles kernels
                speeds[system.name].append(speed)
    speeds["ratio"] = [first / second for first, second in zip(*speeds.values(), strict=True)]
    return {
        name: [round(figure, 2) for figure in (min(values), median(values), max(values))]
        for name, values in speeds.items()
    }


@contextmanager
def _alone(system: System) -> Iterator[None]:
    """Let a system run while it is measured."""
    if not isinstance(system, MlxLmSystem):
        yield
        return
    system.go_on()
    yield
    system.pause()


@contextmanager
def _ours(folder: Path, model: Path, ranks: int) -> Iterator[System]:
    home = folder / "ours"
    home.mkdir()
    group = RunningGroup.start(home, ranks, group_models=f"{model}=tensor")
    try:
        with group.front.client() as client:
            group.ready(client)
            yield GroupSystem(client)
    finally:
        group.stop()


@contextmanager
def _mlx_lm(folder: Path, model: Path, ranks: int) -> Iterator[System]:
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{free_port()}"] for _ in range(ranks)]))
    port = free_port()
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(model), "--port", str(port)]
    log = folder / "peer.log"
    with log.open("wb") as file:
        running = [
            subprocess.Popen(
                command,
                env={**os.environ, "MLX_HOSTFILE": str(hosts), "MLX_RANK": str(rank), "HF_HUB_OFFLINE": "1"},
                stdout=file,
                stderr=file,
            )
            for rank in range(ranks)
        ]
    peer = MlxLmSystem(running, port, log)
    try:
        wait_until(peer.healthy, running[0])
        peer.pause()
        yield peer
    finally:
        peer.go_on()
        for process in running:
            end(process)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count, in which the systems take turns")
    parser.add_argument("--ranks", type=int, default=2, help="ranks of each system")
    return parser


if __name__ == "__main__":
    sys.exit(main())
