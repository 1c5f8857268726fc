"""Readiness of the service: what launchd and the daemon say of it, and the wait until it serves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from daemon.launchd.agent import LABEL, Agent
from daemon.launchd.errors import ServiceError
from daemon.launchd.job import Job
from daemon.launchd.launchctl import PATIENCE_SECONDS, Launchctl
from daemon.launchd.logs import LogTail
from daemon.shared.observed_time import polls

POLL_SECONDS = 0.1
EX_CONFIG = "78"
"""What launchd gives as exit status of a program that it could not start."""


class Patience:
    """
    Waits for the service.

    Args:
        launchctl: The way to launchd.
        look: Returns what answers on a socket.
        wait: Most seconds to wait for a daemon to serve.
    """

    def __init__(self, launchctl: Launchctl, look: Callable[[Path], Serving | None], wait: float) -> None:
        self._launchctl = launchctl
        self._look = look
        self._wait = wait

    def until(self, condition: Callable[[Job | None], bool], failure: str) -> Job | None:
        """
        Wait until launchd's job is as it should be, and return it; None if it is not loaded.

        Raises:
            ServiceError: If it takes longer than launchd gives a service to exit; the text begins with `failure`.
        """
        for _ in polls(PATIENCE_SECONDS, POLL_SECONDS):
            if condition(job := self._job()):
                return job
        raise ServiceError(f"{failure} within {PATIENCE_SECONDS} s; see: mlx-sidecar service status")

    def until_serving(self, agent: Agent, socket: Path, tail: LogTail, runs: int) -> None:
        """
        Wait until the job serves.

        Args:
            agent: What was started.
            socket: Where it should serve.
            tail: Tells what it prints before it has a log.
            runs: How often launchd had started it before.

        Raises:
            ServiceError: If it ends instead, or does not serve in time.
        """
        first: int | None = None
        for _ in polls(self._wait, POLL_SECONDS):
            job = self._job()
            if job is None:
                raise ServiceError("launchd has dropped the service; see: mlx-sidecar service logs")
            first = first or job.pid
            ended = job.pid is None and job.runs > runs and job.last_exit is not None
            if ended or (first is not None and job.pid != first):
                raise ServiceError(_obituary(agent, job, tail))
            if is_ready(job, self._look(socket)):
                return
        raise ServiceError(f"it does not serve after {self._wait:g} s; see: mlx-sidecar service logs")

    def _job(self) -> Job | None:
        found = self._launchctl.find(LABEL)
        return found[1] if found else None


def _obituary(agent: Agent, job: Job, tail: LogTail) -> str:
    text = f"the daemon ended as soon as it was started (last exit: {job.last_exit})"
    if said := tail.read():
        text += f'; it said: "{said}"'
    elif (job.last_exit or "").partition(":")[0] == EX_CONFIG:
        text += f"; launchd could not start {agent.program[0]}, or write {agent.stderr}"
    return f"{text}. launchd tries again after a while; to end that, run: mlx-sidecar service stop"


class Serving(NamedTuple):
    """What answers on the socket; `ready` as in Stats: the engine has its libraries and takes work."""

    pid: int
    version: str
    ready: bool


@dataclass(frozen=True, slots=True)
class Status:
    """
    The service as it is now.

    Attributes:
        plist: The installed file; None if there is none.
        domain: launchd's domain that it is loaded in; None if it is not.
        job: What launchd knows of it; None if it is not loaded.
        socket: Where it serves, or would.
        serving: What answers there, be it the service or not; None if nothing does.
        homebrew: Whether Homebrew has a service of its own loaded.
        log: The daemon's log; None if it goes to stderr.
        stderr: File of launchd's for what is printed before there is a log.
    """

    plist: Path | None
    domain: str | None
    job: Job | None
    socket: Path
    serving: Serving | None
    homebrew: bool
    log: Path | None
    stderr: Path

    @property
    def ready(self) -> bool:
        """Whether the service itself serves, and not another daemon in its place."""
        return self.job is not None and is_ready(self.job, self.serving)


def is_ready(job: Job, serving: Serving | None) -> bool:
    """Tell whether what answers is the process of a job, and takes work."""
    return serving is not None and serving.ready and serving.pid == job.pid
