"""The door's process: `python -m daemon.http --fd N --config JSON`. Started by the daemon's parent, never by hand."""

from __future__ import annotations

import argparse
import asyncio
import resource
import socket

from daemon.http.server import serve_for_parent
from daemon.shared import logs, process_setup
from daemon.shared.config import Config


def main() -> None:
    """Serve on the inherited socket until the parent is gone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--config", type=Config.from_json, required=True)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold prompts
    process_setup.ignore_stray_signals()
    process_setup.allow_connections()
    logs.configure(arguments.config.log_level, None)  # the parent writes the log file
    logs.take_over()
    listener = socket.socket(fileno=arguments.fd)
    listener.set_inheritable(False)
    asyncio.run(serve_for_parent(arguments.config, listener))


if __name__ == "__main__":
    main()
