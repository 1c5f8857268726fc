"""The socket and the log file of the installed service, which can differ from those that this shell would use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from daemon.shared.config import ENV_PREFIX, ConfigError
from daemon.shared.config_sources import load_config

_SOCKET, _LOG = ENV_PREFIX + "SOCKET", ENV_PREFIX + "LOG_FILE"


class ServicePaths(NamedTuple):
    """
    Paths of a daemon.

    Attributes:
        socket: Where it listens.
        log: Its log file; None if it logs to stderr.
    """

    socket: Path
    log: Path | None


def service_paths(environment: Mapping[str, str], home: Path, default_log: Path | None = None) -> ServicePaths:
    """
    Return the paths that a daemon uses.

    A configuration that the daemon would refuse raises nothing here: the daemon itself reports what is wrong with it,
    and the service can still be inspected and stopped.

    Args:
        environment: The daemon's environment, as its plist sets it.
        home: The user's home directory.
        default_log: The log file if the configuration names none, as an installation would set it.
    """
    default_socket = home / ".mlx-sidecar" / "sidecar.sock"
    try:
        resolved = load_config({}, environment, home)
    except ConfigError:
        log = environment.get(_LOG)
        return ServicePaths(Path(environment.get(_SOCKET, default_socket)), Path(log) if log else default_log)
    # The default of `Config` looks at this process's environment, not at the service's.
    socket = default_socket if resolved.origins["socket"] == "default" else resolved.config.socket
    return ServicePaths(socket, default_log if resolved.origins["log_file"] == "default" else resolved.config.log_file)
