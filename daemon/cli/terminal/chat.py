"""
The conversation of `run` on a terminal.

Each turn sends all messages so far. Their KV is in the prefix cache, so a turn prefills only its new tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import chain, repeat
from typing import Any

import click

from daemon.cli.exit_codes import explain
from daemon.cli.output.answer import cut_warnings, print_answer, print_timings, print_warnings
from mlx_sidecar import (
    Client,
    ConnectionLost,
    DaemonNotRunning,
    EngineRestarted,
    Message,
    ShuttingDown,
    SidecarError,
    UntrustedSocket,
)

HELP = """\
/clear        forget the conversation, keep the system message
/system TEXT  forget it and take another system message; without TEXT none
/verbose      print timings after each answer, or no longer
/help         this list
/exit         end, as Ctrl-D does
A line that ends with a backslash goes on in the next one."""

LOOK_SECONDS = 0.25
"""Pause between two calls to an absent daemon. Each call also waits for its socket, as every first call does."""


class Chat:
    """
    One conversation: its messages so far, and the loop that answers the next turn.

    Args:
        client: A client of the daemon.
        model: The model that answers.
        system: The system message, if any.
        options: Options of each Generate call.
        verbose: Whether timings follow each answer.
        load: Loads the model and shows its progress; called again after the daemon was away.
    """

    def __init__(
        self,
        client: Client,
        model: str,
        system: str | None,
        options: dict[str, Any],
        verbose: bool,
        load: Callable[[], object],
    ) -> None:
        self._client = client
        self._model = model
        self._options = options
        self._verbose = verbose
        self._load = load
        self._away = False
        self._warned: set[str] = set()
        self._begin(system)

    def hold(self, ask: Callable[[], str | None]) -> None:
        """
        Answer turns until `ask` returns None. Ctrl-C during an answer, or an error, removes that turn.

        If the daemon goes away, the turn is kept, and is sent again when a daemon answers.

        Raises:
            KeyboardInterrupt: At Ctrl-C while the daemon is away.
            UntrustedSocket: If the socket of the new daemon can be that of another user.
        """
        click.echo("/help lists commands. Ctrl-C interrupts an answer, Ctrl-D ends the conversation.", err=True)
        while (text := ask()) is not None:
            if not text.strip():
                continue
            if text.startswith("/"):
                if not self._command(*text[1:].partition(" ")[::2]):
                    return
                continue
            turn = Message(role="user", content=text)
            while (pause := self._turn(turn)) is not None:
                self._wait(pause)

    def _begin(self, system: str | None) -> None:
        self._messages = [] if system is None else [Message(role="system", content=system)]

    def _turn(self, turn: Message) -> float | None:
        """Return None if a turn is done, answered or given up; else the seconds after which it can be asked again."""
        try:
            if self._away:
                self._load()
                self._away = False
            self._answer(turn)
        except KeyboardInterrupt:
            click.echo("Interrupted; this turn is forgotten.", err=True)
        except (ConnectionLost, DaemonNotRunning, ShuttingDown):
            click.echo("The daemon went away; waiting for it to come back. Ctrl-C leaves.", err=True)
            return LOOK_SECONDS
        except EngineRestarted as error:  # a request that kills engines is refused with another error at its third time
            click.echo("The engine was restarted; waiting for it to come back. Ctrl-C leaves.", err=True)
            return max(LOOK_SECONDS, error.retry_after or 0.0)
        except SidecarError as error:
            answer = explain(error)
            click.echo(f"{answer.text if answer else error}; this turn is forgotten.", err=True)
        return None

    def _wait(self, pause: float) -> None:
        """Wait for so many seconds, and then until a daemon answers and is not draining."""
        self._away = True
        for seconds in chain([pause], repeat(LOOK_SECONDS)):
            time.sleep(seconds)
            try:
                if not self._client.stats().daemon.draining:
                    break
            except UntrustedSocket:
                raise
            except SidecarError:
                continue
        click.echo("The daemon is back; asking again.", err=True)

    def _answer(self, turn: Message) -> None:
        with self._client.generate(self._model, [*self._messages, turn], **self._options) as stream:
            print_answer(stream)
            result = stream.result()
        self._messages += [turn, result.message]
        new = [text for text in result.warnings if text not in self._warned]
        print_warnings([*new, *cut_warnings([result], self._options)])
        self._warned.update(result.warnings)
        if self._verbose:
            print_timings(result)

    def _command(self, name: str, rest: str) -> bool:
        """Run a slash command, and tell whether the conversation continues."""
        match name:
            case "exit" | "bye" | "quit":
                return False
            case "clear":
                self._messages = [message for message in self._messages if message.role == "system"]
            case "system":
                self._begin(rest.strip() or None)
            case "verbose":
                self._verbose = not self._verbose
                click.echo(f"Timings are {'on' if self._verbose else 'off'}.", err=True)
            case "help":
                click.echo(HELP, err=True)
            case _:
                click.echo(f"There is no /{name}; /help lists what there is. A space first sends it as text.", err=True)
        return True
