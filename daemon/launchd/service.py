"""
The LaunchAgent service of one user: install, start, stop, restart, uninstall and status.

Each operation may be repeated: an operation that has nothing to do is no error.

launchd has no "restart gracefully" and no answer to "does it serve". So each operation is a few `launchctl` calls with
waits between them:

    install    write the plist, bootout the old job, enable + bootstrap, wait until it serves
    start      enable + bootstrap if it is not loaded, or kickstart if it has no process, wait until it serves
    restart    SIGTERM, wait for the end of the process (a drain), kickstart, wait until it serves
    stop       bootout (SIGTERM, then SIGKILL after the exit timeout), wait until it is unloaded
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from daemon import __version__
from daemon.launchd.agent import LABEL, LOG_NAME, STDERR_NAME, Agent, log_directory, plist_path, read
from daemon.launchd.errors import LaunchctlError, ServiceError
from daemon.launchd.job import Job
from daemon.launchd.launchctl import Launchctl
from daemon.launchd.logs import LogTail
from daemon.launchd.plist_file import PlistFile
from daemon.launchd.readiness import ServiceWaiter, Serving, Status
from daemon.launchd.service_paths import service_paths

HOMEBREW_LABEL = "homebrew.mxcl.mlx-sidecar"


class Service:
    """
    The service of one user.

    Args:
        launchctl: Access to launchd.
        home: The user's home directory.
        look: Returns the daemon that answers on a socket; None if none does.
        wait: Most seconds to wait until a daemon serves.
    """

    def __init__(
        self,
        launchctl: Launchctl,
        home: Path,
        look: Callable[[Path], Serving | None],
        wait: float = 60.0,
    ) -> None:
        self._launchctl = launchctl
        self._home = home
        self._look = look
        self._waiter = ServiceWaiter(launchctl, look, wait)
        self._file = PlistFile(plist_path(home))

    def status(self) -> Status:
        """
        Return the state of the service.

        Raises:
            AgentError: If the plist is not that of this program.
            LaunchctlError: If launchctl does not exist.
        """
        agent = read(self._file.path)
        loaded = self._launchctl.find(LABEL)
        logs = log_directory(self._home)
        environment, default_log = (agent.environment, None) if agent else ({}, logs / LOG_NAME)
        socket, log = service_paths(environment, self._home, default_log)
        return Status(
            plist=self._file.path if agent else None,
            domain=loaded[0] if loaded else None,
            job=loaded[1] if loaded else None,
            socket=socket,
            serving=self._look(socket),
            homebrew=self._launchctl.find(HOMEBREW_LABEL) is not None,
            log=log,
            stderr=agent.stderr if agent else logs / STDERR_NAME,
        )

    def install(self, make: Callable[[bool], Agent]) -> bool:
        """
        Install the service, or replace the installed version, and wait until it serves.

        Args:
            make: Returns the agent; its argument says whether there is no graphical login.

        Returns:
            Whether anything had to be done.

        Raises:
            AgentError: As `make` does.
            ServiceError: If another daemon has the socket, a log file cannot be written, or the service does not serve
                in time.
            LaunchctlError: If launchd refuses; the version installed before is back then.
        """
        domain = self._launchctl.domain()
        agent = make(domain == self._launchctl.user)
        if self._launchctl.find(HOMEBREW_LABEL):
            raise ServiceError("Homebrew runs it already; first run: brew services stop mlx-sidecar")
        _check_writable(agent.stderr)
        loaded = self._launchctl.find(LABEL)
        self._refuse_other_daemon(agent, loaded[1] if loaded else None)
        if loaded and loaded[0] == domain and self._file.holds(agent.render()) and self._is_current(agent, loaded[1]):
            return False
        if loaded:
            self._unload(loaded[0])
        tail = LogTail(agent.stderr)
        with self._file.replaced(agent.render()) as old:
            try:
                self._load(domain)
            except LaunchctlError:
                # An upgrade that launchd refuses leaves the old version running.
                if loaded and old:
                    self._file.write(old)
                    self._load(loaded[0])
                raise
        self._waiter.until_serving(agent, self._socket(agent), tail, runs=0)
        return True

    def uninstall(self) -> bool:
        """
        End the service and remove its plist; logs, configuration and models stay.

        Returns:
            Whether anything had to be done.

        Raises:
            ServiceError: If the service does not end.
            LaunchctlError: If launchd refuses.
        """
        stopped = self.stop()
        return self._file.remove() or stopped

    def start(self) -> bool:
        """
        Start the installed service, and wait until it serves.

        Returns:
            Whether anything had to be done.

        Raises:
            AgentError: If the plist is not that of this program.
            ServiceError: If the service is not installed or does not serve in time, or another daemon has the socket.
            LaunchctlError: If launchd refuses.
        """
        agent = self._installed()
        loaded = self._launchctl.find(LABEL)
        tail = LogTail(agent.stderr)
        if loaded is None:
            self._refuse_other_daemon(agent, None)
            self._load(self._launchctl.user if agent.background else self._launchctl.gui)
            self._waiter.until_serving(agent, self._socket(agent), tail, runs=0)
            return True
        domain, job = loaded
        if job.pid is None:
            self._refuse_other_daemon(agent, job)
            self._launchctl.kickstart(f"{domain}/{LABEL}")
        self._waiter.until_serving(agent, self._socket(agent), tail, job.runs)
        return job.pid is None

    def stop(self) -> bool:
        """
        Drain the service and unload it, until the next login, `start` or `install`.

        Returns:
            Whether it was loaded.

        Raises:
            ServiceError: If the service does not end.
            LaunchctlError: If launchd refuses.
        """
        loaded = self._launchctl.find(LABEL)
        if loaded:
            self._unload(loaded[0])
        return loaded is not None

    def restart(self) -> None:
        """
        Drain the service, start it again, and wait until it serves.

        Raises:
            AgentError, ServiceError, LaunchctlError: As `start` does.
        """
        agent = self._installed()
        loaded = self._launchctl.find(LABEL)
        if loaded is None or loaded[1].pid is None:
            self.start()
            return
        domain, old = loaded
        self._launchctl.terminate(f"{domain}/{LABEL}")
        job = self._waiter.until(lambda job: job is None or job.pid != old.pid, "it did not end")
        if job is None:
            raise ServiceError("launchd has dropped the service; run: mlx-sidecar service install")
        tail = LogTail(agent.stderr)
        self._launchctl.kickstart(f"{domain}/{LABEL}")
        self._waiter.until_serving(agent, self._socket(agent), tail, job.runs)

    def _installed(self) -> Agent:
        agent = read(self._file.path)
        if agent is None:
            raise ServiceError("the service is not installed; run: mlx-sidecar service install")
        return agent

    def _socket(self, agent: Agent) -> Path:
        return service_paths(agent.environment, self._home).socket

    def _is_current(self, agent: Agent, job: Job) -> bool:
        return self._look(self._socket(agent)) == (job.pid, __version__, True)

    def _refuse_other_daemon(self, agent: Agent, job: Job | None) -> None:
        socket = self._socket(agent)
        serving = self._look(socket)
        if serving and (job is None or serving.pid != job.pid):
            raise ServiceError(f"another daemon (pid {serving.pid}) serves {socket}; end it first")

    def _load(self, domain: str) -> None:
        self._launchctl.enable(f"{domain}/{LABEL}")
        self._launchctl.bootstrap(domain, str(self._file.path))

    def _unload(self, domain: str) -> None:
        self._launchctl.bootout(f"{domain}/{LABEL}")
        self._waiter.until(lambda job: job is None, "it did not end")


def _check_writable(log: Path) -> None:
    """
    Create a log file, or raise `ServiceError`. launchd opens it itself, and reports only EX_CONFIG if it cannot.
    """
    try:
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise ServiceError(
            f"the log file {log} cannot be written ({error.strerror}); it has to be in a directory of your own"
        ) from None
