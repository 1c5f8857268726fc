"""
A daemon with short limits: `python -m tests.attacks.serve_impatient LIMITS_JSON [fake OPTIONS]`.

The limits are constants of modules, such as `{"server.supervision.vitals.SILENT_SECONDS": 3}`. With `fake` its
engine is the fake one, with these options.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path

from daemon.server.app import run
from daemon.shared.config_sources import load_config
from tests.support.serve_fake import ENGINE

if __name__ == "__main__":
    for name, value in json.loads(sys.argv[1]).items():
        module, _, constant = name.rpartition(".")
        owner = import_module(f"daemon.{module}")
        assert hasattr(owner, constant), name
        setattr(owner, constant, value)
    config = load_config({}, os.environ, Path.home()).config
    fake = [sys.executable, str(ENGINE), *sys.argv[3:]]
    sys.exit(run(config, engine=fake if sys.argv[2:3] == ["fake"] else None))
