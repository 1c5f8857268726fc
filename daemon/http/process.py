"""The life of the door's process, from its arguments to the end of its parent."""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import socket
import sys

import structlog

from daemon.http.server import serve_for_parent
from daemon.http.token import TokenError
from daemon.shared import logs, process_setup
from daemon.shared.config import Config
from daemon.shared.log_fields import Words

log = structlog.get_logger()


def main() -> None:
    """Serve on the inherited socket until the parent is gone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--config", type=Config.from_json, required=True)
    arguments = parser.parse_args()
    _close_others(arguments.fd)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold prompts
    process_setup.ignore_stray_signals()
    process_setup.allow_connections()
    logs.configure(arguments.config.log_level, None)  # the parent writes the log file
    logs.take_over()
    listener = socket.socket(fileno=arguments.fd)
    listener.set_inheritable(False)
    try:
        asyncio.run(serve_for_parent(arguments.config, listener))
    except TokenError as error:
        log.error("http_token_unfit", error=Words(str(error)))
        sys.exit(1)


def _close_others(kept: int) -> None:
    """
    Close all descriptors but the standard streams and one more.

    The parent's lock is among them. A door that outlives its parent would keep the next daemon from starting.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.closerange(3, kept)
    os.closerange(kept + 1, soft if soft != resource.RLIM_INFINITY else 1 << 20)
