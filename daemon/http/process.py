"""The life of the door's process, from its arguments to the end of its parent or of the tool that it serves."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from daemon.http.server import serve_for_parent, serve_for_tool
from daemon.http.token import TokenError
from daemon.shared import logs, process_setup
from daemon.shared.config import Config
from daemon.shared.config_sources import from_json
from daemon.shared.descriptors import close_others
from daemon.shared.log_fields import Words

log = structlog.get_logger()


def main() -> None:
    """Serve on the inherited socket until the parent, or the tool, is gone."""
    arguments = _arguments(sys.argv[1:])
    close_others(arguments.fd)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold prompts
    process_setup.ignore_stray_signals()
    process_setup.allow_connections()
    logs.configure(_level(arguments.config, arguments.tool), None)  # the parent writes the log file
    logs.take_over()
    listener = socket.socket(fileno=arguments.fd)
    listener.set_inheritable(False)
    if arguments.tool is not None:
        _serve_tool(arguments.config, listener, arguments.tool, arguments.folder)
        return
    try:
        asyncio.run(serve_for_parent(arguments.config, listener))
    except TokenError as error:
        log.error("http_token_unfit", error=Words(str(error)))
        sys.exit(1)


@dataclass(frozen=True, slots=True)
class _Arguments:
    fd: int
    config: Config
    tool: int | None
    folder: Path


def _arguments(words: Sequence[str]) -> _Arguments:
    """Read pairs of a name and a value. They come from this program: argparse would add its memory for nothing."""
    given = dict(zip(words[::2], words[1::2], strict=True))
    tool = given.get("--tool")
    return _Arguments(
        int(given["--fd"]), from_json(given["--config"]), int(tool) if tool else None, Path(given.get("--folder", ""))
    )


def _level(config: Config, tool: int | None) -> str:
    """Return what to log at least. The daemon's parent waits for an event of level info, and filters by itself."""
    return "info" if tool is None and config.log_level in ("warning", "error") else config.log_level


def _serve_tool(config: Config, listener: socket.socket, tool: int, folder: Path) -> None:
    try:
        token = sys.stdin.readline().strip()  # not an argument: those can be seen by other users
        asyncio.run(serve_for_tool(config, listener, token, tool, _say_ready))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _say_ready() -> None:
    """Tell the launch, which then becomes the tool: no more can be said there."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
