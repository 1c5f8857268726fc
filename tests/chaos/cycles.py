"""
Starts and stops a daemon again and again in one process: `cycles.py TIMES` writes what it holds after each, and at last
what it holds when gRPC's idle threads are gone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from daemon.server.app import run
from daemon.shared.config_sources import load_config
from mlx_sidecar import Client
from tests.support.daemons import listens, wait_until
from tests.support.process_usage import open_files, threads

ENGINE = Path(__file__).parents[1] / "support" / "fake_engine.py"
IDLE_SECONDS = 60.0
"""gRPC starts more threads when it was busy, and ends those that had nothing to do for twenty seconds."""


def use(socket: Path) -> None:
    """Have a call answered, and tell the daemon, which is this process, to stop."""
    wait_until(lambda: listens(socket), "the daemon listens")
    with Client(socket, timeout=60) as client:
        assert client.complete("ok", "one two").text == "one two"
    os.kill(os.getpid(), signal.SIGTERM)


def held() -> dict[str, int]:
    """Return how many files and threads this process has."""
    return {"files": open_files(os.getpid()), "threads": threads(os.getpid())}


def settled(least: dict[str, int]) -> dict[str, int]:
    """Return what is held, as soon as it is no more than the least, or in the end."""
    end = time.monotonic() + IDLE_SECONDS
    while (now := held()) and any(now[kind] > least[kind] for kind in now) and time.monotonic() < end:
        time.sleep(0.1)
    return now


def main() -> None:
    """Run the cycles."""
    config = load_config({}, os.environ, Path.home()).config
    seen: list[dict[str, int]] = []
    for _ in range(int(sys.argv[1])):
        user = threading.Thread(target=use, args=[config.socket])
        user.start()
        status = run(config, engine=[sys.executable, str(ENGINE)])
        user.join()
        left = sorted(path.name for path in config.socket.parent.iterdir())
        seen.append(held())
        sys.stdout.write(json.dumps({"status": status, "left": left, **seen[-1]}) + "\n")
    least = {kind: min(one[kind] for one in seen[1:4]) for kind in seen[0]}
    sys.stdout.write(json.dumps({"least": least, "settled": settled(least)}) + "\n")


if __name__ == "__main__":
    main()
