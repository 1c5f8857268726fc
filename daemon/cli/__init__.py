"""
The command line: the group of all commands, and the table that `--help` prints.

Each command is a module that is imported when it runs, so `ps` and `--help` do not pay for the imports of `serve`. No
module of this package imports mlx.
"""

from __future__ import annotations

import os

import click

from daemon import __version__
from daemon.cli.exit_codes import EPILOG
from daemon.cli.group import LazyGroup
from daemon.cli.session import Session

COMMANDS = {
    "serve": "Run the daemon.",
    "join": "Compute models together with another machine.",
    "group": "Look at the machines that compute together.",
    "run": "Run a prompt and stream the answer.",
    "pull": "Fetch a model from the Hub without loading it.",
    "load": "Load a model and show how far it is.",
    "ls": "List the models on this machine; also: list.",
    "show": "Show what is known of one model.",
    "rm": "Delete a model from the Hub cache.",
    "ps": "List the models in memory.",
    "stop": "Drop a model's weights.",
    "tokens": "Count the tokens of a prompt.",
    "embed": "Turn texts into vectors.",
    "invalidate": "Drop weights and cached prefixes.",
    "cache": "Look at the prefixes on the disk.",
    "stats": "Show the state of the daemon.",
    "top": "Watch the daemon.",
    "metrics": "Export figures for Prometheus.",
    "http": "Serve the APIs of OpenAI, Anthropic and Ollama over HTTP.",
    "launch": "Start a coding tool with a model of the daemon.",
    "config": "Show the settings and where they come from.",
    "proto": "Print the proto file of the API.",
    "completion": "Print the completion script of a shell.",
    "service": "Run the daemon as a service of macOS.",
    "doctor": "Check what the daemon needs from this machine.",
    "help": "Show the help of a command.",
}
"""Every command, with its line in `--help`."""
SYNONYMS = {"list": "ls"}
"""Other names of commands; `--help` does not list them."""


@click.group(
    cls=LazyGroup,
    package=f"{__name__}.commands",
    table=COMMANDS,
    synonyms=SYNONYMS,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--socket", metavar="PATH", help="Socket of the daemon, instead of the configured one.")
@click.version_option(__version__, prog_name="mlx-sidecar")
@click.pass_context
def main(ctx: click.Context, socket: str | None) -> None:
    """One daemon that owns every MLX model's weights and one prefix cache."""
    ctx.ensure_object(Session).socket_flag = socket
    if os.environ.get("NO_COLOR"):
        ctx.color = False
