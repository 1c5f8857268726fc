"""A conversation on a terminal. Its prompts share their prefix, so each turn computes only what is new."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

import click

from daemon.cli.answer import print_answer, print_timings
from mlx_sidecar import Client, Message


def hold(client: Client, model: str, system: str | None, options: dict[str, Any], verbose: bool) -> None:
    """
    Read turns until end of file and print the answers. Ctrl-C during an answer takes that turn back.

    Raises:
        KeyboardInterrupt: On Ctrl-C at the prompt.
        SidecarError: If a call fails; the conversation ends.
    """
    with suppress(ImportError):
        import readline  # noqa: F401 - gives input() line editing and a history

    messages = [] if system is None else [Message(role="system", content=system)]
    click.echo("Ctrl-C interrupts an answer, Ctrl-D ends the conversation.", err=True)
    while (text := _ask()) is not None:
        if not text.strip():
            continue
        turn = Message(role="user", content=text)
        with client.generate(model, [*messages, turn], **options) as stream:
            try:
                print_answer(stream)
            except KeyboardInterrupt:
                continue
            result = stream.result()
        messages += [turn, Message(role="assistant", content=result.text)]
        if verbose:
            print_timings(result)


def _ask() -> str | None:
    try:
        return input(">>> ")
    except EOFError:
        sys.stdout.write("\n")
        return None
