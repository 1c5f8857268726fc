"""Program that runs a real daemon with the fake engine, which starts at once and needs no model."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from daemon.server.app import run
from daemon.server.wake_lock import Caffeinate
from daemon.shared.config_sources import load_config

CAFFEINATE = "MLX_SIDECAR_TEST_CAFFEINATE"
"""Environment variable with the path of a program that replaces caffeinate of macOS."""

ENGINE = Path(__file__).parent / "fake_engine.py"

if __name__ == "__main__":
    config = load_config({}, os.environ, Path.home()).config
    program = os.environ.get(CAFFEINATE)
    wake_lock = Caffeinate(Path(program)) if program else None
    sys.exit(run(config, engine=[sys.executable, str(ENGINE), *sys.argv[1:]], wake_lock=wake_lock))
