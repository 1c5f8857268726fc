"""`mlx-sidecar help`: prints the help of the program or of a command, as `--help` does."""

from __future__ import annotations

import click

from daemon.cli.output.formatting import examples


@click.command("help", epilog=examples("mlx-sidecar help", "mlx-sidecar help run", "mlx-sidecar help service install"))
@click.argument("words", metavar="[COMMAND]...", nargs=-1)
@click.pass_context
def command(ctx: click.Context, words: tuple[str, ...]) -> None:
    """Print the help of mlx-sidecar, or of COMMAND."""
    where = ctx.find_root()
    for word in words:
        group = where.command
        found = group.get_command(where, word) if isinstance(group, click.Group) else None
        if found is None:
            raise click.UsageError(f"There is no command {' '.join(words)!r}; mlx-sidecar --help lists them.")
        where = click.Context(found, info_name=word, parent=where)
    click.echo(where.get_help())
