"""`mlx-sidecar ls`: the models of this machine, their sizes, what they can do, and whether they fit in memory."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from daemon.cli.output.formatting import examples, print_json, span, table
from daemon.cli.session import Session, calls_daemon
from daemon.shared.wording import count, date, size

if TYPE_CHECKING:
    from daemon.cli.model_list import Listing
    from mlx_sidecar import ListedModel


@click.command(
    "ls",
    epilog=examples("mlx-sidecar ls", "mlx-sidecar ls --json"),
)
@click.option("--json", "as_json", is_flag=True, help="Print the models as JSON; sizes in bytes.")
@calls_daemon
def command(session: Session, /, as_json: bool) -> None:
    """
    List the models of this machine: in memory, in the Hub cache, below model_roots, and the embedded one.

    Works without a daemon too. The Hub cache is the one that HF_HOME and HF_HUB_CACHE of the daemon name, or of this
    shell if no daemon runs. `mlx-sidecar list` is the same command.
    """
    from daemon.cli.model_list import listed

    listing = listed(session)
    models = listing.found.models
    if as_json:
        return print_json([tree(model) for model in models])
    table(["MODEL", "WEIGHTS", "ON DISK", "FITS", "CONTEXT", "CAN", "LAST READ"], [_row(model) for model in models])
    for alias, target in sorted(listing.found.aliases.items()):
        click.echo(f"{alias} stands for {target}.")
    if not any(model.place == "hub_cache" for model in models):
        click.echo("No model is in the Hub cache. Fetch one with: mlx-sidecar pull ORG/NAME")
    for place in listing.found.unread:
        click.echo(f"{place.path} could not be read: {place.reason}.", err=True)
    click.echo(_compared(listing))
    return None


def tree(model: ListedModel) -> dict[str, object]:
    """Return a model for `--json`. It neither fits nor does not while its weights are incomplete."""
    plain = asdict(model)
    used = plain.pop("last_used_unix_seconds")
    fits = model.fits if model.complete else None
    return plain | {"fits": fits, "last_used": date(used).isoformat() if used else None}


def abilities(model: ListedModel) -> str:
    """Return what a model can do, in words."""
    return " ".join(name for name, can in asdict(model.can).items() if can) or "-"


def fitting(model: ListedModel) -> str:
    """Return whether a model fits into memory, in one word or two."""
    if model.loaded:
        return "loaded"
    if not model.complete:
        return "incomplete" if model.size_bytes else "no weights"
    return "unusable" if model.problem else "yes" if model.fits else "no"


def _row(model: ListedModel) -> list[str]:
    used = model.last_used_unix_seconds
    return [
        model.model,
        size(model.size_bytes),
        size(model.disk_bytes),
        fitting(model),
        str(model.context_length or "-"),
        abilities(model),
        f"{span(max(time.time() - used, 0))} ago" if used else "-",
    ]


def _compared(listing: Listing) -> str:
    found = listing.found
    more = f" More than {count(len(found.models), 'model')} were found." if found.truncated else ""
    if listing.from_daemon:
        return f"Weights may take {size(found.fits_bytes)}; what is idle makes room.{more}"
    return (
        f"Weights may take {size(found.fits_bytes)} (model_cache_mb); a running daemon also knows what the machine has."
    )
