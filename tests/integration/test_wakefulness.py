"""A daemon keeps the machine awake while it answers; here with a program that it takes for caffeinate."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from tests.support.daemons import RunningDaemon, alive, wait_until


def test_running_call_holds_the_wake_lock(start_daemon: Callable[..., RunningDaemon], folder: Path) -> None:
    """The first call takes the wake lock; Stats takes none."""
    pids = folder / "pids"
    program = folder / "caffeinate"
    program.write_text(f'#!/bin/sh\necho $$ "$@" >> {pids}\nexec sleep 1000\n')
    program.chmod(0o755)
    daemon = start_daemon([sys.executable, "-m", "tests.support.serve_fake"], test_caffeinate=str(program))
    with daemon.client() as client:
        client.stats()
        assert not pids.exists()
        with client.generate("hold", "a b c") as stream:
            next(iter(stream.text()))
            wait_until(lambda: pids.exists() and pids.read_text().endswith("\n"), "it is kept awake")
            pid, *arguments = pids.read_text().split()
            assert arguments == ["-i", "-w", str(daemon.process.pid)]
        client.complete("ok", "a b")
        assert len(pids.read_text().splitlines()) == 1, "one for calls in quick succession"
        assert daemon.stop() == 0
    assert not alive(int(pid))
