"""Starts and stops a daemon again and again in one process: `cycles.py TIMES` writes what it holds after each."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

from daemon.app import run
from daemon.config import load_config
from mlx_sidecar import Client
from tests.gauge import open_files, threads
from tests.running import listens, wait_until

ENGINE = Path(__file__).parents[1] / "fake_engine.py"


def use(socket: Path) -> None:
    """Have a call answered, and tell the daemon, which is this process, to stop."""
    wait_until(lambda: listens(socket), "the daemon listens")
    with Client(socket, timeout=60) as client:
        assert client.complete("ok", "one two").text == "one two"
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Run the cycles."""
    config = load_config({}, os.environ, Path.home()).config
    for _ in range(int(sys.argv[1])):
        user = threading.Thread(target=use, args=[config.socket])
        user.start()
        status = run(config, engine=[sys.executable, str(ENGINE)])
        user.join()
        left = sorted(path.name for path in config.socket.parent.iterdir())
        held = {"status": status, "files": open_files(os.getpid()), "threads": threads(os.getpid()), "left": left}
        sys.stdout.write(json.dumps(held) + "\n")


if __name__ == "__main__":
    main()
