"""
Starts daemons at the same moment: imports everything once, and forks N starters for each line "N UMASK" it reads.

Writes a line "PID STATUS" for each that ends. A starter is the daemon itself, with a fake engine; it has status 1 if
another one serves. Nothing of gRPC runs before the fork.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from daemon.server.app import run
from daemon.server.singleton import AlreadyRunning
from daemon.shared.config_sources import load_config

ENGINE = Path(__file__).parents[1] / "support" / "fake_engine.py"


def starter(gate: int) -> int:
    """Serve as soon as the gate is closed, and return the exit status."""
    config = load_config({}, os.environ, Path.home()).config
    os.read(gate, 1)
    try:
        return run(config, engine=[sys.executable, str(ENGINE)])
    except AlreadyRunning:
        return 1


def main() -> None:
    """Hold one race after another."""
    for line in sys.stdin:
        count, umask = line.split()
        os.umask(int(umask, 8))
        gate, opener = os.pipe()
        pids = []
        for _ in range(int(count)):
            if (pid := os.fork()) == 0:
                os.close(opener)
                os._exit(starter(gate))
            pids.append(pid)
        os.close(opener)  # all of them read the end of it now
        os.close(gate)
        for _ in pids:
            pid, status = os.wait()
            sys.stdout.write(f"{pid} {os.waitstatus_to_exitcode(status)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
