"""`mlx-sidecar stats`: the whole state of the daemon."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import click

from daemon.cli.session import Session, pass_session
from daemon.cli.text import examples, percent, print_json, size, span

_TIMES = {"uptime", "oldest_entry_age", "age", "idle", "expires_in", "step_age"}


@click.command(
    "stats",
    short_help="Show the state of the daemon.",
    epilog=examples("mlx-sidecar stats", "mlx-sidecar stats --json"),
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON; times in seconds, sizes in bytes.")
@pass_session
def command(session: Session, /, as_json: bool) -> None:
    """Show the state of the daemon: caches, models, engine and memory."""
    with session.client() as client:
        stats = client.stats()
    if as_json:
        return print_json(stats)
    for section in fields(stats):
        value = getattr(stats, section.name)
        if isinstance(value, tuple):
            for one in value:
                _print_section(f"model {one.info.model}", one)
        else:
            _print_section(section.name, value)
    return None


def _print_section(title: str, section: Any) -> None:
    click.echo(click.style(title.replace("_", " "), bold=True))
    lines = list(_lines(section))
    width = max(len(label) for label, _ in lines)
    for label, text in lines:
        click.echo(f"  {label.replace('_', ' '):<{width}}  {text}")


def _lines(section: Any) -> Iterator[tuple[str, str]]:
    for field in fields(section):
        value = getattr(section, field.name)
        if field.name == "info":
            yield "size_bytes", size(value.size_bytes)
            yield "prefix_reuse", value.prefix_reuse
        else:
            yield field.name, _format(field.name, value)


def _format(name: str, value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(value) or "-"
    if value is None or value == "":
        return "-"
    if name in _TIMES:
        return span(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("bytes"):
        return size(value)
    if name == "pid" or isinstance(value, str):
        return str(value)
    return percent(value) if isinstance(value, float) else f"{value:,}"
