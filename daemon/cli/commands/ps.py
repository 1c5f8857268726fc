"""`mlx-sidecar ps`: the models in memory, and the size of the prefix cache."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from daemon.cli.output.formatting import examples, percent, print_json, span, table
from daemon.cli.session import Session, calls_daemon
from daemon.shared.wording import count, size

if TYPE_CHECKING:
    from mlx_sidecar import ModelStats, PrefixCacheStats


@click.command("ps", epilog=examples("mlx-sidecar ps", "mlx-sidecar ps --json"))
@click.option("--json", "as_json", is_flag=True, help="Print models and prefix cache as JSON.")
@calls_daemon
def command(session: Session, /, as_json: bool) -> None:
    """List the models in memory."""
    with session.client() as client:
        stats = client.stats()
    if as_json:
        models = [asdict(model) for model in stats.models]
        return print_json({"models": models, "prefix_cache": asdict(stats.prefix_cache)})
    if stats.models:
        table(["MODEL", "SIZE", "STATE", "IN USE", "UNTIL"], [_row(model) for model in stats.models])
    else:
        click.echo("No model is in memory.")
    click.echo(_prefix_line(stats.prefix_cache))
    if stats.engine.state != "ready":
        # The table then holds the engine's last report, which can be old.
        click.echo(f"The engine is {stats.engine.state}; see the daemon's log.", err=True)
    return None


def _row(model: ModelStats) -> list[str]:
    names = " = ".join(model.names) or model.info.model
    return [names, size(model.info.size_bytes), model.state, str(model.in_use), _until(model)]


def _until(model: ModelStats) -> str:
    if model.pinned:
        return "pinned"
    if model.in_use:
        return "in use"
    if model.expires_in is None:
        return "-"
    return f"in {span(model.expires_in)}" if model.expires_in > 0 else "now"


def _prefix_line(cache: PrefixCacheStats) -> str:
    line = f"Prefix cache: {size(cache.bytes)} of {size(cache.budget_bytes)} in {count(cache.blocks, 'block')}"
    if cache.evictable_bytes:
        line += f", {size(cache.evictable_bytes)} can go"
    if cache.tokens_looked_up:
        line += f", {percent(cache.tokens_reused / cache.tokens_looked_up)} of prompt tokens reused"
    if cache.disk_budget_bytes:
        line += f"\nOn disk: {size(cache.disk_bytes)} of {size(cache.disk_budget_bytes)}"
        line += f" in {count(cache.disk_blocks, 'block')}, {count(cache.disk_tokens_reused, 'token')} reused from there"
    elif cache.disk_faults:
        line += "\nOn disk: the directory cannot be used; the log says why (kv_disk_unusable)"
    return line
