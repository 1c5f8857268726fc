"""`mlx-sidecar stats`: prints the whole state of the daemon, as text, as JSON, or as an HTML page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, fields
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daemon.cli.output import door_health
from daemon.cli.output.formatting import brief, called_by, examples, guessed, percent, print_json, span
from daemon.cli.session import Session, calls_daemon
from daemon.shared.wording import count, size

if TYPE_CHECKING:
    from mlx_sidecar import HttpStats, KeptPrefix, LatencyStats, NamespaceStats, Stats

_TIMES = {"uptime", "oldest_entry_age", "age", "idle", "expires_in", "step_age"}
_SHORT_TIMES = ("step_time", "token_gap")


@click.command(
    "stats",
    epilog=examples("mlx-sidecar stats", "mlx-sidecar stats --json", "mlx-sidecar stats --html stats.html"),
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON; times in seconds, sizes in bytes.")
@click.option("--history", is_flag=True, help="Add the figures of the last hour to --json.")
@click.option(
    "--html",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write one self-contained page with charts of the last hour.",
)
@calls_daemon
def command(session: Session, /, as_json: bool, history: bool, html: Path | None) -> None:
    """Show the state of the daemon: caches, models, engine, memory and latencies."""
    if as_json and html is not None:
        raise click.UsageError("--json and --html are two ways to show the same; give one.")
    if history and not as_json:
        raise click.UsageError("--history belongs to --json; --html has it anyway.")
    with session.client() as client:
        stats = client.stats(history=history or html is not None)
    if html is not None:
        _write(html, stats)
        return
    steadied = door_health.steadied(stats.daemon.http, session.state_dir())
    if as_json:
        tree = asdict(stats)
        tree["daemon"]["http"]["steadied"] = steadied
        print_json(tree if history else {name: part for name, part in tree.items() if name != "history"})
    else:
        _print(stats, steadied)


def _write(file: Path, stats: Stats) -> None:
    from daemon.cli.output.page import render  # brings jinja2

    try:
        file.write_text(render(stats), "utf-8")
    except OSError as error:
        raise click.FileError(str(file), error.strerror) from None
    click.echo(f"Wrote {file}.")


def _print(stats: Stats, steadied: dict[str, int]) -> None:
    told = [f"{rule.replace('_', ' ')} in {count(number, 'request')}" for rule, number in steadied.items()]
    _section("daemon", chain(_lines(stats.daemon), [("prefix_hygiene", "; ".join(told) or "-")]))
    _section("model cache", _lines(stats.model_cache))
    for model in stats.models:
        _section(f"model {model.info.model}", _lines(model))
    _section("prefix cache", _lines(stats.prefix_cache))
    for namespace in stats.prefix_cache.namespaces:
        _section(_title(namespace), _lines(namespace))
    _section("engine", _lines(stats.engine))
    _section("memory", _lines(stats.memory))
    if stats.group.ranks:
        _section("group", _lines(stats.group))
        for model in stats.group.models:
            _section(f"model {model.info.model} of the group", _lines(model))
    _section("latency", _quantiles(stats.latency))


def _title(namespace: NamespaceStats) -> str:
    salted = " with a salt" if namespace.salted else ""
    return f"prefixes of {namespace.model or 'a model of no name'}{salted}"


def _section(title: str, lines: Iterator[tuple[str, str]]) -> None:
    click.echo(click.style(title, bold=True))
    shown = list(lines)
    width = max(len(label) for label, _ in shown)
    for label, text in shown:
        click.echo(f"  {label.replace('_', ' '):<{width}}  {text}")


def _lines(section: Any) -> Iterator[tuple[str, str]]:
    for field in fields(section):
        value = getattr(section, field.name)
        if field.name == "info":
            yield "size_bytes", size(value.size_bytes)
            yield "prefix_reuse", value.prefix_reuse
        elif field.name in _IN_WORDS:
            yield field.name, _IN_WORDS[field.name](value) or "-"
        elif field.name not in ("namespaces", "models"):
            yield field.name, _format(field.name, value)


def _kept(prefix: KeptPrefix) -> str:
    return f"{count(prefix.tokens, 'token')}, {size(prefix.bytes)}, for {span(prefix.expires_in or 0)}"


def _misses(misses: Any) -> str:
    told = asdict(misses).items()
    return ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in told if number)


def _http(door: HttpStats) -> str:
    return f"{door.state} {door.address}".strip() + (f", pid {door.pid}" if door.pid else "")


def _each(worded: Callable[[Any], str]) -> Callable[[Iterable[Any]], str]:
    return lambda values: "; ".join(map(worded, values))


_IN_WORDS: dict[str, Callable[[Any], str]] = {
    "misses": _misses,
    "kept": _each(_kept),
    "stuck": _each(lambda work: f"{work.work} of {work.model}, {span(work.silent or 0)}"),
    "http": _http,
    "callers": _each(called_by),
    "guesses": _each(guessed),
    "ranks": _each(lambda rank: f"{rank.rank} {rank.address} {rank.problem}".strip()),
}
"""Figures that have several parts, and how each is told on one line."""


def _quantiles(latency: LatencyStats) -> Iterator[tuple[str, str]]:
    for field in fields(latency):
        histogram = getattr(latency, field.name)
        quantiles = ((f"p{round(100 * share)}", histogram.quantile(share)) for share in (0.5, 0.9, 0.99))
        parts = [f"{name} {brief(value)}" for name, value in quantiles if value is not None]
        yield field.name, ", ".join([*parts, count(histogram.count, "request")]) if parts else "-"


def _format(name: str, value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(value) or "-"
    if value is None or value == "":
        return "-"
    if name in _TIMES:
        return span(value)
    if name.startswith(_SHORT_TIMES):
        return brief(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("bytes"):
        return size(value)
    if name == "pid" or isinstance(value, str):
        return str(value)
    return percent(value) if isinstance(value, float) else f"{value:,}"
