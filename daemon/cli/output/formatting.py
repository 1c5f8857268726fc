"""Formatting of times, percentages, tables and JSON for all commands; sizes and counts are in `shared/wording.py`."""

from __future__ import annotations

import codecs
import json
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

import click

from daemon.shared.wording import count

if TYPE_CHECKING:
    from mlx_sidecar import CallerStats, GuessStats

_SPANS = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))


def span(seconds: float) -> str:
    """Return a duration in its largest unit, rounded: "4 minutes", "1 hour", "0 seconds"."""
    for number, (length, unit) in enumerate(_SPANS):
        finer = _SPANS[number + 1][0] if length > 1 else 0
        if seconds >= length - finer / 2 or length == 1:
            return count(round(seconds / length), unit)
    raise AssertionError("the last unit takes all")


def brief(seconds: float) -> str:
    """Return a short duration: "420 µs", "35 ms", "1.2 s", "95 s"."""
    if seconds < 0.0095:
        return f"{1e6 * seconds:.0f} µs" if seconds < 0.00095 else f"{1e3 * seconds:.1f} ms"
    if seconds < 0.95:
        return f"{1e3 * seconds:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"


def percent(share: float) -> str:
    """Return a fraction as a percentage: "87 %"."""
    return f"{share:.0%}".replace("%", " %")


def called_by(caller: CallerStats) -> str:
    """Return a process that calls, and its calls: "code (4711): 2 run, 1 wait, 17 so far"."""
    name = f"{printable(caller.program)} ({caller.pid})" if caller.pid else "unknown"
    return f"{name}: {caller.running} run, {caller.waiting} wait, {caller.calls:,} so far"


def guessed(guesses: GuessStats) -> str:
    """Return what a source of guesses brought: "ngram of org/name: 71 % of 1,204 right, 1.8x", or "parked"."""
    right = percent(guesses.accepted / guesses.guessed if guesses.guessed else 0.0)
    gain = "parked" if guesses.parked else f"{guesses.gain:.1f}x" if guesses.gain else "not measured"
    return f"{guesses.source} of {printable(guesses.model)}: {right} of {guesses.guessed:,} right, {gain}"


def columns(text: str) -> int:
    """Return the columns that a terminal shows a text in: a wide character takes two, a mark on another one none."""
    wide = ("F", "W")
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in wide else 1
        for character in text
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns; the header is bold on a terminal. Cells may be names of files, which can hold anything."""
    rows = [[printable(cell, kept="") for cell in row] for row in rows]
    widths = [max(map(columns, column)) for column in zip(header, *rows, strict=True)]
    for number, row in enumerate([header, *rows]):
        cells = (cell + " " * (width - columns(cell)) for cell, width in zip(row, widths, strict=True))
        line = "  ".join(cells).rstrip()
        click.echo(click.style(line, bold=True) if number == 0 else line)


def print_json(value: Any) -> None:
    """Print a result object, several of them, or plain data, as indented JSON; in ASCII where output has no Unicode."""
    has_unicode = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    click.echo(json.dumps(value, indent=2, ensure_ascii=not has_unicode, default=_plain))


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def printable(text: str, kept: str = "\n\t") -> str:
    """Return text with control characters replaced, because these can command a terminal; `kept` ones stay."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(character) == "Cc" and character not in kept else character
        for character in text
    )


def stdin_is_terminal() -> bool:
    """Tell whether a question can be answered."""
    return sys.stdin.isatty()


def stdout_is_terminal() -> bool:
    """Tell whether output is shown while it is printed."""
    return sys.stdout.isatty()


def stderr_is_terminal() -> bool:
    """Tell whether progress is shown as a moving bar."""
    return sys.stderr.isatty()


def examples(*lines: str) -> str:
    """Return the examples at the end of a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
