"""The LaunchAgent: what launchd is told about the daemon, and what is kept of the environment it was installed from."""

from __future__ import annotations

import os
import plistlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.launchd.errors import AgentError
from daemon.shared.config import ENV_PREFIX, Resolved

LABEL = "com.mlx-sidecar.daemon"
EXIT_SECONDS = 60
"""Seconds from SIGTERM to SIGKILL. launchd gives a user's agents no more, and only 5 if their plist says nothing."""
RESERVE_SECONDS = 10
"""Of that time, so much is for what follows the drain: the engine's end, the last answers, the socket."""
THROTTLE_SECONDS = 10
OPEN_FILES = 8192
LOG_NAME = "daemon.log"
STDERR_NAME = "launchd.log"

KEPT_VARIABLES = (
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_SERVICE_NAME",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
)
"""Variables of others: which models the daemon finds, where spans go. Never a token: the file is readable."""


@dataclass(frozen=True, slots=True)
class Agent:
    """
    One LaunchAgent.

    Attributes:
        program: Command line; absolute paths, because launchd knows no shell.
        environment: Variables that the daemon gets on top of launchd's own few.
        stderr: File that gets what is printed before there is a log: tracebacks, refusals to start.
        background: Whether it runs without anybody logged in at the screen (a Mac that is reached by ssh).
    """

    program: tuple[str, ...]
    environment: Mapping[str, str]
    stderr: Path
    background: bool = False

    def properties(self) -> dict[str, Any]:
        """Return the property list, in the order in which a reader wants it."""
        tree: dict[str, Any] = {
            "Label": LABEL,
            "ProgramArguments": list(self.program),
            "EnvironmentVariables": dict(sorted(self.environment.items())),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": THROTTLE_SECONDS,
            "ExitTimeOut": EXIT_SECONDS,
            "ProcessType": "Interactive",
            "SoftResourceLimits": {"NumberOfFiles": OPEN_FILES},
            "Umask": 0o077,
            "StandardOutPath": str(self.stderr),
            "StandardErrorPath": str(self.stderr),
        }
        if self.background:
            # Without it an agent belongs to a login at the screen, and launchd refuses it elsewhere (134).
            tree["LimitLoadToSessionType"] = "Background"
        return tree

    def render(self) -> bytes:
        """Return the plist file."""
        return plistlib.dumps(self.properties(), sort_keys=False)


def plist_path(home: Path) -> Path:
    """Return where launchd looks for it at login."""
    return home / "Library" / "LaunchAgents" / f"{LABEL}.plist"


def log_directory(home: Path) -> Path:
    """Return where its logs go unless the configuration says otherwise."""
    return home / "Library" / "Logs" / "mlx-sidecar"


def of_this_environment(
    resolved: Resolved, environ: Mapping[str, str], home: Path, *, background: bool = False
) -> Agent:
    """
    Return the agent that runs this installation with the settings of this shell.

    What variables and flags say is kept as variables; config.toml and the defaults are read anew at each start.

    Raises:
        AgentError: If a drain could outlast the time that launchd gives.
    """
    longest = EXIT_SECONDS - RESERVE_SECONDS
    if resolved.config.drain_timeout > longest:
        raise AgentError(
            f"drain_timeout from {resolved.origins['drain_timeout']} is {resolved.config.drain_timeout:g} s, but "
            f"launchd kills a service {EXIT_SECONDS} s after asking it to stop; set drain_timeout to at most {longest}."
        )
    kept = {
        ENV_PREFIX + key.upper(): as_text(getattr(resolved.config, key))
        for key, origin in resolved.origins.items()
        if origin.startswith((ENV_PREFIX, "--"))
    }
    logs = log_directory(home)
    if resolved.origins["log_file"] == "default":
        kept[ENV_PREFIX + "LOG_FILE"] = str(logs / LOG_NAME)
    kept |= {name: environ[name] for name in KEPT_VARIABLES if environ.get(name)}
    # -P: a folder named "daemon" in the working directory must not win over the installed package.
    program = (os.path.abspath(sys.executable), "-P", "-m", "daemon", "serve")
    return Agent(program, kept, logs / STDERR_NAME, background)


def as_text(value: object) -> str:
    """Return a configuration value as the text that its variable would hold."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return os.pathsep.join(map(str, value))
    return str(value)


def read(plist: Path) -> Agent | None:
    """
    Return the agent of an installed plist; None if there is no such file.

    Raises:
        AgentError: If it is not one of ours.
    """
    try:
        tree = plistlib.loads(plist.read_bytes())
        return Agent(
            tuple(tree["ProgramArguments"]),
            dict(tree.get("EnvironmentVariables", {})),
            Path(tree["StandardErrorPath"]),
            tree.get("LimitLoadToSessionType") == "Background",
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, plistlib.InvalidFileException, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AgentError(
            f"{plist} is not a plist of this program ({error}); move it away, or run: mlx-sidecar service uninstall"
        ) from None
