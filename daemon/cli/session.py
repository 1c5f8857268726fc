"""The state of one invocation of the command line: global options, and access to the daemon."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from daemon.shared.config_values import parse_duration

if TYPE_CHECKING:
    from daemon.shared.config import Config
    from mlx_sidecar import Client

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

EMBEDDED = "embedded"
"""Name of the model that is part of the daemon's package."""


def _connect(socket: Path) -> Client:
    from mlx_sidecar import Client  # imports grpc, which commands without a call do not need

    return Client(socket)


def _ensure(session: Session, socket: Path, ask: bool) -> None:
    from daemon.cli.starting import ensure

    ensure(session, socket, ask)


class Session:
    """
    One invocation of the command line.

    Args:
        connect: Returns a client of a socket. Tests pass a fake client.
        ensure: Starts a daemon if that is requested. Tests pass a function that starts none.

    Attributes:
        socket_flag: `--socket`, before or after the command, as written; None if it was not given.
        as_json: Whether `--json` was given.
        start: Whether `--start` was given, which starts a daemon if none runs.
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
            ask: Whether to ask, on a terminal, to start a daemon if none runs. Only for commands that are useful with
                a daemon that has just started.

        Raises:
            ConfigError: If the configuration is wrong, and only it names the socket.
            StartError: If a daemon was started and does not serve.
        """
        socket = self.socket()
        if self.start or ask:
            self._ensure(self, socket, ask)
        return self._connect(socket)

    def socket(self) -> Path:
        """
        Return the socket of a flag, of the variable or of the configuration, in this order.

        The configuration is read only if neither of the others names a socket: a mistake in config.toml stops no
        command that has a socket already.

        Raises:
            ConfigError: If the value is wrong.
        """
        from daemon.shared.config_sources import given_value

        given = given_value("socket", self.socket_flag, os.environ, Path.home())
        return self.config().socket if given is None else given

    def state_dir(self) -> Path:
        """
        Return the directory of config.toml, which the file itself cannot change.

        Raises:
            ConfigError: If its variable has a wrong value.
        """
        from daemon.shared.config import default_state_dir
        from daemon.shared.config_sources import given_value

        return given_value("state_dir", None, os.environ, Path.home()) or default_state_dir()

    def config(self) -> Config:
        """
        Return the configuration of this shell. A running daemon can have another, from flags at its start.

        Raises:
            ConfigError: If it is wrong.
        """
        from daemon.shared.config_sources import load_config

        return load_config({"socket": self.socket_flag}, os.environ, Path.home()).config


pass_session = click.make_pass_decorator(Session, ensure=True)
"""Decorator: passes the `Session` as the first argument."""


def calls_daemon(function: CommandT) -> CommandT:
    """Decorate a command that calls the daemon: `Session` as its first argument, and `--socket` and `--start`."""
    return _start_option(knows_socket(function))


def knows_socket(function: CommandT) -> CommandT:
    """Decorate a command that is of no use just after a start: `Session` as its first argument, and `--socket`."""
    passed: Any = pass_session(function)
    return _socket_option(passed)  # type: ignore[no-any-return]


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
    """Option callback: make a path absolute, because the daemon has another working directory."""
    if not value:
        return value
    try:
        return str(Path(value).expanduser().absolute())
    except RuntimeError:
        user = value[1:].partition("/")[0]
        if not user:
            raise  # nothing tells this user's own home directory
        raise click.BadParameter(f"{value!r}: there is no user {user!r}; your own home directory is ~/") from None
    except FileNotFoundError:
        text = f"{value!r} is relative, and the working directory was removed; give an absolute path"
        raise click.BadParameter(text) from None


def absolute_if_path(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """
    Option callback: make a model's path absolute, and leave a Hub id as it is.

    A path is a name of an existing directory, or a name that cannot be a Hub id: "./name", "../name", "~/name",
    "a/b/c". A path that does not exist is made absolute too, so that the refusal shows where the daemon looked.
    """
    if not value or value == EMBEDDED:
        return value
    is_path = value.startswith((".", "~")) or value.count("/") > 1 or value.endswith("/")
    # Not Path.is_dir: it raises for a long name, and in a working directory that this user may not search.
    return absolute(ctx, param, value) if is_path or os.path.isdir(value) else value


def seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Option callback: return a duration such as "10m" in seconds."""
    try:
        return None if value is None else parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} must be {error}") from None
