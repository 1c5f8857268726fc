"""The socket, the state and the log file of an installed service: they can differ from those of this shell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from daemon.shared.config import ENV_PREFIX, ConfigError
from daemon.shared.config_sources import load_config

_SOCKET, _LOG = ENV_PREFIX + "SOCKET", ENV_PREFIX + "LOG_FILE"
_STATE_DIR, _LISTEN = ENV_PREFIX + "STATE_DIR", ENV_PREFIX + "GROUP_LISTEN"


class ServicePaths(NamedTuple):
    """
    Paths of a daemon.

    Attributes:
        socket: Where it listens.
        log: Its log file; None if it logs to stderr.
        state_dir: Its state directory.
        address: Where it listens as a rank of a group; empty if that is not configured.
    """

    socket: Path
    log: Path | None
    state_dir: Path
    address: str


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
    default_state = home / ".mlx-sidecar"
    default_socket = default_state / "sidecar.sock"
    try:
        resolved = load_config({}, environment, home)
    except ConfigError:
        log = environment.get(_LOG)
        socket = Path(environment.get(_SOCKET, default_socket))
        state_dir = Path(environment.get(_STATE_DIR, default_state))
        return ServicePaths(socket, Path(log) if log else default_log, state_dir, environment.get(_LISTEN, ""))
    # The default of `Config` looks at this process's environment, not at the service's.
    socket = default_socket if resolved.origins["socket"] == "default" else resolved.config.socket
    log_file = default_log if resolved.origins["log_file"] == "default" else resolved.config.log_file
    state_dir = default_state if resolved.origins["state_dir"] == "default" else resolved.config.state_dir
    return ServicePaths(socket, log_file, state_dir, resolved.config.group_listen)
