"""The programs of the page of frameworks run with the real SDK."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.http.conftest import Door
from tests.http.sdks import python
from tests.support.daemons import RunningDaemon
from tests.support.tool_pages import blocks


def test_programs_for_openai_sdk_run(daemon: RunningDaemon, port_door: Door, unix_door: Door) -> None:
    """Those of the page of frameworks: over a port, and over the Unix socket, which lies where the page says."""
    over_port, over_unix, *others = blocks("frameworks.md", "python")
    assert unix_door.unix == str(daemon.socket.with_name("http.sock"))
    environ = {
        "OPENAI_BASE_URL": port_door.base_url,
        "OPENAI_API_KEY": port_door.token,
        "MLX_SIDECAR_SOCKET": str(daemon.socket),
        "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
    }
    for program in (over_port, over_unix):
        command = [str(python()), "-c", program]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
    for program in others:
        compile(program, "frameworks.md", "exec")
