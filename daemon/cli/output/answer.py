"""Prints an answer while it streams, and its timings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import click

from daemon.cli.output.formatting import printable, stdout_is_terminal
from daemon.shared.wording import count

if TYPE_CHECKING:
    from mlx_sidecar import Completion, GenerateStream


def print_answer(stream: GenerateStream) -> None:
    """
    Print each delta at once, and a line end after the last. An answer without text prints nothing.

    On a terminal, control characters are replaced, and the model's reasoning is shown first, dimmed. A pipe gets the
    text only.

    Raises:
        SidecarError: If the call fails; the text before the failure is printed by then.
    """
    terminal = stdout_is_terminal()
    clean: Callable[[str], str] = printable if terminal else str
    last, reasons = "", False
    try:
        for reasoning, text in _parts(stream):
            if reasoning and terminal:
                last, reasons = reasoning, True
                click.secho(clean(reasoning), nl=False, dim=True)
            if text:
                if reasons:
                    click.echo("" if last.endswith("\n") else "\n")
                last, reasons = text, False  # before the print, because Ctrl-C can interrupt right after it
                click.echo(clean(text), nl=False)
    finally:
        if last and not last.endswith("\n"):
            click.echo()


def _parts(stream: GenerateStream) -> Iterator[tuple[str, str]]:
    """Yield reasoning and text of each delta. Closing this generator early cancels the call."""
    from mlx_sidecar import Delta

    with closing(stream):
        for event in stream:
            if isinstance(event, Delta):
                yield event.reasoning, event.text


def print_timings(result: Completion) -> None:
    """Print tokens and speeds of an answer to stderr."""
    usage, timings = result.usage, result.timings
    computed = usage.prompt_tokens - usage.cached_tokens
    # Prefill produces the first token, so decode produced one fewer.
    decoded = max(usage.completion_tokens - 1, 0)
    lines = [
        ("prompt", f"{count(usage.prompt_tokens, 'token')}, {usage.cached_tokens:,} of them cached"),
        ("first token", "-" if timings.first_token is None else f"{timings.first_token:.3f} s"),
        ("prefill", _speed(computed, timings.prefill)),
        ("decode", _speed(decoded, timings.decode)),
        *(("warning", text) for text in result.warnings),
    ]
    click.echo("\n" + "\n".join(f"{label:<12} {text}" for label, text in lines), err=True)


def _speed(tokens: int, seconds: float | None) -> str:
    speed = f" in {seconds:.3f} s, {tokens / seconds:,.1f} tokens/s" if seconds else ""
    return count(tokens, "token") + speed
