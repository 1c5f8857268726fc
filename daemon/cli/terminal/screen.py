"""
The screen of `top`: what it shows, apart from when and where.

The more room there is the more is shown: frames and a bar for each part of the memory, the same without frames, or one
line for each of memory, speed and, as far as they go, models. What does not fit is left out as a whole and said.
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
"""Something to show, and how many lines it takes."""


def _framed(view: View, width: int, height: int) -> list[_Block] | None:
    """Return all there is in frames, the models with what room is left; None if they do not fit."""
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
    """Return all there is without frames; None if it does not fit."""
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
    """Return as much as fits: first of all what runs, then the memory, then models, then the rest."""
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
    """Return so many lines; the last one says how many models are left out, if any are."""
    if len(models) <= lines or lines < 2:
        return list(models[:lines])
    return [*models[: lines - 1], Text(f"and {len(models) - lines + 1} more", style="dim")]


_FOOTER = Text("q quits", style="dim")


def _panel(title: str, content: Sequence[RenderableType], lines: int | None = None) -> _Block:
    """Return a frame around lines; `lines` says how many, if it is not one each."""
    return Panel(Group(*content), title=title, title_align="left"), (len(content) if lines is None else lines) + 2
