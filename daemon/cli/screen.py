"""The screen of `top`: what it shows, apart from when and where."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.bar import Bar
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.layout import Layout
from rich.panel import Panel
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from daemon.cli.parts import memory_parts
from daemon.cli.text import brief, percent, printable, size, span
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
_ASCII = str.maketrans("▁▂▃▄▅▆▇█▉▊▋▌▍▎▏▐▕╭╮╰╯─│…", "_.-=+*##########|++++-|~")
"""For terminals that know nothing else."""
_MOST_SPEEDS = 400


@dataclass(frozen=True)
class View:
    """
    What is shown at one time.

    Attributes:
        stats: The figures.
        at: When they came, on a clock that never goes back.
        speeds: Tokens generated each second, since the first look, oldest first.
        trouble: Why the last look failed; empty if it did not. The figures are then those of the look before.
    """

    stats: Stats
    at: float
    speeds: tuple[float, ...] = ()
    trouble: str = ""

    def next(self, stats: Stats, at: float) -> View:
        """Return the view after another look."""
        grown = stats.engine.generated_tokens - self.stats.engine.generated_tokens
        if grown < 0:  # another engine, which began anew
            grown = stats.engine.generated_tokens
        speed = grown / max(at - self.at, 1e-3)
        return View(stats, at, (*self.speeds, speed)[-_MOST_SPEEDS:])


class Screen:
    """Draws a view on whatever room there is."""

    def __init__(self, view: View) -> None:
        self.view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        view, stats = self.view, self.view.stats
        memory = _panel("memory", _memory(stats))
        speed = _panel("tokens per second", _speed(view, options.max_width - 4))
        layout = Layout()
        layout.split_column(
            Layout(_header(view), size=1),
            Layout(memory, size=len(memory_parts(stats)) + 2),
            Layout(_panel("requests", _requests(stats)), size=4),
            Layout(speed, size=4),
            Layout(_panel("models", _models(stats.models)), minimum_size=4),
            Layout(Text("q quits", style="dim"), size=1),
        )
        for text, style, control in console.render(layout, options):
            yield Segment(text.translate(_ASCII) if options.ascii_only else text, style, control)


def _panel(title: str, content: RenderableType) -> Panel:
    return Panel(content, title=title, title_align="left")


def _header(view: View) -> Text:
    daemon, engine = view.stats.daemon, view.stats.engine
    text = Text(f"mlx-sidecar {daemon.version}", style="bold", no_wrap=True, overflow="ellipsis")
    if view.trouble:
        return text.append(f"  {printable(view.trouble)}", style="red")
    text.append(f"  engine {engine.state}", style="green" if engine.state == "ready" else "red")
    if engine.stuck:
        text.append(f"  {len(engine.stuck)} stuck", style="red")
    about = [daemon.device or "-", f"up {span(daemon.uptime or 0)}", f"{engine.restarts} restarts"]
    return text.append("  " + ", ".join([*about, *(["draining"] if daemon.draining else [])]), style="not bold")


def _memory(stats: Stats) -> Table:
    """Show each part where the one before it ends, so that they read as one bar."""
    table = _grid(3, 4, 0)
    begin = 0.0
    for part in memory_parts(stats):
        end = begin + max(part.share, 0.0)
        bar = Bar(1.0, begin, end, color=_COLOURS[part.style])
        table.add_row(Text(printable(part.name), no_wrap=True, overflow="ellipsis"), bar, _signed(part.nbytes))
        begin = end
    return table


def _requests(stats: Stats) -> Group:
    engine, cache = stats.engine, stats.prefix_cache
    reused = cache.tokens_reused / cache.tokens_looked_up if cache.tokens_looked_up else 0.0
    now = f"{engine.decoding} decode, {engine.prefilling} prefill, {engine.queued} wait"
    latency = stats.latency
    spans = ((name, latency.first_token.quantile(share)) for name, share in (("p50", 0.5), ("p99", 0.99)))
    first = ", ".join(f"{name} {brief(value)}" for name, value in spans if value is not None)
    return Group(
        _line(f"{now}; {engine.rejected:,} rejected, {engine.cancelled:,} cancelled so far"),
        _line(
            f"{percent(reused)} of prompt tokens reused, {percent(cache.hit_rate)} of {cache.lookups:,} prompts hit; "
            f"first token {first or '-'}"
        ),
    )


def _speed(view: View, width: int) -> Group:
    now = view.speeds[-1] if view.speeds else 0.0
    most = max(view.speeds, default=0.0)
    totals = (
        f"{view.stats.engine.generated_tokens:,} generated, {view.stats.engine.prompt_tokens:,} prompt tokens computed"
    )
    line = sparkline(view.speeds[-max(width, 1) :])
    return Group(_line(f"{now:,.1f} now, {most:,.1f} at most; {totals}"), Text(line, style="cyan", no_wrap=True))


def _models(models: Sequence[ModelStats]) -> RenderableType:
    if not models:
        return Text("No model is in memory.", style="dim")
    table = _grid(4, 1, 1, 1, 1)
    table.add_row(*(Text(title, style="bold") for title in ("model", "size", "state", "in use", "asked for")))
    for one in models:
        name = Text(printable(" = ".join(one.names) or one.info.model), no_wrap=True, overflow="ellipsis")
        state = "pinned" if one.pinned else one.state
        table.add_row(name, size(one.info.size_bytes), state, str(one.in_use), f"{one.use_count:,}")
    return table


def sparkline(values: Iterable[float], steps: str = _SPARKS) -> str:
    """Return one character for each value; the largest is the highest step, nothing at all the lowest."""
    shown = list(values)
    most = max(shown, default=0.0)
    return "".join(steps[round((len(steps) - 1) * value / most) if most else 0] for value in shown)


def _line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _grid(*ratios: int) -> Table:
    table = Table.grid(expand=True, padding=(0, 1))
    for ratio in ratios:
        table.add_column(ratio=ratio or None, no_wrap=True)
    return table


def _signed(nbytes: int) -> str:
    return size(nbytes) if nbytes >= 0 else f"{size(-nbytes)} over"
