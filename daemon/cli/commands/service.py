"""`mlx-sidecar service`: installs, controls and shows the daemon, or `join`, as a service of macOS under launchd."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from daemon.cli.exit_codes import NOT_RUNNING
from daemon.cli.flags import config_flags, resolve
from daemon.cli.output.formatting import examples, print_json
from daemon.cli.serving import look
from daemon.cli.session import Session, pass_session
from daemon.launchd import agent
from daemon.launchd.errors import ServiceError
from daemon.launchd.launchctl import Launchctl
from daemon.launchd.logs import follow, last_lines
from daemon.launchd.readiness import Serving, Status
from daemon.launchd.service import Service
from daemon.shared import presence


@click.group("service", epilog=examples("mlx-sidecar service install", "mlx-sidecar service logs -f"))
@click.pass_context
def command(ctx: click.Context) -> None:
    """
    Run the daemon as a service of macOS: at each login, and again when it crashes.

    With --join, the service is `mlx-sidecar join` instead, which makes this Mac a rank of a group. A Mac can have both.

    On Linux, a systemd user unit does that: see docs/linux.md of the project.
    """
    if ctx.ensure_object(Session).socket_flag is not None and ctx.invoked_subcommand != "install":
        raise click.UsageError("--socket belongs to service install; the installed service has its own.")


_wait = click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Seconds to wait until it serves.",
)
_join = click.option(
    "--join", "kind", flag_value="join", callback=lambda _ctx, _name, value: agent.JOIN if value else agent.DAEMON,
    help="Mean the service that runs `mlx-sidecar join`.",
)  # fmt: skip
_json = click.option("--json", "as_json", is_flag=True, help="Print the state of the service as JSON.")


@command.command("install", epilog=examples("mlx-sidecar service install --max-models 2 --model-ttl 30m"))
@config_flags
@_join
@_wait
@_json
@pass_session
def install(session: Session, /, kind: agent.Kind, wait: float, as_json: bool, **flags: object) -> None:
    """
    Install the service, or update it, and wait until it serves.

    These flags and the MLX_SIDECAR_* and Hub variables of this shell are kept; config.toml is read at each start.
    """
    if user := os.environ.get("SUDO_USER"):
        raise ServiceError(f"the service belongs to a user, not to root; as {user}, run it without sudo")
    resolved = resolve(session.socket_flag, flags)
    if kind is agent.JOIN:
        from daemon.server.group.handshake import joining_key

        joining_key(resolved.config)

    def make(background: bool) -> agent.Agent:
        return agent.of_this_environment(resolved, os.environ, Path.home(), background=background, kind=kind)

    service, before = _service(kind, wait), _variables(kind)
    changed = service.install(make)
    _tell(service, "Installed" if changed else "Installed already", as_json)
    if lost := sorted(before - _variables(kind)):
        text = "install again with them, or set them in config.toml"
        click.echo(f"No longer set, as they were in the service before: {', '.join(lost)}; {text}.", err=True)
    if os.environ.get("HF_TOKEN"):
        click.echo("HF_TOKEN is not kept: log in with `hf auth login`, so that the service finds your token.", err=True)


def _variables(kind: agent.Kind) -> set[str]:
    """Return the names of the variables that the installed service has; none without a plist of this program."""
    with suppress(ServiceError):
        installed = agent.read(agent.plist_path(Path.home(), kind))
        return set(installed.environment) if installed else set()
    return set()


@command.command("uninstall", epilog=examples("mlx-sidecar service uninstall"))
@_join
def uninstall(kind: agent.Kind) -> None:
    """Drain the service, end it and remove it. Logs, configuration and downloaded models stay."""
    done = _service(kind).uninstall()
    click.echo("Uninstalled." if done else "The service was not installed.")


@command.command("start", epilog=examples("mlx-sidecar service start", "mlx-sidecar service start --wait 300"))
@_join
@_wait
@_json
def start(kind: agent.Kind, wait: float, as_json: bool) -> None:
    """Start the installed service and wait until it serves."""
    service = _service(kind, wait)
    changed = service.start()
    _tell(service, "Started" if changed else "Running already", as_json)


@command.command("stop", epilog=examples("mlx-sidecar service stop"))
@_join
def stop(kind: agent.Kind) -> None:
    """Drain the service and end it, until the next login or `start`."""
    done = _service(kind).stop()
    click.echo("Stopped." if done else "The service was not running.")


@command.command("restart", epilog=examples("mlx-sidecar service restart"))
@_join
@_wait
@_json
def restart(kind: agent.Kind, wait: float, as_json: bool) -> None:
    """Drain the service, start it again and wait until it serves."""
    service = _service(kind, wait)
    service.restart()
    _tell(service, "Restarted", as_json)


@command.command("status", epilog=examples("mlx-sidecar service status", "mlx-sidecar service status --join --json"))
@_join
@_json
def status(kind: agent.Kind, as_json: bool) -> None:
    """Show what launchd knows of the service and whether it serves. Exit status 3 if it does not."""
    state = _service(kind).status()
    if as_json:
        print_json(_plain(state))
    else:
        click.echo(_shown(state, kind))
    if not state.ready:
        raise SystemExit(NOT_RUNNING)


@command.command("logs", epilog=examples("mlx-sidecar service logs -f", "mlx-sidecar service logs --stderr"))
@click.option("-f", "--follow", "following", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(min=0), default=50, show_default=True, help="Lines to begin with.")
@_join
@click.option("--stderr", is_flag=True, help="Show what was printed before there was a log: tracebacks, refusals.")
def logs(following: bool, lines: int, kind: agent.Kind, stderr: bool) -> None:
    """Print the service's log."""
    state = _service(kind).status()
    path = state.stderr if stderr or state.log is None else state.log
    if not following and not path.exists():
        raise ServiceError(f"there is no log at {path} yet")
    for line in _read(path, lines, following):
        click.echo(line)


def _read(path: Path, lines: int, following: bool) -> Iterator[str]:
    """Yield lines of a log. Printing them is no part of it: a reader that goes away is no fault of the log."""
    try:
        last, end = last_lines(path, lines)
        yield from last
        yield from follow(path, end) if following else ()
    except OSError as error:
        raise ServiceError(f"{path} cannot be read ({error.strerror})") from None


def _service(kind: agent.Kind, wait: float = 0.0) -> Service:
    return Service(Launchctl(), Path.home(), look if kind is agent.DAEMON else look_for_rank, wait, kind)


def look_for_rank(file: Path) -> Serving | None:
    """Return the `mlx-sidecar join` that listens and holds a file; None if none does."""
    found = presence.find(file)
    return Serving(found.pid, found.version, True, presence.began(file)) if found else None


def _tell(service: Service, done: str, as_json: bool) -> None:
    state = service.status()
    if as_json:
        print_json(_plain(state))
    elif state.serving:
        what = f"serves on {state.socket}" if state.socket else f"listens on {state.address}"
        click.echo(f"{done}: version {state.serving.version} {what} (pid {state.serving.pid}).")
    else:
        click.echo(f"{done}; it did not answer just now: see mlx-sidecar service status")


def _plain(state: Status) -> dict[str, Any]:
    serving = state.serving._asdict() if state.serving else None
    return asdict(state) | {"serving": serving, "ready": state.ready}


def _shown(state: Status, kind: agent.Kind) -> str:
    job, serving = state.job, state.serving
    rows = [
        ("installed", str(state.plist or f"no; run: {kind.advice('install')}")),
        ("loaded", f"{state.domain}/{kind.label}, {job.state}" if job else f"no; run: {kind.advice('start')}"),
        ("process", str(job.pid or "none") if job else "none"),
        ("last exit", (job.last_exit or "none since it was loaded") if job else "unknown"),
        ("exit timeout", f"{job.exit_timeout} s" if job and job.exit_timeout is not None else "unknown"),
        ("socket", str(state.socket)) if state.socket else ("address", state.address or "none: set group_listen"),
        (
            "serving" if state.socket else "listening",
            f"version {serving.version}, pid {serving.pid}" if serving else "no",
        ),
        ("log", str(state.log or "none: it logs to stderr")),
        ("stderr", str(state.stderr)),
    ]
    if serving and not serving.ready:
        rows.append(("note", "its engine is not ready; see: mlx-sidecar stats"))
    if serving and (not job or serving.pid != job.pid):
        other = "another daemon" if state.socket else "another mlx-sidecar join"
        rows.append(
            ("note", f"{other} (pid {serving.pid}) has the {'socket' if state.socket else 'address'}, not the service")
        )
    if state.homebrew:
        rows.append(("note", "Homebrew has a service of its own: brew services info mlx-sidecar"))
    return "\n".join(f"{label:<13} {text}" for label, text in rows)
