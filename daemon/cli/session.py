"""What the commands of one invocation share: how to reach the daemon."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from daemon.shared.config import Config
    from mlx_sidecar import Client

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

EMBEDDED = "embedded"
"""The model that the daemon brings along."""


def _connect(socket: Path) -> Client:
    from mlx_sidecar import Client  # brings grpc: not for commands that do not call

    return Client(socket)


def _ensure(session: Session, socket: Path, ask: bool) -> None:
    from daemon.cli.starting import ensure

    ensure(session, socket, ask)


class Session:
    """
    One invocation. Tests give it a `connect` that returns a fake client, and an `ensure` that starts nothing.

    Attributes:
        socket_flag: `--socket`, before or after the command, as written; None if it was not given.
        as_json: Whether `--json` was given.
        start: Whether `--start` was given: a daemon that does not run is started.
    """

    def __init__(
        self,
        connect: Callable[[Path], Client] = _connect,
        ensure: Callable[[Session, Path, bool], None] = _ensure,
    ) -> None:
        self._connect = connect
        self._ensure = ensure
        self.socket_flag: str | None = None
        self.as_json = False
        self.start = False

    def client(self, ask: bool = False) -> Client:
        """
        Return a client of the daemon's socket; the caller closes it.

        Args:
            ask: Whether the command is of use to a daemon that was only just started. If none runs, a person at a
                terminal is asked then whether to start one.

        Raises:
            ConfigError: If the configuration has to tell the socket and is wrong.
            StartError: If a daemon was to be started and does not serve.
        """
        socket = self.socket()
        if self.start or ask:
            self._ensure(self, socket, ask)
        return self._connect(socket)

    def socket(self) -> Path:
        """
        Return the socket that a flag, the variable or the configuration names; the first one that is there is enough.

        Raises:
            ConfigError: If that is wrong.
        """
        from daemon.shared.config import given_value

        given = given_value("socket", self.socket_flag, os.environ, Path.home())
        return self.config().socket if given is None else given

    def state_dir(self) -> Path:
        """
        Return the directory of config.toml, which that file cannot move.

        Raises:
            ConfigError: If the variable that names it is wrong.
        """
        from daemon.shared.config import default_state_dir, given_value

        return given_value("state_dir", None, os.environ, Path.home()) or default_state_dir()

    def config(self) -> Config:
        """
        Return the configuration that this invocation sees; the daemon may have been started with other flags.

        Raises:
            ConfigError: If it is wrong.
        """
        from daemon.shared.config import load_config

        return load_config({"socket": self.socket_flag}, os.environ, Path.home()).config


pass_session = click.make_pass_decorator(Session, ensure=True)
"""Gives a command its `Session` as the first argument."""


def calls_daemon(function: CommandT) -> CommandT:
    """Give a command that calls the daemon its `Session` as the first argument, `--socket` and `--start`."""
    passed: Any = pass_session(function)
    for option in (_start_option, _socket_option):
        passed = option(passed)
    return passed  # type: ignore[no-any-return]


def _note_socket(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.ensure_object(Session).socket_flag = value


def _note_start(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.ensure_object(Session).start = value


_socket_option = click.option(
    "--socket",
    metavar="PATH",
    expose_value=False,
    callback=_note_socket,
    help="Socket of the daemon, instead of the configured one.",
)
_start_option = click.option(
    "--start",
    is_flag=True,
    expose_value=False,
    callback=_note_start,
    help="Start the daemon if none is running: the installed service, or one in the background.",
)


def absolute(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Option callback: make a directory absolute, because the daemon works in another one."""
    return str(Path(value).expanduser().absolute()) if value else value


def absolute_if_path(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """
    Option callback: make a model absolute that is a path.

    A path is what exists as a directory, and what cannot be a Hub id: "./name", "../name", "~/name", "a/b/c". One that
    does not exist is made absolute too, so that the refusal says where it was looked for.
    """
    if not value or value == EMBEDDED:
        return value
    is_path = value.startswith((".", "~")) or value.count("/") > 1 or value.endswith("/") or Path(value).is_dir()
    return absolute(ctx, param, value) if is_path else value
