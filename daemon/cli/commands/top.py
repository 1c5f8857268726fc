"""`mlx-sidecar top`: a full screen with the daemon's state, refreshed every second."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace

import click

from daemon.cli.output.formatting import examples, stdin_is_terminal, stdout_is_terminal
from daemon.cli.session import Session, calls_daemon


@click.command(
    "top",
    epilog=examples("mlx-sidecar top", "mlx-sidecar top --interval 0.5"),
)
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 60),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two looks; the engine sends figures once a second.",
)
@calls_daemon
def command(session: Session, /, interval: float) -> None:
    """Show memory, models, requests and speed on the whole screen until q or Ctrl-C."""
    if not (stdin_is_terminal() and stdout_is_terminal()):
        raise click.UsageError("top needs a terminal; `mlx-sidecar stats` prints the same once.")
    from rich.console import Console
    from rich.live import Live

    from daemon.cli.terminal.keys import quit_key
    from daemon.cli.terminal.screen import Screen, View
    from mlx_sidecar import SidecarError

    with session.client() as client:
        view = View(client.stats(), time.monotonic())  # an error of the first call ends the command
        screen = Screen(view)
        with (
            suppress(KeyboardInterrupt),
            quit_key() as wait,
            Live(screen, console=Console(), screen=True, auto_refresh=False) as live,
        ):
            live.refresh()
            while not wait(interval):
                try:
                    view = view.next(client.stats(), time.monotonic())
                except SidecarError as error:
                    view = replace(view, trouble=str(error))
                screen.view = view
                live.refresh()
