"""
A daemon with a watched event loop: each callback that takes long is appended to a file.

The processor time of the loop's thread within one callback counts. For so long no other call was served, however busy
the machine is with other things.
"""

from __future__ import annotations

import os
import sys
import time
from asyncio import events
from pathlib import Path
from typing import Any

from daemon.server.app import run
from daemon.shared.config_sources import load_config

NOTED_SECONDS = 0.002


def watch(file: int) -> None:
    """Measure every callback of every loop of this process from now on."""
    handles: Any = events.Handle
    plain = handles._run

    def measured(handle: Any) -> None:
        began = time.thread_time()
        plain(handle)
        if (took := time.thread_time() - began) > NOTED_SECONDS:
            os.write(file, f"{took:.6f}\n".encode())

    handles._run = measured


if __name__ == "__main__":
    watch(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    config = load_config({}, os.environ, Path.home()).config
    sys.exit(run(config))
