"""What the commands of one invocation share: how to reach the daemon."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from daemon.config import Config, load_config

if TYPE_CHECKING:
    from mlx_sidecar import Client

EMBEDDED = "embedded"
"""The model that the daemon brings along."""


def _connect(socket: Path) -> Client:
    from mlx_sidecar import Client  # brings grpc: not for commands that do not call

    return Client(socket)


class Session:
    """
    One invocation. Tests give it a `connect` that returns a fake client.

    Attributes:
        socket_flag: `--socket` of the group, as written; None if it was not given.
    """

    def __init__(self, connect: Callable[[Path], Client] = _connect) -> None:
        self._connect = connect
        self.socket_flag: str | None = None

    def client(self) -> Client:
        """
        Return a client of the socket that the flag or the configuration names; the caller closes it.

        Raises:
            ConfigError: If the configuration is wrong.
        """
        return self._connect(self.config().socket)

    def config(self) -> Config:
        """
        Return the configuration that this invocation sees; the daemon may have been started with other flags.

        Raises:
            ConfigError: If it is wrong.
        """
        return load_config({"socket": self.socket_flag}, os.environ, Path.home()).config


pass_session = click.make_pass_decorator(Session, ensure=True)
"""Gives a command its `Session` as the first argument."""


def absolute_if_directory(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Option callback: make an existing directory absolute, because the daemon works in another one."""
    if value and value != EMBEDDED and Path(value).is_dir():
        return str(Path(value).absolute())
    return value
