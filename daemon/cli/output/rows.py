"""
Rows of the `top` screen, each laid out for a width in columns.

No value is ever cut. A value that does not fit moves to the next line or is left out; only names are shortened.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

from rich.bar import Bar
from rich.cells import cell_len, set_cell_size
from rich.table import Table
from rich.text import Text

from daemon.cli.output.formatting import brief, called_by, guessed, percent, printable, span
from daemon.cli.output.memory_parts import memory_parts
from daemon.shared.wording import count, size
from mlx_sidecar import GroupStats, ModelStats, PrefixCacheStats, Stats

_MODEL_COLOURS = ("blue", "magenta", "green", "red", "bright_blue", "bright_magenta", "bright_green", "bright_red")
_COLOURS = {
    "trie": "cyan",
    "live": "yellow",
    "other": "white",
    "free": "bright_black",
    **{f"model{number}": colour for number, colour in enumerate(_MODEL_COLOURS)},
}
_SPARKS = "▁▂▃▄▅▆▇█"
_WIDE = 66
"""Width from which the table of models has its optional column."""
_LEAST_BAR = 8
_TROUBLE_LINES = 3
_MOST_CALLERS = 3
_MOST_GUESSES = 2


def header(stats: Stats, trouble: str, width: int) -> list[Text]:
    """Return version, engine state and uptime of the daemon; or `trouble`, an error text that can take three lines."""
    daemon, engine = stats.daemon, stats.engine
    name = f"mlx-sidecar {daemon.version}"
    if trouble:
        first, *rest = textwrap.wrap(f"{name}  {printable(trouble)}", width, max_lines=_TROUBLE_LINES, placeholder=" …")
        begin = Text(first, style="red", no_wrap=True)
        begin.stylize("bold", 0, len(name))
        return [begin, *(Text(line, style="red", no_wrap=True) for line in rest)]
    text = Text(name, style="bold", no_wrap=True, overflow="ellipsis")
    text.append(f"  engine {engine.state}", style="green" if engine.state == "ready" else "red")
    if engine.stuck:
        text.append(f"  {len(engine.stuck)} stuck", style="red")
    restarts = [count(engine.restarts, "restart")]
    about = [*(["draining"] if daemon.draining else []), *restarts, f"up {span(daemon.uptime or 0)}"]
    for number, fact in enumerate([*about, daemon.device or "-"]):
        more = f"{', ' if number else '  '}{fact}"
        if text.cell_len + cell_len(more) > width:
            break
        text.append(more, style="not bold")
    return [text]


def memory_rows(stats: Stats, width: int) -> Table:
    """Return a row for each memory part. Each bar begins where the previous bar ends, so the rows form one bar."""
    parts = memory_parts(stats)
    sizes = [_signed(part.nbytes) for part in parts]
    figures = max(map(len, sizes))
    names = min(max(cell_len(part.name) for part in parts), max((width - figures - 2) * 3 // 7, 1))
    cells = max(width - names - figures - 2, 1)
    table = Table.grid(padding=(0, 1))
    for column in (names, cells, figures):
        table.add_column(width=column, no_wrap=True)
    begin = 0.0
    for part, nbytes in zip(parts, sizes, strict=True):
        end = begin + max(part.share, 0.0)
        # A small part still gets one cell, so that every part is visible.
        first = min(begin, 1 - 1 / cells)
        last = max(end, first + 1 / cells) if part.nbytes > 0 else end
        bar = Bar(1.0, first, last, color=_COLOURS[part.style])
        table.add_row(Text(_fitted(part.name, names), no_wrap=True), bar, Text(nbytes.rjust(figures)))
        begin = end
    return table


def memory_bar(stats: Stats, width: int) -> Text:
    """Return the memory as one line: used bytes, limit, and a bar of the parts if there is room."""
    parts = memory_parts(stats)
    used = sum(part.nbytes for part in parts if part.style != "free")
    text = Text(f"{size(used)} of {size(stats.memory.limit_bytes)} used", no_wrap=True, overflow="ellipsis")
    room = width - text.cell_len - 1
    if room < _LEAST_BAR:
        return text
    text.append(" ")
    for part in parts:
        cells = min(max(1, round(part.share * room)), room) if part.nbytes > 0 else 0
        cells = room if part.style == "free" else cells
        text.append("█" * cells, style=_COLOURS[part.style])
        room -= cells
    return text


def facts(stats: Stats, width: int) -> list[Text]:
    """Return lines with requests, reuse and time to first token, the most important first."""
    engine, cache, latency = stats.engine, stats.prefix_cache, stats.latency
    reused = cache.tokens_reused / cache.tokens_looked_up if cache.tokens_looked_up else 0.0
    spans = ((name, latency.first_token.quantile(share)) for name, share in (("p50", 0.5), ("p99", 0.99)))
    first = ", ".join(f"{name} {brief(value)}" for name, value in spans if value is not None)
    lines = [
        f"{engine.decoding} decode, {engine.prefilling} prefill, {engine.queued} wait",
        f"{percent(reused)} of prompt tokens reused",
        f"first token {first or '-'}",
        f"{engine.rejected:,} rejected, {engine.cancelled:,} cancelled so far",
        f"{percent(cache.hit_rate)} of {count(cache.lookups, 'prompt')} hit",
        *_ranks(stats.group),
        *_misses(cache),
        *_disk(cache),
        *_kept(cache),
        *map(guessed, engine.guesses[:_MOST_GUESSES]),
        *map(called_by, engine.callers[:_MOST_CALLERS]),
    ]
    return [_line(line) for line in _packed(lines, width)]


def _ranks(group: GroupStats) -> list[str]:
    """Return the state of a group and of each rank that was not reached; nothing without a group."""
    if not group.ranks:
        return []
    missing = [f"rank {rank.rank} ({rank.address}) {printable(rank.problem)}" for rank in group.ranks if rank.problem]
    disk = f", {size(group.disk_bytes)} of {size(group.disk_budget_bytes)} on each disk" * bool(group.disk_budget_bytes)
    return [f"group of {len(group.ranks)} {group.state}, {group.decoding} decode{disk}", *missing]


def _misses(cache: PrefixCacheStats) -> list[str]:
    """Return why prompts were not reused further, the most frequent reason first; nothing before the first miss."""
    counts = sorted(asdict(cache.misses).items(), key=lambda pair: -pair[1])
    told = [f"{number:,} {reason.replace('_', ' ')}" for reason, number in counts if number]
    return [f"missed: {', '.join(told)}"] if told else []


def _disk(cache: PrefixCacheStats) -> list[str]:
    """Return how much is on the disk, and how much of the prompts came from there; nothing without a disk tier."""
    if not cache.disk_budget_bytes:
        return ["nothing on the disk: its directory cannot be used"] if cache.disk_faults else []
    line = f"{size(cache.disk_bytes)} of {size(cache.disk_budget_bytes)} on the disk"
    if cache.tokens_looked_up:
        line += f", {percent(cache.disk_tokens_reused / cache.tokens_looked_up)} of prompt tokens from there"
    return [line + (f", {count(cache.disk_faults, 'fault')}" if cache.disk_faults else "")]


def _kept(cache: PrefixCacheStats) -> list[str]:
    """Return how much is kept, and until when at least; nothing if nothing is."""
    if not cache.kept:
        return []
    first = cache.kept[0].expires_in
    until = "" if first is None else f" for {span(first)} or longer"
    return [f"{count(cache.total_kept, 'prefix', 'prefixes')} kept{until}, {size(cache.kept_bytes)}"]


def speed_row(stats: Stats, speeds: Sequence[float], width: int) -> Text:
    """Return the current and the highest speed in tokens per second, and as many totals as fit."""
    now, most = (speeds[-1] if speeds else 0.0), max(speeds, default=0.0)
    totals = [
        f"{now:,.1f} tokens/s now, {most:,.1f} at most",
        f"{stats.engine.generated_tokens:,} generated",
        f"{count(stats.engine.prompt_tokens, 'prompt token')} computed",
    ]
    return _line(_packed(totals, width)[0])


def speeds_row(speeds: Sequence[float], width: int) -> Text:
    """Return the last `width` speeds as a sparkline."""
    return Text(sparkline(speeds[-max(width, 1) :]), style="cyan", no_wrap=True)


def model_rows(models: Sequence[ModelStats], width: int) -> list[Text]:
    """Return a header and a line for each model. Names are shortened at their beginning, values never."""
    if not models:
        return [Text("No model is in memory.", style="dim")]
    columns = [["size", *(size(model.info.size_bytes) for model in models)]]
    columns.append(["state", *("pinned" if model.pinned else model.state for model in models)])
    columns.append(["in use", *(str(model.in_use) for model in models)])
    if width >= _WIDE:
        columns.append(["asked for", *(f"{model.use_count:,}" for model in models)])
    widths = [max(map(len, column)) for column in columns]
    room = max(width - sum(widths) - 2 * len(widths), 1)
    names = ["model", *(_named(model, room) for model in models)]
    return [
        Text("  ".join([set_cell_size(name, room), *_justified(figures, widths)]), style=style, no_wrap=True)
        for name, style, *figures in zip(names, ["bold", *[""] * len(models)], *columns, strict=True)
    ]


def sparkline(values: Iterable[float], steps: str = _SPARKS) -> str:
    """Return one character for each value: the lowest step for zero, the highest for the largest value."""
    shown = list(values)
    most = max(shown, default=0.0)
    return "".join(steps[round((len(steps) - 1) * value / most) if most else 0] for value in shown)


def _named(model: ModelStats, room: int) -> str:
    """Return all names of a model if they fit, else the first."""
    all_names = printable(" = ".join(model.names) or model.info.model)
    if cell_len(all_names) <= room:
        return all_names
    return _fitted(model.names[0] if model.names else model.info.model, room)


def _fitted(name: str, room: int) -> str:
    """Return a name that fits. Its beginning is cut, because models of one family differ at the end."""
    name = printable(name)
    if cell_len(name) <= room:
        return name
    while name and cell_len(name) >= room:
        name = name[1:]
    return f"…{name}"


def _justified(figures: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    for number, (text, width) in enumerate(zip(figures, widths, strict=True)):
        yield text.ljust(width) if number == 1 else text.rjust(width)


def _packed(texts: Sequence[str], width: int) -> list[str]:
    """Join texts to lines that fit a width. No text is broken across lines."""
    lines = [texts[0]]
    for text in texts[1:]:
        longer = f"{lines[-1]}; {text}"
        if cell_len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(text)
    return lines


def _line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _signed(nbytes: int) -> str:
    return size(nbytes) if nbytes >= 0 else f"{size(-nbytes)} over"
