"""The service: installed, started, stopped and watched. Each verb may be repeated; what is done already is no error."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from daemon import __version__
from daemon.launchd.addresses import addresses
from daemon.launchd.agent import LABEL, LOG_NAME, STDERR_NAME, Agent, log_directory, plist_path, read
from daemon.launchd.errors import LaunchctlError, ServiceError
from daemon.launchd.job import Job
from daemon.launchd.launchctl import Launchctl
from daemon.launchd.logs import LogTail
from daemon.launchd.plist_file import PlistFile
from daemon.launchd.readiness import Patience, Serving, Status

HOMEBREW_LABEL = "homebrew.mxcl.mlx-sidecar"


class Service:
    """
    The service of one user.

    Args:
        launchctl: The way to launchd.
        home: The user's home directory.
        look: Returns what answers on a socket.
        wait: Most seconds to wait for a daemon to serve.
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
        self._patience = Patience(launchctl, look, wait)
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
        self._refuse_stranger(agent, found[1] if found else None)
        if found and found[0] == domain and self._file.holds(agent.render()) and self._is_current(agent, found[1]):
            return False
        if found:
            self._unload(found[0])
        tail = LogTail(agent.stderr)
        with self._file.replaced(agent.render()) as old:
            try:
                self._load(domain)
            except LaunchctlError:
                if found and old:
                    self._file.write(old)
                    self._load(found[0])
                raise
        self._patience.until_serving(agent, self._socket(agent), tail, runs=0)
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
            self._refuse_stranger(agent, None)
            self._load(self._launchctl.user if agent.background else self._launchctl.gui)
            self._patience.until_serving(agent, self._socket(agent), tail, runs=0)
            return True
        domain, job = found
        if job.pid is None:
            self._refuse_stranger(agent, job)
            self._launchctl.kickstart(f"{domain}/{LABEL}")
        self._patience.until_serving(agent, self._socket(agent), tail, job.runs)
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
        job = self._patience.until(lambda job: job is None or job.pid != old.pid, "it did not end")
        if job is None:
            raise ServiceError("launchd has dropped the service; run: mlx-sidecar service install")
        tail = LogTail(agent.stderr)
        self._launchctl.kickstart(f"{domain}/{LABEL}")
        self._patience.until_serving(agent, self._socket(agent), tail, job.runs)

    def _installed(self) -> Agent:
        agent = read(self._file.path)
        if agent is None:
            raise ServiceError("the service is not installed; run: mlx-sidecar service install")
        return agent

    def _socket(self, agent: Agent) -> Path:
        return addresses(agent.environment, self._home).socket

    def _is_current(self, agent: Agent, job: Job) -> bool:
        return self._look(self._socket(agent)) == (job.pid, __version__, True)

    def _refuse_stranger(self, agent: Agent, job: Job | None) -> None:
        socket = self._socket(agent)
        serving = self._look(socket)
        if serving and (job is None or serving.pid != job.pid):
            raise ServiceError(f"another daemon (pid {serving.pid}) serves {socket}; end it first")

    def _load(self, domain: str) -> None:
        self._launchctl.enable(f"{domain}/{LABEL}")
        self._launchctl.bootstrap(domain, str(self._file.path))

    def _unload(self, domain: str) -> None:
        self._launchctl.bootout(f"{domain}/{LABEL}")
        self._patience.until(lambda job: job is None, "it did not end")


def _check_writable(log: Path) -> None:
    """launchd opens it, and says no more than EX_CONFIG if it cannot."""
    try:
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise ServiceError(
            f"the log file {log} cannot be written ({error.strerror}); it has to be in a directory of your own"
        ) from None
