"""`mlx-sidecar completion`: prints the script with which a shell completes commands, options and models."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from daemon.cli.choice import Choice
from daemon.cli.output.formatting import examples

PROGRAM = "mlx-sidecar"
VARIABLE = "_MLX_SIDECAR_COMPLETE"
"""Environment variable that the shell sets to request completions."""
SHELLS = ("bash", "zsh", "fish")


@click.command(
    "completion",
    epilog=examples(
        'eval "$(mlx-sidecar completion zsh)"',
        'eval "$(mlx-sidecar completion bash)"',
        "mlx-sidecar completion fish > ~/.config/fish/completions/mlx-sidecar.fish",
    ),
)
@click.argument("shell", type=Choice(SHELLS), required=False)
@click.pass_context
def command(ctx: click.Context, shell: str | None) -> None:
    """
    Print the script that makes SHELL complete commands, options and models. Without SHELL, the one of $SHELL.

    The line for zsh belongs into ~/.zshrc, after compinit; that for bash, 4.4 or newer, into ~/.bashrc.
    """
    shell = shell or Path(os.environ.get("SHELL", "")).name
    kind = get_completion_class(shell) if shell in SHELLS else None
    if kind is None:
        raise click.UsageError(f"Name a shell: {', '.join(SHELLS)}.")
    click.echo(kind(ctx.find_root().command, {}, PROGRAM, VARIABLE).source())


def complete_model(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the completions of a model's name: embedded, short names, models of the Hub cache, or directories."""
    if incomplete.startswith(("/", ".", "~")):
        return [CompletionItem(incomplete, type="dir")]
    from huggingface_hub import constants

    folders = Path(constants.HF_HUB_CACHE).glob("models--*--*")
    cached = sorted(folder.name.removeprefix("models--").replace("--", "/") for folder in folders)
    names = ["embedded", *_aliases(), *cached]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _aliases() -> list[str]:
    """Return the short names of this shell's configuration; none if it is wrong."""
    from daemon.shared.config import ConfigError
    from daemon.shared.config_sources import load_config

    try:
        return sorted(load_config({}, os.environ, Path.home()).config.aliases)
    except ConfigError:
        return []
