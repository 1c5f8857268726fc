"""`mlx-sidecar ls`: what is on this machine, and whether it fits."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from daemon.cli.output.formatting import examples, print_json, span, table
from daemon.cli.session import Session, calls_daemon
from daemon.shared.wording import size
from mlx_sidecar._exceptions import DaemonNotRunning

if TYPE_CHECKING:
    from daemon.cli.hub_cache import CachedModel


@dataclass(frozen=True, slots=True)
class _Room:
    """
    What weights are compared with.

    Attributes:
        nbytes: Most bytes that a model may have.
        source: Where the figure comes from: "daemon" or "configuration".
        loaded: Names of the models in memory.
    """

    nbytes: int
    source: str
    loaded: frozenset[str]


@click.command(
    "ls",
    epilog=examples("mlx-sidecar ls", "mlx-sidecar ls --json"),
)
@click.option("--json", "as_json", is_flag=True, help="Print the models as JSON; sizes in bytes.")
@calls_daemon
def command(session: Session, /, as_json: bool) -> None:
    """
    List the models of the local Hub cache, their weights' size, and whether they fit the memory budget.

    Works without a daemon too. The cache is the one that this shell's HF_HOME and HF_HUB_CACHE name.
    """
    from huggingface_hub import constants

    from daemon.cli.hub_cache import cached_models

    folder = Path(constants.HF_HUB_CACHE)
    models, room = cached_models(folder), _room(session)
    if as_json:
        return print_json([_tree(one, room) for one in models])
    if not models:
        click.echo(f"No model is in {folder}. Fetch one with: mlx-sidecar pull ORG/NAME")
        return None
    table(["MODEL", "WEIGHTS", "ON DISK", "FITS", "LAST READ"], [_row(one, room) for one in models])
    click.echo(_compared(room))
    return None


def _room(session: Session) -> _Room:
    """Return what the daemon says; before its engine is up, or without it, what the configuration says."""
    try:
        with session.client() as client:
            stats = client.stats()
    except DaemonNotRunning:
        return _configured(session)
    loaded = frozenset(name for one in stats.models for name in (*one.names, one.info.model))
    limit = stats.memory.limit_bytes
    # A budget of zero keeps nothing, but still loads whatever the memory allows.
    return (
        _Room(min(stats.model_cache.budget_bytes or limit, limit), "daemon", loaded) if limit else _configured(session)
    )


def _configured(session: Session) -> _Room:
    return _Room(session.config().model_cache_bytes, "configuration", frozenset())


def _fits(one: CachedModel, room: _Room) -> bool | None:
    """Tell whether a model fits once others made room; None if its weights are not all there."""
    return one.size_bytes <= room.nbytes if one.complete else None


def _tree(one: CachedModel, room: _Room) -> dict[str, object]:
    facts = {"fits": _fits(one, room), "loaded": one.model in room.loaded, "last_used": one.last_used.isoformat()}
    return asdict(one) | facts


def _row(one: CachedModel, room: _Room) -> list[str]:
    fits = {True: "yes", False: "no", None: "incomplete" if one.size_bytes else "no weights"}[_fits(one, room)]
    idle = (datetime.now(UTC) - one.last_used).total_seconds()
    return [
        one.model,
        size(one.size_bytes),
        size(one.disk_bytes),
        "loaded" if one.model in room.loaded else fits,
        f"{span(max(idle, 0))} ago",
    ]


def _compared(room: _Room) -> str:
    if room.source == "daemon":
        return f"Weights may take {size(room.nbytes)}; what is idle makes room."
    return f"Weights may take {size(room.nbytes)} (model_cache_mb); a running daemon also knows what the machine has."
