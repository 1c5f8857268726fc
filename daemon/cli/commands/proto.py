"""`mlx-sidecar proto`: prints the API's proto file, or tells where the file is, for clients in other languages."""

from __future__ import annotations

from pathlib import Path

import click

import mlx_sidecar
from daemon.cli.output.formatting import examples

NAME = Path("v1", "sidecar.proto")
"""The file within the package `mlx_sidecar`, beside the stubs that were made from it."""


@click.command(
    "proto",
    epilog=examples(
        "mlx-sidecar proto > sidecar.proto",
        'protoc -I "$(mlx-sidecar proto --root)" --ruby_out=. mlx_sidecar/v1/sidecar.proto',
    ),
)
@click.option("--path", is_flag=True, help="Print where the file is.")
@click.option(
    "--root", is_flag=True, help="Print the folder for protoc's -I: the file is mlx_sidecar/v1/sidecar.proto."
)
def command(path: bool, root: bool) -> None:
    """Print the proto file of the API."""
    if path and root:
        raise click.UsageError("--path and --root print different places; give one.")
    package = Path(mlx_sidecar.__path__[0])
    if root:
        click.echo(package.parent)
    elif path:
        click.echo(package / NAME)
    else:
        click.echo((package / NAME).read_text("utf-8"), nl=False)
