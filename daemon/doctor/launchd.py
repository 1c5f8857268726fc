"""Checks of the installed service: its state, its program, its log, and the exit timeout against the drain."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from daemon.doctor.finding import Finding, failed, ok, skipped, warning
from daemon.doctor.places import log_file
from daemon.launchd.agent import RESERVE_SECONDS, read
from daemon.launchd.errors import ServiceError
from daemon.launchd.job import Job
from daemon.launchd.launchctl import PROGRAM
from daemon.launchd.readiness import Status
from daemon.launchd.service import Service
from daemon.shared.config import ConfigError
from daemon.shared.config_sources import load_config

INSTALL = "run: mlx-sidecar service install"


def service(installed: Service, home: Path) -> Iterator[Finding]:
    """Check the installed service; skipped without launchd, or if none is installed."""
    if shutil.which(PROGRAM) is None:
        yield skipped("service", "launchd is a part of macOS")
        return
    try:
        status = installed.status()
    except ServiceError as error:
        yield failed("service", str(error), INSTALL)
        return
    if status.plist is None:
        yield skipped("service", "not installed; " + INSTALL)
        return
    yield _state(status)
    yield from _program(status.plist)
    if status.log is not None:
        yield replace(log_file(status.log), check="service log")
    if status.job is not None:
        yield _exit_timeout(status.plist, status.job, home)


def _state(status: Status) -> Finding:
    job = status.job
    if job is None:
        return warning("service", "installed, but not loaded", "run: mlx-sidecar service start")
    found = f"{status.domain}, {job.state}, pid {job.pid or 'none'}, last exit {job.last_exit or 'none'}"
    if not status.ready:
        return failed("service", f"{found}; it does not serve {status.socket}", _remedy(job))
    return ok("service", f"{found}, serves {status.socket}")


def _remedy(job: Job) -> str:
    if job.pid is not None:
        return "see: mlx-sidecar service logs"
    if job.last_exit == "0":  # it was told to end, and launchd leaves it so
        return "run: mlx-sidecar service start"
    # It ended at its start, before it had a log: its configuration, a limit or a directory is not as it should be.
    return "see: mlx-sidecar service logs --stderr"


def _program(plist: Path) -> Iterator[Finding]:
    agent = read(plist)
    if agent is not None and not Path(agent.program[0]).exists():
        yield failed("service program", f"{agent.program[0]} is gone", INSTALL)


def _exit_timeout(plist: Path, job: Job, home: Path) -> Finding:
    agent = read(plist)
    try:
        drain = load_config({}, agent.environment if agent else {}, home).config.drain_timeout
    except ConfigError as error:
        return failed("exit timeout", f"the service refuses its configuration: {error}", "mend it; launchd tries again")
    if job.exit_timeout is None:
        return warning("exit timeout", "launchctl print does not tell it", "report this with your version of macOS")
    found = f"{job.exit_timeout} s, and a drain takes up to {drain:g} s"
    if job.exit_timeout < drain + RESERVE_SECONDS:
        most = max(job.exit_timeout - RESERVE_SECONDS, 0)
        return failed("exit timeout", found, f"set drain_timeout to at most {most}, or install the service again")
    return ok("exit timeout", found)
