"""
The command line. Each command is a module, imported when it is used: `ps` does not wait for `serve`.

Nothing here imports mlx.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import click

from daemon import __version__
from daemon.cli.exits import EPILOG, INTERRUPTED, explain
from daemon.cli.session import Session

COMMANDS = (
    "serve",
    "run",
    "pull",
    "load",
    "ls",
    "ps",
    "stop",
    "invalidate",
    "stats",
    "top",
    "metrics",
    "config",
    "completion",
    "service",
    "doctor",
)


class _LazyGroup(click.Group):
    """A group whose commands are `daemon.cli.<name>.command`; errors of any of them end in an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"daemon.cli.{cmd_name}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, click.Abort):
            click.echo(err=True)
            ctx.exit(INTERRUPTED)
        except Exception as error:
            if (answer := explain(error)) is None:
                raise
            click.echo(f"mlx-sidecar: {answer.text}", err=True)
            ctx.exit(answer.code)


@click.group(cls=_LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--socket", metavar="PATH", help="Socket of the daemon, instead of the configured one.")
@click.version_option(__version__, prog_name="mlx-sidecar")
@click.pass_context
def main(ctx: click.Context, socket: str | None) -> None:
    """One daemon that owns every MLX model's weights and one prefix cache."""
    ctx.ensure_object(Session).socket_flag = socket
    if os.environ.get("NO_COLOR"):
        ctx.color = False
