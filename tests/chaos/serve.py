"""Program that runs a daemon with the real engine and short timeouts, for chaos runs that kill it often."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from daemon.server.app import run
from daemon.server.supervision import supervisor
from daemon.shared.config_sources import load_config

supervisor.FIRST_BACKOFF = 0.05
supervisor.LAST_BACKOFF = 0.4
supervisor.START_SECONDS = 40.0

if __name__ == "__main__":
    sys.exit(run(load_config({}, os.environ, Path.home()).config))
