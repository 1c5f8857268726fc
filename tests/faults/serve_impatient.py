"""A daemon with a fake engine that closes idle connections after a number of milliseconds."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from daemon.server import app, grpc_server
from daemon.shared.config_sources import load_config
from tests.support.serve_fake import ENGINE

if __name__ == "__main__":
    grpc_server._OPTIONS = [*(o for o in grpc_server._OPTIONS if o[0] != "grpc.max_connection_idle_ms")]
    grpc_server._OPTIONS.append(("grpc.max_connection_idle_ms", int(sys.argv[1])))
    config = load_config({}, os.environ, Path.home()).config
    sys.exit(app.run(config, engine=[sys.executable, str(ENGINE)]))
