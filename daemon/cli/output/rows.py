"""Rows of the screen of `top`, each made for a width. No figure is cut: what does not fit goes below or is left out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from rich.bar import Bar
from rich.cells import cell_len, set_cell_size
from rich.table import Table
from rich.text import Text

from daemon.cli.output.formatting import brief, percent, printable, span
from daemon.cli.output.memory_parts import memory_parts
from daemon.shared.wording import count, size
from mlx_sidecar import ModelStats, Stats

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
"""So many columns have room for a figure that is nice to know."""
_LEAST_BAR = 8
_TROUBLE_LINES = 3


def header(stats: Stats, trouble: str, width: int) -> list[Text]:
    """Return what the daemon is and how it does; or `trouble`, which takes more than one line where it has to."""
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
    """Return a row for each part, each bar where the one before it ends, so that they read as one bar."""
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
        # A part that is there is seen, however small: it has a cell at least.
        first = min(begin, 1 - 1 / cells)
        last = max(end, first + 1 / cells) if part.nbytes > 0 else end
        bar = Bar(1.0, first, last, color=_COLOURS[part.style])
        table.add_row(Text(_fitted(part.name, names), no_wrap=True), bar, Text(nbytes.rjust(figures)))
        begin = end
    return table


def memory_bar(stats: Stats, width: int) -> Text:
    """Return the whole memory as one line: what is used, and a bar of its parts."""
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
    """Return what runs, how much is reused and how fast the first token comes; the most important first."""
    engine, cache, latency = stats.engine, stats.prefix_cache, stats.latency
    reused = cache.tokens_reused / cache.tokens_looked_up if cache.tokens_looked_up else 0.0
    spans = ((name, latency.first_token.quantile(share)) for name, share in (("p50", 0.5), ("p99", 0.99)))
    first = ", ".join(f"{name} {brief(value)}" for name, value in spans if value is not None)
    told = [
        f"{engine.decoding} decode, {engine.prefilling} prefill, {engine.queued} wait",
        f"{percent(reused)} of prompt tokens reused",
        f"first token {first or '-'}",
        f"{engine.rejected:,} rejected, {engine.cancelled:,} cancelled so far",
        f"{percent(cache.hit_rate)} of {count(cache.lookups, 'prompt')} hit",
    ]
    return [_line(line) for line in _packed(told, width)]


def speed_row(stats: Stats, speeds: Sequence[float], width: int) -> Text:
    """Return tokens generated each second, now and at most, and as many totals as fit."""
    now, most = (speeds[-1] if speeds else 0.0), max(speeds, default=0.0)
    told = [
        f"{now:,.1f} tokens/s now, {most:,.1f} at most",
        f"{stats.engine.generated_tokens:,} generated",
        f"{count(stats.engine.prompt_tokens, 'prompt token')} computed",
    ]
    return _line(_packed(told, width)[0])


def speeds_row(speeds: Sequence[float], width: int) -> Text:
    """Return the last speeds as a line of steps."""
    return Text(sparkline(speeds[-max(width, 1) :]), style="cyan", no_wrap=True)


def model_rows(models: Sequence[ModelStats], width: int) -> list[Text]:
    """Return a header and a line for each model; names give way to figures, and keep their ends."""
    if not models:
        return [Text("No model is in memory.", style="dim")]
    columns = [["size", *(size(one.info.size_bytes) for one in models)]]
    columns.append(["state", *("pinned" if one.pinned else one.state for one in models)])
    columns.append(["in use", *(str(one.in_use) for one in models)])
    if width >= _WIDE:
        columns.append(["asked for", *(f"{one.use_count:,}" for one in models)])
    widths = [max(map(len, column)) for column in columns]
    room = max(width - sum(widths) - 2 * len(widths), 1)
    names = ["model", *(_named(one, room) for one in models)]
    return [
        Text("  ".join([set_cell_size(name, room), *_justified(figures, widths)]), style=style, no_wrap=True)
        for name, style, *figures in zip(names, ["bold", *[""] * len(models)], *columns, strict=True)
    ]


def sparkline(values: Iterable[float], steps: str = _SPARKS) -> str:
    """Return one character for each value; the largest is the highest step, nothing at all the lowest."""
    shown = list(values)
    most = max(shown, default=0.0)
    return "".join(steps[round((len(steps) - 1) * value / most) if most else 0] for value in shown)


def _named(one: ModelStats, room: int) -> str:
    """Return all names of a model if they fit, else the first."""
    everything = printable(" = ".join(one.names) or one.info.model)
    return everything if cell_len(everything) <= room else _fitted(one.names[0] if one.names else one.info.model, room)


def _fitted(name: str, room: int) -> str:
    """Return a name without its beginning if it is too long: models of one family differ at the end."""
    name = printable(name)
    if cell_len(name) <= room:
        return name
    while name and cell_len(name) >= room:
        name = name[1:]
    return f"…{name}"


def _justified(figures: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    for number, (text, width) in enumerate(zip(figures, widths, strict=True)):
        yield text.ljust(width) if number == 1 else text.rjust(width)


def _packed(told: Sequence[str], width: int) -> list[str]:
    """Return lines of facts, none of which is broken."""
    lines = [told[0]]
    for fact in told[1:]:
        longer = f"{lines[-1]}; {fact}"
        if cell_len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(fact)
    return lines


def _line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _signed(nbytes: int) -> str:
    return size(nbytes) if nbytes >= 0 else f"{size(-nbytes)} over"
