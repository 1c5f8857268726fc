"""Shows the progress of a load on stderr: a bar on a terminal, lines in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from daemon.cli.output.formatting import stderr_is_terminal
from daemon.shared.wording import size

if TYPE_CHECKING:
    from mlx_sidecar import LoadProgress, LoadStream, ModelInfo

_STEP_PERCENT = 10


def follow(load: LoadStream) -> ModelInfo:
    """
    Show a load until it ends, and return the model. An interruption cancels the load.

    Raises:
        SidecarError: If the load fails.
    """
    with load, _bar() if stderr_is_terminal() else _lines() as show:
        for event in load:
            show(event)
        return load.result()


@contextmanager
def _lines() -> Iterator[Callable[[LoadProgress], None]]:
    """Yield a function that prints a line for each stage and each tenth of it."""
    last: tuple[str, int] | None = None

    def show(event: LoadProgress) -> None:
        nonlocal last
        percent = 100 * event.bytes_done // event.bytes_total if event.bytes_total else 0
        here = (event.stage, percent // _STEP_PERCENT)
        if here != last:
            last = here
            click.echo(_line(event), err=True)

    yield show


def _line(event: LoadProgress) -> str:
    line = f"{event.stage.replace('_', ' ')} {_amount(event)}".rstrip()
    if event.evicting:
        line += f", making room by dropping {', '.join(event.evicting)}"
    return line


def _amount(event: LoadProgress) -> str:
    if event.bytes_total:
        return f"{size(event.bytes_done)} of {size(event.bytes_total)}"
    return size(event.bytes_done) if event.bytes_done else ""


@contextmanager
def _bar() -> Iterator[Callable[[LoadProgress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("connecting", total=None, amount="")
        stage = ""

        def show(event: LoadProgress) -> None:
            nonlocal stage
            if event.stage != stage:
                stage = event.stage
                progress.reset(task)  # so that the speed and the remaining time are those of this stage
            described = stage.replace("_", " ")
            if event.evicting:
                described += f" (dropping {', '.join(event.evicting)})"
            total = event.bytes_total or None
            amount = _amount(event)
            progress.update(task, description=described, completed=event.bytes_done, total=total, amount=amount)

        yield show
