"""
A LaunchAgent service of one user, the daemon or `join`: install, start, stop, restart, uninstall and status.

Each operation may be repeated: an operation that has nothing to do is no error.

launchd has no "restart gracefully" and no answer to "does it serve". So each operation is a few `launchctl` calls with
waits between them:

    install    write the plist, bootout the old job, enable + bootstrap, wait until it serves
    start      enable + bootstrap if it is not loaded, or kickstart if it has no process, wait until it serves
    restart    SIGTERM, wait for the end of the process (a drain), SIGKILL if it hangs, kickstart, wait until it serves
    stop       bootout (SIGTERM, then SIGKILL after the exit timeout), wait until it is unloaded
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from daemon import __version__
from daemon.launchd.agent import DAEMON, EXIT_SECONDS, Agent, Kind, log_directory, plist_path, read
from daemon.launchd.errors import LaunchctlError, ServiceError
from daemon.launchd.job import Job
from daemon.launchd.launchctl import Launchctl
from daemon.launchd.logs import LogTail
from daemon.launchd.plist_file import PlistFile
from daemon.launchd.readiness import ServiceWaiter, Serving, Status, is_ready
from daemon.launchd.service_paths import ServicePaths, service_paths
from daemon.shared import presence
from daemon.shared.distributions import installed_at

HOMEBREW_LABEL = "homebrew.mxcl.mlx-sidecar"


class Service:
    """
    The service of one user.

    Args:
        launchctl: Access to launchd.
        home: The user's home directory.
        look: Returns the daemon that answers on a socket, or the rank that has a file; None if there is none.
        wait: Most seconds to wait until it serves.
        kind: What it runs.
    """

    def __init__(
        self,
        launchctl: Launchctl,
        home: Path,
        look: Callable[[Path], Serving | None],
        wait: float = 60.0,
        kind: Kind = DAEMON,
    ) -> None:
        self._kind = kind
        self._launchctl = launchctl
        self._home = home
        self._look = look
        self._waiter = ServiceWaiter(launchctl, look, wait, kind)
        self._file = PlistFile(plist_path(home, kind))

    def status(self) -> Status:
        """
        Return the state of the service.

        Raises:
            AgentError: If the plist is not that of this program.
            LaunchctlError: If launchctl does not exist.
        """
        agent = read(self._file.path)
        loaded = self._launchctl.find(self._kind.label)
        logs = log_directory(self._home)
        environment, default_log = (agent.environment, None) if agent else ({}, logs / self._kind.log_name)
        paths = service_paths(environment, self._home, default_log)
        is_daemon = self._kind is DAEMON
        return Status(
            plist=self._file.path if agent else None,
            domain=loaded[0] if loaded else None,
            job=loaded[1] if loaded else None,
            socket=paths.socket if is_daemon else None,
            address="" if is_daemon else paths.address,
            serving=self._look(self._place(paths)),
            homebrew=is_daemon and self._launchctl.find(HOMEBREW_LABEL) is not None,
            log=paths.log,
            stderr=agent.stderr if agent else logs / self._kind.stderr_name,
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
        if self._kind is DAEMON and self._launchctl.find(HOMEBREW_LABEL):
            raise ServiceError("Homebrew runs it already; first run: brew services stop mlx-sidecar")
        _check_writable(agent.stderr)
        loaded = self._launchctl.find(self._kind.label)
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
        self._waiter.until_serving(agent, self._place_of(agent), tail, runs=0)
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
        loaded = self._launchctl.find(self._kind.label)
        tail = LogTail(agent.stderr)
        if loaded is None:
            self._refuse_other_daemon(agent, None)
            self._load(self._launchctl.user if agent.background else self._launchctl.gui)
            self._waiter.until_serving(agent, self._place_of(agent), tail, runs=0)
            return True
        domain, job = loaded
        if job.pid is None:
            self._refuse_other_daemon(agent, job)
            self._launchctl.kickstart(f"{domain}/{self._kind.label}")
        self._waiter.until_serving(agent, self._place_of(agent), tail, job.runs)
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
        loaded = self._launchctl.find(self._kind.label)
        if loaded:
            self._unload(loaded[0])
        return loaded is not None

    def restart(self) -> None:
        """
        Drain the service, start it again, and wait until it serves. One that hangs is killed instead.

        Raises:
            AgentError, ServiceError, LaunchctlError: As `start` does.
        """
        agent = self._installed()
        loaded = self._launchctl.find(self._kind.label)
        if loaded is None or loaded[1].pid is None:
            self.start()
            return
        domain, old = loaded
        target = f"{domain}/{self._kind.label}"
        job = self._end(target, old)
        if job is None:
            raise ServiceError(f"launchd has dropped the service; run: {self._kind.advice('install')}")
        tail = LogTail(agent.stderr)
        if job.pid is None:  # else launchd has started it already, because it was killed or failed
            self._launchctl.kickstart(target)
        self._waiter.until_serving(agent, self._place_of(agent), tail, job.runs)

    def _end(self, target: str, old: Job) -> Job | None:
        """
        Drain the process of a job, and return the job as it is then; None if it is not loaded any more.

        A process that hangs, or was stopped, heeds no SIGTERM: it is killed when launchd would kill it at a `stop`.
        """

        def ended(job: Job | None) -> bool:
            return job is None or job.pid != old.pid

        self._launchctl.terminate(target)
        try:
            return self._waiter.until(ended, "it did not end", EXIT_SECONDS)
        except ServiceError:
            self._launchctl.kill(target)
            return self._waiter.until(ended, "it was killed and did not end")

    def _installed(self) -> Agent:
        agent = read(self._file.path)
        if agent is None:
            raise ServiceError(f"the service is not installed; run: {self._kind.advice('install')}")
        return agent

    def _place_of(self, agent: Agent) -> Path:
        return self._place(service_paths(agent.environment, self._home))

    def _place(self, paths: ServicePaths) -> Path:
        """Return the path by which the process is found."""
        return paths.socket if self._kind is DAEMON else paths.state_dir / presence.NAME

    def _is_current(self, agent: Agent, job: Job) -> bool:
        serving = self._look(self._place_of(agent))
        if serving is None or not is_ready(job, serving) or serving.version != __version__:
            return False
        # The code may be another one under the same version, as after `git pull` between releases.
        return serving.began >= installed_at()

    def _refuse_other_daemon(self, agent: Agent, job: Job | None) -> None:
        place = self._place_of(agent)
        serving = self._look(place)
        if serving and (job is None or serving.pid != job.pid):
            if self._kind is DAEMON:
                raise ServiceError(f"another daemon (pid {serving.pid}) serves {place}; end it first")
            raise ServiceError(f"another mlx-sidecar join (pid {serving.pid}) listens; end it first")

    def _load(self, domain: str) -> None:
        self._launchctl.enable(f"{domain}/{self._kind.label}")
        self._launchctl.bootstrap(domain, str(self._file.path))

    def _unload(self, domain: str) -> None:
        self._launchctl.bootout(f"{domain}/{self._kind.label}")
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
