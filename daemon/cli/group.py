"""
The click group of all commands: it imports a command when it runs, and maps exceptions to exit codes.

With `--json`, standard output is exactly one JSON document: the result, or `{"error": {...}}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from io import StringIO
from typing import IO, TYPE_CHECKING, Any

import click

from daemon.cli.exit_codes import INTERRUPTED, REFUSED, document, explain
from daemon.cli.session import Session

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class Refusal(click.ClickException):
    """An error of click's, which begins as all others of this program do: with its name."""

    def __init__(self, error: click.ClickException) -> None:
        super().__init__(error.format_message())
        self.exit_code = error.exit_code  # type: ignore[misc]  # click's main reads it here
        self._error = error

    def show(self, file: IO[Any] | None = None) -> None:
        shown = StringIO()
        self._error.show(shown)  # of wrong usage, with the command's usage before it
        usage = shown.getvalue().removesuffix(f"Error: {self.message}\n")
        click.echo(f"{usage}mlx-sidecar: {self.message}", file, err=file is None)


class LazyGroup(click.Group):
    """
    A group of the commands `<package>.<name>.command`.

    Args:
        package: The package with a module for each command.
        table: Name and one-line help of each command. `--help` prints it and imports no command.
        synonyms: Other names of commands.
    """

    def __init__(
        self,
        *args: Any,
        package: str,
        table: Mapping[str, str],
        synonyms: Mapping[str, str] | None = None,
        **attributes: Any,
    ) -> None:
        super().__init__(*args, **attributes)
        self._package = package
        self._table = table
        self._synonyms = synonyms or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        cmd_name = self._synonyms.get(cmd_name, cmd_name)
        if cmd_name not in self._table:
            return None
        command: click.Command = import_module(f"{self._package}.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self._table.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        names = [CompletionItem(name, help=about) for name, about in self._table.items() if name.startswith(incomplete)]
        # The base of click.Group: Group's own method would import every command for its help.
        return [*names, *super(click.Group, self).shell_complete(ctx, incomplete)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        session = ctx.ensure_object(Session)
        session.as_json = _wants_json(args)
        with _in_json(session):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        session = ctx.ensure_object(Session)
        try:
            with _in_json(session):
                return super().invoke(ctx)
        except (KeyboardInterrupt, click.Abort):
            click.echo(err=True)
            ctx.exit(INTERRUPTED)
        except Exception as error:
            if (answer := explain(error)) is None:
                raise
            click.echo(f"mlx-sidecar: {answer.text}", err=True)
            ctx.exit(answer.code)


def _wants_json(args: Sequence[str]) -> bool:
    """Tell whether a command line has `--json`, even if it cannot be parsed."""
    options = args[: args.index("--")] if "--" in args else args
    return "--json" in options


@contextmanager
def _in_json(session: Session) -> Iterator[None]:
    """With `--json`, print an exception as JSON, and raise it again: its text still goes to standard error."""
    try:
        yield
    except click.exceptions.Exit:
        raise
    except (KeyboardInterrupt, click.Abort) as error:
        _print(session, error, "interrupted", INTERRUPTED)
        raise
    except click.ClickException as error:
        _print(session, error, error.format_message(), error.exit_code)
        raise Refusal(error) from None
    except Exception as error:
        answer = explain(error)
        bug = f"a bug: {type(error).__name__}: {error}"
        _print(session, error, *((answer.text, answer.code) if answer else (bug, REFUSED)))
        raise


def _print(session: Session, error: BaseException, text: str, code: int) -> None:
    if session.as_json:
        from daemon.cli.output.formatting import print_json

        print_json(document(error, text, code))
