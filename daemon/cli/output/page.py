"""The page of `stats --html`: one self-contained file. Its content security policy forbids scripts and fetches."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from daemon.cli.output.charts import HEIGHT, WIDTH, chart
from daemon.cli.output.formatting import brief, percent, span
from daemon.cli.output.memory_parts import memory_parts
from daemon.cli.output.series import rates, shares
from daemon.shared.wording import count, size
from mlx_sidecar import LatencyHistogram, NamespaceStats, Stats

_SPANS = {
    "first_token": "To the first token",
    "total": "To the last token",
    "per_token": "Between tokens",
    "prefill": "Computing the prompt",
    "queue": "Waiting for a slot",
    "load": "Waiting for a load",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the latency table; bars are heights from 0 to 1."""

    name: str
    count: int
    quantiles: tuple[str, ...]
    bars: tuple[float, ...]
    between: tuple[str, str]


def render(stats: Stats) -> str:
    """Return the page as HTML. All text is escaped, because a model's name can hold any characters."""
    environment = Environment(
        loader=PackageLoader("daemon.cli.output", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"size": size, "span": span, "percent": percent, "count": count}
    return environment.get_template("page.html.jinja").render(
        stats=stats,
        written=datetime.now().astimezone(),
        tiles=_tiles(stats),
        memory=memory_parts(stats),
        charts=_charts(stats),
        latency=[_row(title, getattr(stats.latency, name)) for name, title in _SPANS.items()],
        trie=_trie(stats.prefix_cache.namespaces),
        chart_width=WIDTH,
        chart_height=HEIGHT,
    )


def _tiles(stats: Stats) -> list[tuple[str, str, str]]:
    cache, engine, memory = stats.prefix_cache, stats.engine, stats.memory
    reused = cache.tokens_reused / cache.tokens_looked_up if cache.tokens_looked_up else 0.0
    used = memory.weights_bytes + memory.trie_bytes + memory.live_kv_bytes
    median = stats.latency.first_token.quantile(0.5)
    return [
        (
            "Prompt tokens reused",
            percent(reused),
            f"{cache.tokens_reused:,} of {cache.tokens_looked_up:,}"
            + (f", {cache.disk_tokens_reused:,} from the disk" if cache.disk_budget_bytes else ""),
        ),
        (
            "First token, median",
            "-" if median is None else brief(median),
            count(stats.latency.first_token.count, "request"),
        ),
        ("Memory", size(used), f"of {size(memory.limit_bytes)}"),
        (
            "Requests now",
            str(engine.queued + engine.prefilling + engine.decoding),
            f"{engine.queued} wait, {engine.prefilling} prefill, {engine.decoding} decode",
        ),
        (
            "Tokens generated",
            f"{engine.generated_tokens:,}",
            count(engine.restarts, "engine restart"),
        ),
    ]


def _charts(stats: Stats) -> list[Any]:
    history = stats.history
    from_disk = [("prompt tokens, from the disk", shares(history, "disk_tokens_reused", "tokens_looked_up"))]
    if not stats.prefix_cache.disk_budget_bytes:
        from_disk.clear()
    return [
        chart(
            "Reused, of what was looked up",
            [
                ("prompt tokens", shares(history, "tokens_reused", "tokens_looked_up")),
                ("prompts", shares(history, "hits", "lookups")),
                *from_disk,
            ],
            percent,
            top=1.0,
        ),
        chart(
            "Tokens per second",
            [
                ("generated", rates(history, "generated_tokens")),
                ("prompt, computed", rates(history, "prompt_tokens")),
                ("prompt, reused", rates(history, "tokens_reused")),
            ],
            lambda value: f"{value:,.4g}",
        ),
    ]


def _row(title: str, histogram: LatencyHistogram) -> Row:
    spans = (histogram.quantile(share) for share in (0.5, 0.9, 0.99))
    used = [number for number, count in enumerate(histogram.counts) if count]
    shown = range(used[0], used[-1] + 1) if used else range(0)
    most = max(histogram.counts, default=0)
    bounds = [0.0, *histogram.bounds, *histogram.bounds[-1:]]
    return Row(
        title,
        histogram.count,
        tuple("-" if value is None else brief(value) for value in spans),
        tuple(histogram.counts[number] / most for number in shown),
        (brief(bounds[shown[0]]), brief(bounds[shown[-1] + 1])) if used else ("", ""),
    )


def _trie(namespaces: tuple[NamespaceStats, ...]) -> list[tuple[str, int, list[NamespaceStats]]]:
    """Return for each model its blocks and its namespaces, most blocks first."""
    by_model = sorted(namespaces, key=lambda namespace: namespace.model)
    groups = [(model, list(members)) for model, members in groupby(by_model, lambda namespace: namespace.model)]
    counted = [(model, sum(namespace.blocks for namespace in members), members) for model, members in groups]
    return sorted(counted, key=lambda group: -group[1])
