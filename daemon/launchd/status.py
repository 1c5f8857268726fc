"""How the service is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from daemon.launchd.job import Job


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
