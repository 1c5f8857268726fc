"""A LaunchAgent's plist: the command line, environment and limits of a service, written from a shell's settings."""

from __future__ import annotations

import os
import plistlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

from daemon.launchd.errors import AgentError
from daemon.shared.config import ENV_PREFIX, KEYS
from daemon.shared.config_sources import Resolved
from daemon.shared.process_setup import place

EXIT_SECONDS = 60
"""Seconds from SIGTERM to SIGKILL: the most that launchd grants a user's agent. Without this key it grants 5."""
RESERVE_SECONDS = 10
"""The part of EXIT_SECONDS for the work after the drain: the engine's end, the last answers, the socket."""
THROTTLE_SECONDS = 10
OPEN_FILES = 8192

_OF_HOMEBREW = re.compile(r"^(/.*/)Cellar/([^/]+)/[^/]+/")
"""How paths begin of what a version of a formula installed, in any prefix of Homebrew."""

KEPT_VARIABLES = (
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "XDG_CACHE_HOME",
    "HF_TOKEN_PATH",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "HF_HUB_DISABLE_XET",
    "HF_HUB_DOWNLOAD_TIMEOUT",
    "HF_HUB_ETAG_TIMEOUT",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_SERVICE_NAME",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
)
"""
Library variables that the plist keeps: where models and a token are, how they are fetched, where traces go. Never a
token itself: the plist goes into backups.
"""


@dataclass(frozen=True, slots=True)
class Kind:
    """
    What a service runs. A Mac may have one of each kind.

    Attributes:
        label: Its name in launchd.
        command: The command of `mlx-sidecar`.
        option: What `mlx-sidecar service` is told to mean this kind; empty for the daemon.
        log_name: Its log file, if the configuration names none.
        stderr_name: The file for output from before it has a log.
        process: What its process is called.
        works: The verb for a process that does its work.
    """

    label: str
    command: str
    option: str
    log_name: str
    stderr_name: str
    process: str
    works: str

    def advice(self, command: str) -> str:
        """Return the command line of a command of `mlx-sidecar service` for this kind."""
        return f"mlx-sidecar service {command}{self.option}"


DAEMON = Kind("com.mlx-sidecar.daemon", "serve", "", "daemon.log", "launchd.log", "the daemon", "serve")
JOIN = Kind("com.mlx-sidecar.join", "join", " --join", "join.log", "join-launchd.log", "mlx-sidecar join", "listen")
"""The process that makes this Mac a rank of a group."""
KINDS = {kind.label: kind for kind in (DAEMON, JOIN)}


@dataclass(frozen=True, slots=True)
class Agent:
    """
    One LaunchAgent.

    Attributes:
        program: Command line; absolute paths, because launchd runs no shell.
        environment: Variables of the daemon, in addition to launchd's own few.
        stderr: File for output from before the daemon has a log: tracebacks, refusals to start.
        background: Whether it runs without a graphical login, on a Mac that is reached by ssh.
        kind: What it runs.
    """

    program: tuple[str, ...]
    environment: Mapping[str, str]
    stderr: Path
    background: bool = False
    kind: Kind = DAEMON

    def properties(self) -> dict[str, Any]:
        """Return the property list, in reading order."""
        tree: dict[str, Any] = {
            "Label": self.kind.label,
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
            # Without this key an agent belongs to a graphical login; launchd refuses it in other sessions (134).
            tree["LimitLoadToSessionType"] = "Background"
        return tree

    def render(self) -> bytes:
        """Return the plist file."""
        return plistlib.dumps(self.properties(), sort_keys=False)


def plist_path(home: Path, kind: Kind = DAEMON) -> Path:
    """Return the path where launchd looks for the plist at login."""
    return home / "Library" / "LaunchAgents" / f"{kind.label}.plist"


def log_directory(home: Path) -> Path:
    """Return the directory of the services' logs, if the configuration names none."""
    return home / "Library" / "Logs" / "mlx-sidecar"


def of_this_environment(
    resolved: Resolved, environ: Mapping[str, str], home: Path, *, background: bool = False, kind: Kind = DAEMON
) -> Agent:
    """
    Return the agent that runs this installation with the settings of this shell.

    Values of variables and flags are stored in the plist as variables. Values of config.toml and defaults are not: the
    daemon reads them at each start.

    Raises:
        AgentError: If `drain_timeout` is longer than the time that launchd grants, or a value cannot be a variable.
    """
    longest = EXIT_SECONDS - RESERVE_SECONDS
    if kind is DAEMON and resolved.config.drain_timeout > longest:
        raise AgentError(
            f"drain_timeout from {resolved.origins['drain_timeout']} is {resolved.config.drain_timeout:g} s, but "
            f"launchd kills a service {EXIT_SECONDS} s after asking it to stop; set drain_timeout to at most {longest}."
        )
    kept = {
        ENV_PREFIX + key.upper(): _kept(key, resolved, home)
        for key, origin in resolved.origins.items()
        if origin.startswith((ENV_PREFIX, "--"))
    }
    logs = log_directory(home)
    if resolved.origins["log_file"] == "default":
        kept[ENV_PREFIX + "LOG_FILE"] = str(logs / kind.log_name)
    kept |= {name: place(name, environ[name]) for name in KEPT_VARIABLES if environ.get(name)}
    # -P: a folder named "daemon" in the working directory must not win over the installed package.
    program = (_lasting(os.path.abspath(sys.executable)), "-P", "-m", "daemon", kind.command)
    return Agent(program, kept, logs / kind.stderr_name, background, kind)


def _lasting(program: str) -> str:
    """
    Return the name of a program that outlives an upgrade.

    Homebrew has each version in `Cellar/NAME/VERSION` and removes the old one; `opt/NAME` leads to the present one.
    """
    lasting = _OF_HOMEBREW.sub(r"\1opt/\2/", program)
    return lasting if os.path.exists(lasting) else program


def _kept(key: str, resolved: Resolved, home: Path) -> str:
    """Return the text of a setting's variable. The daemon must read the same value of it, or it would not start."""
    value = getattr(resolved.config, key)
    text = as_text(value)
    try:
        same = KEYS[key].metadata["read"](text, True, home) == value
    except ValueError:
        same = False
    if not same:
        raise AgentError(
            f"{key} from {resolved.origins[key]} has a value that a variable cannot hold: {text!r:.80}; "
            "set it in config.toml instead."
        )
    return text


def as_text(value: object) -> str:
    """Return a configuration value as the text of its environment variable."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ",".join(f"{name}={item}" for name, item in value.items())
    if isinstance(value, tuple):
        return (os.pathsep if any(isinstance(item, Path) for item in value) else ",").join(map(str, value))
    return str(value)


def read(plist: Path) -> Agent | None:
    """
    Return the agent of an installed plist; None if there is no such file.

    Raises:
        AgentError: If the file is not a plist of this program.
    """
    try:
        tree = plistlib.loads(plist.read_bytes())
        return Agent(
            tuple(tree["ProgramArguments"]),
            dict(tree.get("EnvironmentVariables", {})),
            Path(tree["StandardErrorPath"]),
            tree.get("LimitLoadToSessionType") == "Background",
            KINDS[tree["Label"]],
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (
        OSError, plistlib.InvalidFileException, ExpatError, ValueError, KeyError, TypeError, AttributeError,
    ) as error:  # fmt: skip
        raise AgentError(
            f"{plist} is not a plist of this program ({error}); move it away, or run: mlx-sidecar service uninstall"
        ) from None
