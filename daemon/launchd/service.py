"""The service: installed, started, stopped and watched. Each verb may be repeated; what is done already is no error."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from daemon import __version__
from daemon.launchd.addresses import addresses
from daemon.launchd.agent import LABEL, LOG_NAME, STDERR_NAME, Agent, log_directory, plist_path, read
from daemon.launchd.errors import LaunchctlError, ServiceError
from daemon.launchd.job import Job
from daemon.launchd.launchctl import PATIENCE_SECONDS, Launchctl
from daemon.launchd.log_tail import LogTail
from daemon.launchd.plist_file import PlistFile

HOMEBREW_LABEL = "homebrew.mxcl.mlx-sidecar"
POLL_SECONDS = 0.1
EX_CONFIG = "78"
"""What launchd gives as exit status of a program that it could not start."""


class Serving(NamedTuple):
    """What answers on the socket; `ready` as in the health service: the engine runs and takes work."""

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
        return bool(self.job and self.job.pid and self.serving and self.serving[::2] == (self.job.pid, True))


class Service:
    """
    The service of one user.

    Args:
        launchctl: The way to launchd.
        home: The user's home directory.
        look: Returns what answers on a socket.
        wait: Most seconds to wait for a daemon to serve.
        clock: Seconds that never go back.
        pause: Waits so many seconds.
    """

    def __init__(
        self,
        launchctl: Launchctl,
        home: Path,
        look: Callable[[Path], Serving | None],
        wait: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._launchctl = launchctl
        self._home = home
        self._look = look
        self._wait = wait
        self._clock = clock
        self._pause = pause
        self._file = PlistFile(plist_path(home))

    def status(self) -> Status:
        """
        Return how it is.

        Raises:
            AgentError: If the plist is not ours.
            LaunchctlError: If launchctl is not there.
        """
        agent = read(self._file.path)
        found = self._launchctl.find(LABEL)
        logs = log_directory(self._home)
        socket, log = addresses(agent.environment, self._home) if agent else addresses({}, self._home, logs / LOG_NAME)
        return Status(
            plist=self._file.path if agent else None,
            domain=found[0] if found else None,
            job=found[1] if found else None,
            socket=socket,
            serving=self._look(socket),
            homebrew=self._launchctl.find(HOMEBREW_LABEL) is not None,
            log=log,
            stderr=agent.stderr if agent else logs / STDERR_NAME,
        )

    def install(self, make: Callable[[bool], Agent]) -> bool:
        """
        Install, or put in the place of what is installed, and wait until it serves.

        Args:
            make: Returns the agent; its argument says whether nobody is logged in at the screen.

        Returns:
            Whether anything had to be done.

        Raises:
            AgentError: As `make` does.
            ServiceError: If another daemon is in the way, a log file cannot be written, or it does not come to serve.
            LaunchctlError: If launchd refuses; what was installed before is back then.
        """
        domain = self._launchctl.domain()
        agent = make(domain == self._launchctl.user)
        if self._launchctl.find(HOMEBREW_LABEL):
            raise ServiceError("Homebrew runs it already; first run: brew services stop mlx-sidecar")
        _check_writable(agent.stderr)
        found = self._launchctl.find(LABEL)
        if found and found[0] == domain and self._file.holds(agent.render()) and self._is_current(agent, found[1]):
            return False
        if found:
            self._unload(found[0])
        self._refuse_stranger(agent)
        tail = LogTail(agent.stderr)
        with self._file.replaced(agent.render()) as old:
            try:
                self._load(domain)
            except LaunchctlError:
                if found and old:
                    self._file.write(old)
                    self._load(found[0])
                raise
        self._await_serving(agent, tail, runs=0)
        return True

    def uninstall(self) -> bool:
        """
        End it and remove its plist; logs, configuration and models stay.

        Returns:
            Whether anything had to be done.

        Raises:
            ServiceError: If it does not end.
            LaunchctlError: If launchd refuses.
        """
        stopped = self.stop()
        return self._file.remove() or stopped

    def start(self) -> bool:
        """
        Start it, and wait until it serves.

        Returns:
            Whether anything had to be done.

        Raises:
            AgentError: If the plist is not ours.
            ServiceError: If it is not installed, another daemon is in the way, or it does not come to serve.
            LaunchctlError: If launchd refuses.
        """
        agent = self._installed()
        found = self._launchctl.find(LABEL)
        tail = LogTail(agent.stderr)
        if found is None:
            self._refuse_stranger(agent)
            self._load(self._launchctl.user if agent.background else self._launchctl.gui)
            self._await_serving(agent, tail, runs=0)
            return True
        domain, job = found
        if job.pid is None:
            self._refuse_stranger(agent)
            self._launchctl.kickstart(f"{domain}/{LABEL}")
        self._await_serving(agent, tail, job.runs)
        return job.pid is None

    def stop(self) -> bool:
        """
        Drain it and unload it: it stays down until the next login, `start` or `install`.

        Returns:
            Whether it was loaded.

        Raises:
            ServiceError: If it does not end.
            LaunchctlError: If launchd refuses.
        """
        found = self._launchctl.find(LABEL)
        if found:
            self._unload(found[0])
        return found is not None

    def restart(self) -> None:
        """
        Drain it, start it again, and wait until it serves.

        Raises:
            AgentError, ServiceError, LaunchctlError: As `start` does.
        """
        agent = self._installed()
        found = self._launchctl.find(LABEL)
        if found is None or found[1].pid is None:
            self.start()
            return
        domain, old = found
        self._launchctl.terminate(f"{domain}/{LABEL}")
        job = self._until(lambda job: job is None or job.pid != old.pid, "it did not end")
        if job is None:
            raise ServiceError("launchd has dropped the service; run: mlx-sidecar service install")
        tail = LogTail(agent.stderr)
        self._launchctl.kickstart(f"{domain}/{LABEL}")
        self._await_serving(agent, tail, job.runs)

    def _installed(self) -> Agent:
        agent = read(self._file.path)
        if agent is None:
            raise ServiceError("the service is not installed; run: mlx-sidecar service install")
        return agent

    def _socket(self, agent: Agent) -> Path:
        return addresses(agent.environment, self._home).socket

    def _is_current(self, agent: Agent, job: Job) -> bool:
        return self._look(self._socket(agent)) == (job.pid, __version__, True)

    def _refuse_stranger(self, agent: Agent) -> None:
        socket = self._socket(agent)
        if stranger := self._look(socket):
            raise ServiceError(f"another daemon (pid {stranger.pid}) serves {socket}; end it first")

    def _load(self, domain: str) -> None:
        self._launchctl.enable(f"{domain}/{LABEL}")
        self._launchctl.bootstrap(domain, str(self._file.path))

    def _unload(self, domain: str) -> None:
        self._launchctl.bootout(f"{domain}/{LABEL}")
        self._until(lambda job: job is None, "it did not end")

    def _until(self, condition: Callable[[Job | None], bool], failure: str) -> Job | None:
        deadline = self._clock() + PATIENCE_SECONDS
        while True:
            found = self._launchctl.find(LABEL)
            job = found[1] if found else None
            if condition(job):
                return job
            if self._clock() >= deadline:
                raise ServiceError(f"{failure} within {PATIENCE_SECONDS} s; see: mlx-sidecar service status")
            self._pause(POLL_SECONDS)

    def _await_serving(self, agent: Agent, tail: LogTail, runs: int) -> None:
        """Wait until the job, started `runs` times before, serves; a job that ends instead is told at once."""
        socket = self._socket(agent)
        deadline = self._clock() + self._wait
        first: int | None = None
        while True:
            found = self._launchctl.find(LABEL)
            if found is None:
                raise ServiceError("launchd has dropped the service; see: mlx-sidecar service logs")
            job = found[1]
            first = first or job.pid
            ended = job.pid is None and job.runs > runs and job.last_exit is not None
            if ended or (first is not None and job.pid != first):
                raise ServiceError(_obituary(agent, job, tail))
            serving = self._look(socket)
            if serving and serving.ready and serving.pid == job.pid:
                return
            if self._clock() >= deadline:
                raise ServiceError(f"it does not serve after {self._wait:g} s; see: mlx-sidecar service logs")
            self._pause(POLL_SECONDS)


def _obituary(agent: Agent, job: Job, tail: LogTail) -> str:
    text = f"the daemon ended as soon as it was started (last exit: {job.last_exit})"
    if said := tail.read():
        text += f'; it said: "{said}"'
    elif (job.last_exit or "").partition(":")[0] == EX_CONFIG:
        text += f"; launchd could not start {agent.program[0]}, or write {agent.stderr}"
    return f"{text}. launchd tries again after a while; to end that, run: mlx-sidecar service stop"


def _check_writable(log: Path) -> None:
    """launchd opens it, and says no more than EX_CONFIG if it cannot."""
    try:
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise ServiceError(
            f"the log file {log} cannot be written ({error.strerror}); make its directory yours and writable"
        ) from None
