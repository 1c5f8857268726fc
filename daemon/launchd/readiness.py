"""
Readiness of a service: its state as launchd and its process report it, and the wait until it serves.

The service is ready if the process that answers on the socket is the process of launchd's job, and its engine takes
work. Another daemon on the same socket does not count. A process of `mlx-sidecar join` has no socket: it is found by a
file (`shared/presence.py`), and is ready once it listens.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from daemon.launchd.agent import DAEMON, Agent, Kind
from daemon.launchd.errors import ServiceError
from daemon.launchd.job import Job
from daemon.launchd.launchctl import LAUNCHCTL_TIMEOUT_SECONDS, Launchctl
from daemon.launchd.logs import LogTail
from daemon.shared.machine_faults import MAC_PRIVACY
from daemon.shared.observed_time import polls

POLL_SECONDS = 0.1
EX_CONFIG = "78"
"""Exit status that launchd gives to a program that it could not start."""
_KEPT_OUT = "macOS keeps services out of Documents, Desktop, Downloads and other disks: install mlx-sidecar elsewhere"


class Serving(NamedTuple):
    """
    The daemon that answers on a socket, or the process that listens as a rank of a group.

    Attributes:
        pid: Its process.
        version: Its version.
        ready: Whether its engine takes work, as in Stats; of a rank always true.
        began: When it began, in seconds since 1970.
    """

    pid: int
    version: str
    ready: bool
    began: float


def is_ready(job: Job, serving: Serving | None) -> bool:
    """Tell whether the daemon that answers is the process of a job, and takes work."""
    return serving is not None and serving.ready and serving.pid == job.pid


@dataclass(frozen=True, slots=True)
class Status:
    """
    State of the service at one moment.

    Attributes:
        plist: The installed file; None if there is none.
        domain: launchd's domain that it is loaded in; None if it is not loaded.
        job: launchd's record of it; None if it is not loaded.
        socket: Where it serves, or would; None of a rank.
        address: Where it listens as a rank, or would; empty of the daemon.
        serving: The daemon that answers there, the service's or another; None if none does.
        homebrew: Whether Homebrew has a service of its own loaded.
        log: The daemon's log; None if it goes to stderr.
        stderr: The file that launchd gives the daemon for output from before it has a log.
    """

    plist: Path | None
    domain: str | None
    job: Job | None
    socket: Path | None
    address: str
    serving: Serving | None
    homebrew: bool
    log: Path | None
    stderr: Path

    @property
    def ready(self) -> bool:
        """Whether the service itself serves, and not another daemon in its place."""
        return self.job is not None and is_ready(self.job, self.serving)


class ServiceWaiter:
    """
    Waits until launchd's job has reached a state.

    Args:
        launchctl: Access to launchd.
        look: Returns the process that is found by a path; None if there is none.
        timeout: Most seconds to wait until it serves.
        kind: What the job runs.
    """

    def __init__(
        self, launchctl: Launchctl, look: Callable[[Path], Serving | None], timeout: float, kind: Kind = DAEMON
    ) -> None:
        self._launchctl = launchctl
        self._kind = kind
        self._look = look
        self._timeout = timeout

    def until(
        self, condition: Callable[[Job | None], bool], failure: str, seconds: float = LAUNCHCTL_TIMEOUT_SECONDS
    ) -> Job | None:
        """
        Wait until a condition holds for the job, and return the job; None if it is not loaded.

        Args:
            condition: Tells whether the wait is over.
            failure: How the error's text begins.
            seconds: Most seconds to wait; by default more than launchd gives a service to exit.

        Raises:
            ServiceError: If it takes longer.
        """
        for _ in polls(seconds, POLL_SECONDS):
            if condition(job := self._job()):
                return job
        raise ServiceError(f"{failure} within {seconds:g} s; see: {self._kind.advice('status')}")

    def until_serving(self, agent: Agent, place: Path, tail: LogTail, runs: int) -> None:
        """
        Wait until the job serves.

        Args:
            agent: The agent that was started.
            place: The path by which it is found.
            tail: Reads the output from before it has a log.
            runs: How often launchd had started it before.

        Raises:
            ServiceError: If it ends instead, or does not serve in time.
        """
        first_pid: int | None = None
        for _ in polls(self._timeout, POLL_SECONDS):
            job = self._job()
            if job is None:
                raise ServiceError(f"launchd has dropped the service; see: {self._kind.advice('logs')}")
            first_pid = first_pid or job.pid
            # `last_exit` alone proves nothing: it can be that of a run before this start.
            ended = job.pid is None and job.runs > runs and job.last_exit is not None
            if ended or (first_pid is not None and job.pid != first_pid):
                raise ServiceError(_early_exit_text(agent, job, tail))
            if is_ready(job, self._look(place)):
                return
        raise ServiceError(
            f"it does not {self._kind.works} after {self._timeout:g} s; see: {self._kind.advice('logs')}"
        )

    def _job(self) -> Job | None:
        loaded = self._launchctl.find(self._kind.label)
        return loaded[1] if loaded else None


def _early_exit_text(agent: Agent, job: Job, tail: LogTail) -> str:
    text = f"{agent.kind.process} ended as soon as it was started (last exit: {job.last_exit})"
    if output := tail.read():
        text += f'; it said: "{output}"'
    elif (job.last_exit or "").partition(":")[0] == EX_CONFIG:
        text += f"; launchd could not start {agent.program[0]}, or write {agent.stderr}"
    if tail.mentions(os.strerror(errno.EPERM)):
        # A Python that may not read its own `pyvenv.cfg` says so some lines before its last.
        text += f"; {_KEPT_OUT}, or {MAC_PRIVACY}"
    return f"{text}. launchd tries again after a while; to end that, run: {agent.kind.advice('stop')}"
