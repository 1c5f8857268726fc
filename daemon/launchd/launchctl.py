"""Driver of `launchctl`: the subcommands that the service needs, with refusals as exceptions."""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from daemon.launchd.agent import DAEMON, EXIT_SECONDS, KINDS
from daemon.launchd.errors import LaunchctlError
from daemon.launchd.job import Job
from daemon.shared.observed_time import output_of, polls

PROGRAM = "launchctl"
LAUNCHCTL_TIMEOUT_SECONDS = EXIT_SECONDS + 30
"""launchctl can wait for a job to end. It takes longer than this only if launchd hangs."""

NOT_FOUND = 113
_GONE = (3, NOT_FOUND)
"""Exit statuses of `bootout` if there is nothing to do: no such process, no such service."""
_IN_PROGRESS = 36
_EIO, _ALREADY = 5, 37
"""Exit statuses of `bootstrap` while launchd still ends a job of that label, among others: I/O error, in progress."""
_AGAIN_SECONDS, _PAUSE_SECONDS = 5.0, 0.5
"""How long and how often `bootstrap` is repeated: for a while after `bootout`, launchd refuses a job that is gone."""
_LOADED = (
    "another version may still be loaded, or the plist is refused; run: {uninstall}, then: {install}; "
    "launchd/README.md of the project says more"
)

_HINTS = {
    _EIO: _LOADED,
    _ALREADY: _LOADED,
    119: "the service is disabled; run: launchctl enable {target}",
    125: "there is no login at the screen: log in there, or run: {install}; or background items are switched off in "
    "System Settings > General > Login Items",
    134: "the plist is for another kind of session; run: {install}",
}


@dataclass(frozen=True, slots=True)
class _Answer:
    """Exit status and output of one `launchctl` command."""

    status: int
    text: str


class Launchctl:
    """
    Drives launchd for one user.

    Args:
        uid: The user; by default that of this process.
    """

    def __init__(self, uid: int | None = None) -> None:
        uid = os.getuid() if uid is None else uid
        self.gui = f"gui/{uid}"
        self.user = f"user/{uid}"

    def domain(self) -> str:
        """
        Return the domain for a new job: that of the graphical login, or the user's own without such a login.

        Raises:
            LaunchctlError: If launchctl does not exist.
        """
        return self.gui if self._run("print", self.gui).status == 0 else self.user

    def find(self, label: str) -> tuple[str, Job] | None:
        """
        Return the domain that a job is loaded in, and the job; None if neither domain has it.

        Raises:
            LaunchctlError: If launchctl does not exist.
        """
        for domain in (self.gui, self.user):
            answer = self._run("print", f"{domain}/{label}")
            if answer.status == 0:
                return domain, Job.parse(answer.text)
        return None

    def bootstrap(self, domain: str, plist: str) -> None:
        """
        Load a plist; with `RunAtLoad` this starts the job. 5 and 37 are taken as final only after some seconds.

        Raises:
            LaunchctlError: If launchd refuses it.
        """
        arguments = "bootstrap", domain, plist
        for _ in polls(_AGAIN_SECONDS, _PAUSE_SECONDS):
            answer = self._run(*arguments)
            if answer.status not in (_EIO, _ALREADY):
                break
        _check(answer, arguments, f"{domain}/{Path(plist).stem}")

    def bootout(self, target: str) -> None:
        """
        End a job and unload it. A job that is not loaded is no error; a loaded job can still run when this returns.

        Raises:
            LaunchctlError: If launchd refuses.
        """
        self._must("bootout", target, fine=(*_GONE, _IN_PROGRESS))

    def kickstart(self, target: str) -> None:
        """
        Start a loaded job at once. A job that still runs is killed first.

        Raises:
            LaunchctlError: If launchd refuses.
        """
        self._must("kickstart", "-k", target)

    def enable(self, target: str) -> None:
        """
        Undo a `launchctl disable`, which stays in force when the plist is removed.

        Raises:
            LaunchctlError: If launchd refuses.
        """
        self._must("enable", target)

    def terminate(self, target: str) -> None:
        """
        Send SIGTERM to a job's process. A job without a process is no error.

        Raises:
            LaunchctlError: If launchd refuses.
        """
        self._must("kill", "SIGTERM", target, fine=_GONE)

    def kill(self, target: str) -> None:
        """
        Send SIGKILL to a job's process. A job without a process is no error.

        Raises:
            LaunchctlError: If launchd refuses.
        """
        self._must("kill", "SIGKILL", target, fine=_GONE)

    def _must(self, *arguments: str, fine: tuple[int, ...] = ()) -> None:
        _check(self._run(*arguments), arguments, arguments[-1], fine)

    def _run(self, *arguments: str) -> _Answer:
        try:
            done = output_of([PROGRAM, *arguments], LAUNCHCTL_TIMEOUT_SECONDS, subprocess.STDOUT)
        except FileNotFoundError:
            raise LaunchctlError(
                "launchctl is not here: the service is for macOS. On Linux a systemd user unit takes its place; "
                "docs/linux.md in the project's checkout says how. Without any, run: mlx-sidecar serve"
            ) from None
        except subprocess.TimeoutExpired:
            raise LaunchctlError(
                f"{shlex.join([PROGRAM, *arguments])} did not answer within {LAUNCHCTL_TIMEOUT_SECONDS} s"
            ) from None
        return _Answer(done.returncode, done.stdout.decode("utf-8", "replace"))


def _check(answer: _Answer, arguments: tuple[str, ...], target: str, fine: tuple[int, ...] = ()) -> None:
    if answer.status == 0 or answer.status in fine:
        return
    kind = KINDS.get(target.rpartition("/")[2], DAEMON)
    commands = {name: kind.advice(name) for name in ("install", "uninstall")}
    hint = _HINTS.get(answer.status, "").format(target=target, **commands)
    raise LaunchctlError(
        f"{shlex.join([PROGRAM, *arguments])} failed with status {answer.status}: "
        f"{' '.join(answer.text.split()) or 'no message'}" + (f" ({hint})" if hint else "")
    )
