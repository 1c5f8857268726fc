"""Where the service's daemon listens and logs, which need not be where this shell's daemon would."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from daemon.shared.config import ENV_PREFIX, ConfigError, load_config

_SOCKET, _LOG = ENV_PREFIX + "SOCKET", ENV_PREFIX + "LOG_FILE"


class Addresses(NamedTuple):
    """The socket, and the log file; None if it logs to stderr."""

    socket: Path
    log: Path | None


def addresses(environment: Mapping[str, str], home: Path, log: Path | None = None) -> Addresses:
    """
    Return the addresses of a daemon with this environment.

    `log` is what an installation would add, if nothing else is said.

    A configuration that it would refuse is no obstacle: the daemon says what is wrong with it, and the service can
    still be looked at and stopped.
    """
    default = home / ".mlx-sidecar" / "sidecar.sock"
    try:
        resolved = load_config({}, environment, home)
    except ConfigError:
        said = environment.get(_LOG)
        return Addresses(Path(environment.get(_SOCKET, default)), Path(said) if said else log)
    # The default of `Config` looks at this process's environment, not at the service's.
    socket = default if resolved.origins["socket"] == "default" else resolved.config.socket
    return Addresses(socket, log if resolved.origins["log_file"] == "default" else resolved.config.log_file)
