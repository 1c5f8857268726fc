"""
The `top` screen: chooses a layout for the size of the terminal.

There are three layouts, from large to small terminals:

    framed   panels, with one bar for each part of the memory
    plain    the same without panels
    tight    one line each for memory and speed; requests and models get the remaining lines

A line that does not fit is left out as a whole; the number of models left out is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.layout import Layout
from rich.panel import Panel
from rich.segment import Segment
from rich.text import Text

from daemon.cli.output.memory_parts import memory_parts
from daemon.cli.output.rows import facts, header, memory_bar, memory_rows, model_rows, speed_row, speeds_row
from mlx_sidecar import Stats

_ASCII = str.maketrans("▁▂▃▄▅▆▇█▉▊▋▌▍▎▏▐▕╭╮╰╯─│…", "_.-=+*##########|++++-|~")
"""Replacements for terminals without Unicode."""
_MOST_SPEEDS = 400


@dataclass(frozen=True)
class View:
    """
    The data of one refresh.

    Attributes:
        stats: The last Stats.
        at: Time of their arrival, on a monotonic clock.
        speeds: Tokens generated per second between refreshes, oldest first.
        trouble: Error of the last call; empty if it succeeded. After an error, `stats` are those of the call before.
    """

    stats: Stats
    at: float
    speeds: tuple[float, ...] = ()
    trouble: str = ""

    def next(self, stats: Stats, at: float) -> View:
        """Return the view after another call of Stats."""
        growth = stats.engine.generated_tokens - self.stats.engine.generated_tokens
        if growth < 0:  # the engine was restarted, and its counters began at zero
            growth = stats.engine.generated_tokens
        speed = growth / max(at - self.at, 1e-3)
        return View(stats, at, (*self.speeds, speed)[-_MOST_SPEEDS:])


class Screen:
    """Draws a view in the size of the terminal."""

    def __init__(self, view: View) -> None:
        self.view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, options.height or options.max_height
        top = header(self.view.stats, self.view.trouble, width)
        blocks = _framed(self.view, width, height - len(top)) or _plain(self.view, width, height - len(top))
        blocks = blocks or _tight(self.view, width, height - len(top))
        layout = Layout()
        rows = [Layout(Group(*top), size=len(top)), *(Layout(block, size=lines) for block, lines in blocks)]
        layout.split_column(*rows, Layout(Text(" ")))
        for text, style, control in console.render(layout, options):
            yield Segment(text.translate(_ASCII) if options.ascii_only else text, style, control)


_Block = tuple[RenderableType, int]
"""A part of the screen, and its number of lines."""


def _framed(view: View, width: int, height: int) -> list[_Block] | None:
    """Return all parts in panels, and models in the remaining lines; None if they do not fit."""
    inner = width - 4
    models = model_rows(view.stats.models, inner)
    blocks = [
        _panel("memory", [memory_rows(view.stats, inner)], len(memory_parts(view.stats))),
        _panel("requests", facts(view.stats, inner)),
        _panel("tokens per second", [speed_row(view.stats, view.speeds, inner), speeds_row(view.speeds, inner)]),
    ]
    left = height - sum(lines for _, lines in blocks) - 1
    if left < len(models) + 2:
        return None
    return [*blocks, _panel("models", models, left - 2), (_FOOTER, 1)]


def _plain(view: View, width: int, height: int) -> list[_Block] | None:
    """Return all parts without panels; None if they do not fit."""
    models, requests = model_rows(view.stats.models, width), facts(view.stats, width)
    blocks: list[_Block] = [
        (memory_rows(view.stats, width), len(memory_parts(view.stats))),
        (Group(*requests), len(requests)),
        (speed_row(view.stats, view.speeds, width), 1),
        (speeds_row(view.speeds, width), 1),
        (Group(*models), len(models)),
        (_FOOTER, 1),
    ]
    return blocks if sum(lines for _, lines in blocks) <= height else None


def _tight(view: View, width: int, height: int) -> list[_Block]:
    """Return as many lines as fit: first requests, then memory, models, speed, and the rest."""
    models, requests = model_rows(view.stats.models, width), facts(view.stats, width)
    rows = {"memory": 1, "requests": len(requests), "speed": 1, "models": len(models), "footer": 1}
    given = dict.fromkeys(rows, 0)
    wishes = [("requests", 1), ("memory", 1), ("models", 2), ("speed", 1), ("requests", 2), ("footer", 1)]
    for name, wish in [*wishes, ("models", height), ("requests", height)]:
        given[name] += max(0, min(wish, rows[name] - given[name], height - sum(given.values())))
    return [
        (memory_bar(view.stats, width), given["memory"]),
        (Group(*requests[: given["requests"]]), given["requests"]),
        (speed_row(view.stats, view.speeds, width), given["speed"]),
        (Group(*_shortened(models, given["models"])), given["models"]),
        (_FOOTER, given["footer"]),
    ]


def _shortened(models: Sequence[Text], lines: int) -> list[Text]:
    """Return at most `lines` lines. If models are left out, the last line says how many."""
    if len(models) <= lines or lines < 2:
        return list(models[:lines])
    return [*models[: lines - 1], Text(f"and {len(models) - lines + 1} more", style="dim")]


_FOOTER = Text("q quits", style="dim")


def _panel(title: str, content: Sequence[RenderableType], lines: int | None = None) -> _Block:
    """Return a panel around content. `lines` is the height of the content, by default one line each."""
    return Panel(Group(*content), title=title, title_align="left"), (len(content) if lines is None else lines) + 2
