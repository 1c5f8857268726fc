"""`mlx-sidecar service`: installs, controls and shows the daemon as a service of macOS under launchd."""

from __future__ import annotations

import os
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import click

from daemon.cli.exit_codes import NOT_RUNNING
from daemon.cli.flags import config_flags, resolve
from daemon.cli.output.formatting import examples, print_json
from daemon.cli.session import Session, pass_session
from daemon.launchd import agent
from daemon.launchd.errors import ServiceError
from daemon.launchd.launchctl import Launchctl
from daemon.launchd.logs import follow, last_lines
from daemon.launchd.readiness import Serving, Status
from daemon.launchd.service import Service

LOOK_SECONDS = 1.0


@click.group("service", epilog=examples("mlx-sidecar service install", "mlx-sidecar service logs -f"))
@click.pass_context
def command(ctx: click.Context) -> None:
    """
    Run the daemon as a service of macOS: at each login, and again when it crashes.

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
_json = click.option("--json", "as_json", is_flag=True, help="Print the state of the service as JSON.")


@command.command("install", epilog=examples("mlx-sidecar service install --max-models 2 --model-ttl 30m"))
@config_flags
@_wait
@_json
@pass_session
def install(session: Session, /, wait: float, as_json: bool, **flags: object) -> None:
    """
    Install the service, or update it, and wait until it serves.

    These flags and the MLX_SIDECAR_* and Hub variables of this shell are kept; config.toml is read at each start.
    """
    if user := os.environ.get("SUDO_USER"):
        raise ServiceError(f"the service belongs to a user, not to root; as {user}, run it without sudo")
    resolved = resolve(session.socket_flag, flags)

    def make(background: bool) -> agent.Agent:
        return agent.of_this_environment(resolved, os.environ, Path.home(), background=background)

    service = _service(wait)
    changed = service.install(make)
    _tell(service, "Installed" if changed else "Installed already", as_json)
    if os.environ.get("HF_TOKEN"):
        click.echo("HF_TOKEN is not kept: log in with `hf auth login`, so that the service finds your token.", err=True)


@command.command("uninstall")
@_wait
def uninstall(wait: float) -> None:
    """Drain the service, end it and remove it. Logs, configuration and downloaded models stay."""
    done = _service(wait).uninstall()
    click.echo("Uninstalled." if done else "The service was not installed.")


@command.command("start")
@_wait
@_json
def start(wait: float, as_json: bool) -> None:
    """Start the installed service and wait until it serves."""
    service = _service(wait)
    changed = service.start()
    _tell(service, "Started" if changed else "Running already", as_json)


@command.command("stop")
@_wait
def stop(wait: float) -> None:
    """Drain the service and end it, until the next login or `start`."""
    done = _service(wait).stop()
    click.echo("Stopped." if done else "The service was not running.")


@command.command("restart")
@_wait
@_json
def restart(wait: float, as_json: bool) -> None:
    """Drain the service, start it again and wait until it serves."""
    service = _service(wait)
    service.restart()
    _tell(service, "Restarted", as_json)


@command.command("status")
@_json
def status(as_json: bool) -> None:
    """Show what launchd knows of the service and whether it serves. Exit status 3 if it does not."""
    state = _service(0).status()
    if as_json:
        print_json(_plain(state))
    else:
        click.echo(_shown(state))
    if not state.ready:
        raise SystemExit(NOT_RUNNING)


@command.command("logs", epilog=examples("mlx-sidecar service logs -f", "mlx-sidecar service logs --stderr"))
@click.option("-f", "--follow", "following", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(min=0), default=50, show_default=True, help="Lines to begin with.")
@click.option("--stderr", is_flag=True, help="Show what was printed before there was a log: tracebacks, refusals.")
def logs(following: bool, lines: int, stderr: bool) -> None:
    """Print the service's log."""
    state = _service(0).status()
    path = state.stderr if stderr or state.log is None else state.log
    if not following and not path.exists():
        raise ServiceError(f"there is no log at {path} yet")
    try:
        last, end = last_lines(path, lines)
        for line in chain(last, follow(path, end) if following else ()):
            click.echo(line)
    except OSError as error:
        raise ServiceError(f"{path} cannot be read ({error.strerror})") from None


def _service(wait: float) -> Service:
    return Service(Launchctl(), Path.home(), look, wait)


def look(socket: Path) -> Serving | None:
    """Return the daemon that serves on a socket; None if none answers within a second."""
    from mlx_sidecar import Client, SidecarError

    if not socket.exists():
        return None
    try:
        with Client(socket, timeout=LOOK_SECONDS) as client:
            stats = client.stats()
    except SidecarError:
        return None
    return Serving(stats.daemon.pid, stats.daemon.version, stats.engine.state == "ready")


def _tell(service: Service, done: str, as_json: bool) -> None:
    state = service.status()
    if as_json:
        print_json(_plain(state))
    elif state.serving:
        click.echo(f"{done}: version {state.serving.version} serves on {state.socket} (pid {state.serving.pid}).")


def _plain(state: Status) -> dict[str, Any]:
    serving = state.serving._asdict() if state.serving else None
    return asdict(state) | {"serving": serving, "ready": state.ready}


def _shown(state: Status) -> str:
    job, serving = state.job, state.serving
    rows = [
        ("installed", str(state.plist or "no; run: mlx-sidecar service install")),
        ("loaded", f"{state.domain}/{agent.LABEL}, {job.state}" if job else "no; run: mlx-sidecar service start"),
        ("process", str(job.pid or "none") if job else "none"),
        ("last exit", (job.last_exit or "none since it was loaded") if job else "unknown"),
        ("exit timeout", f"{job.exit_timeout} s" if job and job.exit_timeout is not None else "unknown"),
        ("socket", str(state.socket)),
        ("serving", f"version {serving.version}, pid {serving.pid}" if serving else "no"),
        ("log", str(state.log or "none: it logs to stderr")),
        ("stderr", str(state.stderr)),
    ]
    if serving and not serving.ready:
        rows.append(("note", "its engine is not ready; see: mlx-sidecar stats"))
    if serving and (not job or serving.pid != job.pid):
        rows.append(("note", f"another daemon (pid {serving.pid}) has the socket, not the service"))
    if state.homebrew:
        rows.append(("note", "Homebrew has a service of its own: brew services info mlx-sidecar"))
    return "\n".join(f"{label:<13} {text}" for label, text in rows)
