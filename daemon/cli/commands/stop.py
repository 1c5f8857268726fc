"""`mlx-sidecar stop`: drops the weights of one model or of all, and keeps cached prefixes."""

from __future__ import annotations

import click

from daemon.cli.commands.completion import complete_model
from daemon.cli.output.formatting import examples, print_json
from daemon.cli.session import Session, absolute_if_path, calls_daemon
from daemon.shared.wording import size


@click.command(
    "stop",
    epilog=examples("mlx-sidecar stop mlx-community/Qwen3-8B-4bit", "mlx-sidecar stop --all"),
)
@click.argument("model", required=False, callback=absolute_if_path, shell_complete=complete_model)
@click.option("--all", "everything", is_flag=True, help="Stop every model.")
@click.option("--json", "as_json", is_flag=True, help="Print what was dropped as JSON.")
@calls_daemon
def command(session: Session, /, model: str | None, everything: bool, as_json: bool) -> None:
    """Drop the weights of MODEL, pinned or not. Requests that run finish; cached prefixes stay."""
    if (model is not None) == everything:
        raise click.UsageError("Name a MODEL or give --all.")
    with session.client() as client:
        if model is not None:
            dropped = client.invalidate_model(model, weights=True, prefixes=False)
        else:
            dropped = client.invalidate_all(weights=True, prefixes=False)
    if as_json:
        return print_json(dropped)
    if not dropped.models:
        click.echo(f"{model} was not loaded." if model else "No model was loaded.")
        return None
    click.echo(f"Stopped {', '.join(dropped.models)}; {size(dropped.bytes_freed)} freed.")
    if dropped.bytes_in_use:
        click.echo(f"{size(dropped.bytes_in_use)} more are in use and are freed when the last request ends.")
    return None
