"""`mlx-sidecar pull`: download a model into the Hub cache without loading it."""

from __future__ import annotations

import click

from daemon.cli.commands.completion import complete_model
from daemon.cli.output.answer import print_warnings
from daemon.cli.output.formatting import examples, print_json
from daemon.cli.output.progress import follow
from daemon.cli.session import Session, absolute_if_path, calls_daemon
from daemon.shared.wording import size

COMMIT_DIGITS = 7
"""Of a commit, as the Hub's pages show it."""


@click.command(
    "pull",
    epilog=examples(
        "mlx-sidecar pull mlx-community/Qwen3-8B-4bit", "mlx-sidecar pull mlx-community/Qwen3-8B-4bit --revision main"
    ),
)
@click.argument("model", callback=absolute_if_path, shell_complete=complete_model)
@click.option("--revision", default="", help="Branch, tag or commit.")
@click.option("--json", "as_json", is_flag=True, help="Print the model as JSON.")
@calls_daemon
def command(session: Session, /, model: str, revision: str, as_json: bool) -> None:
    """
    Fetch MODEL (a Hub id) into the local Hub cache, or what is new of it, and load nothing.

    What an interrupted pull got is kept.
    """
    with session.client(ask=True) as client:
        load = client.get_or_load(model, revision=revision, allow_download=True, estimate_only=True, update=True)
        info = follow(load)
    print_warnings(info.warnings)
    if as_json:
        print_json(info)
    else:
        commit = f", commit {info.revision[:COMMIT_DIGITS]}" if info.revision else ""
        click.echo(f"{info.model} is on this machine ({size(info.size_bytes)}{commit}).")
