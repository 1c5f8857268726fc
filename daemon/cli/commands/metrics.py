"""`mlx-sidecar metrics`: exports Stats to Prometheus, as text, as a file, or over HTTP from its own process."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from daemon.cli.output.formatting import examples
from daemon.cli.session import Session, calls_daemon
from daemon.shared.small_file import replace_in_place

if TYPE_CHECKING:
    from mlx_sidecar import Client

_ADDRESS = "127.0.0.1"


@click.command(
    "metrics",
    epilog=examples(
        "mlx-sidecar metrics",
        "mlx-sidecar metrics --port 9464",
        "mlx-sidecar metrics --file /var/lib/node_exporter/mlx_sidecar.prom",
    ),
)
@click.option("--port", type=click.IntRange(0, 65535), help="Serve them on this port of 127.0.0.1 until stopped.")
@click.option(
    "--file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Replace this file with them, for the textfile collector of node_exporter.",
)
@calls_daemon
def command(session: Session, /, port: int | None, file: Path | None) -> None:
    """
    Print the daemon's figures as Prometheus text, once; or serve them.

    Needs the extra "metrics". The daemon itself never listens on a port.
    """
    if port is not None and file is not None:
        raise click.UsageError("Give --port or --file, not both.")
    try:
        from daemon.cli.output.exporter import text
    except ModuleNotFoundError:
        raise click.UsageError(
            'metrics needs prometheus-client, which the extra "metrics" brings; in a checkout, run: '
            "uv tool install -c daemon/constraints.txt '.[metrics]'"
        ) from None
    with session.client() as client:
        if port is not None:
            return _serve(client, port)
        figures = text(client)
    if file is None:
        click.echo(figures, nl=False)
    else:
        _replace(file, figures)
    return None


def _serve(client: Client, port: int) -> None:
    """Answer scrapes until SIGTERM or Ctrl-C. Without a daemon a scrape has `mlx_sidecar_up 0` only."""
    from daemon.cli.output.exporter import serve

    stop = threading.Event()
    with ExitStack() as held:
        try:
            actual = held.enter_context(serve(client, _ADDRESS, port))
        except OSError as error:
            text = f"It cannot listen at {_ADDRESS}:{port}: {error.strerror}"
            raise click.UsageError(f"{text}; choose another --port, or 0 for a free one.") from None
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        click.echo(f"Figures are at http://{_ADDRESS}:{actual}/metrics", err=True)
        stop.wait()


def _replace(file: Path, figures: str) -> None:
    """Replace a file atomically, because a collector can read it at any time. A failure leaves nothing beside it."""
    try:
        replace_in_place(file, figures.encode(), 0o644)  # collectors run as other users, and figures are not private
    except OSError as error:
        raise click.FileError(str(file), error.strerror) from None
