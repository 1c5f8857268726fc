"""`mlx-sidecar http`: serves the APIs of OpenAI and others over HTTP in the foreground."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from daemon.cli.output.formatting import examples
from daemon.cli.session import Session, absolute, calls_daemon

if TYPE_CHECKING:
    from daemon.server.http_listener import Listener


@click.command(
    "http",
    epilog=examples(
        "mlx-sidecar http",
        "mlx-sidecar http --port 8080",
        'curl -H "Authorization: Bearer $(mlx-sidecar http --print-token)" http://127.0.0.1:8080/v1/models',
    ),
)
@click.option("--port", type=click.IntRange(0, 65535), help="Serve on this port of 127.0.0.1; 0 takes a free one.")
@click.option(
    "--unix",
    metavar="PATH",
    callback=absolute,
    help="Serve on this Unix socket (default: http.sock beside the daemon's).",
)
@click.option("--print-token", is_flag=True, help="Print the token that a port asks for, and make it if there is none.")
@calls_daemon
def command(session: Session, /, port: int | None, unix: str | None, print_token: bool) -> None:
    """
    Serve the APIs of OpenAI, Anthropic and Ollama over HTTP until SIGTERM or Ctrl-C.

    A port is for this machine only, and each request needs the token. A Unix socket is for this user only. The daemon
    does the same by itself where http_listen in its configuration says so.
    """
    if port is not None and unix is not None:
        raise click.UsageError("Give --port or --unix, not both.")
    if print_token:
        from daemon.http.token import read_token

        click.echo(read_token(session.state_dir()))
        return
    if session.start:
        session.client().close()
    _serve(session, port, None if unix is None else Path(unix))


def _serve(session: Session, port: int | None, unix: Path | None) -> None:
    from daemon.http.server import policy, serve_by_hand
    from daemon.server.http_listener import default_path
    from daemon.shared import logs, process_setup

    process_setup.allow_connections()
    config, socket = session.config(), session.socket()
    logs.configure(config.log_level, None)
    listener = _listener(port, unix or default_path(socket))
    try:
        allowed = policy(config, listener.socket)
        where = f"http://{listener.address}" if port is not None else listener.address

        def ready() -> None:
            click.echo(f"HTTP is served at {where}", err=True)

        asyncio.run(serve_by_hand(socket, listener.socket, allowed, ready, config.http_hygiene))
    finally:
        listener.close()


def _listener(port: int | None, path: Path) -> Listener:
    """Return the listener on a port, or at a path if that is None. What is in the way is told with the way out."""
    from daemon.server.http_listener import listen_at, listen_on
    from daemon.server.singleton import AlreadyRunning

    place = path if port is None else f"127.0.0.1:{port}"
    other = "another place with --unix, or a --port" if port is None else "another --port, or 0 for a free one"
    try:
        return listen_at(path) if port is None else listen_on(port)
    except AlreadyRunning as error:
        raise click.ClickException(f"A door at {place} is {error}; use it, or choose {other}.") from None
    except OSError as error:
        text = f"It cannot listen at {place}: {os.strerror(error.errno or 0)}"
        raise click.UsageError(f"{text}; choose {other}.") from None
